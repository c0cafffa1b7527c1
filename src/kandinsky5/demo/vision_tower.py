"""Qwen2.5-VL's vision tower over many square pictures of one size, in one forward pass.

Comes in: the tower and patches of `vision_patches`. Goes out: what its own forward gives for them, as one tensor. The
tower's own forward takes pictures of any sizes by cutting the batch into windows and attending to each in a call of its
own: hundreds of small calls for a training batch. Pictures of one size share their windows, so that a mask will do. It
does not know where pictures come from or what is done with the tokens.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def seen_tokens(tower: Any, patches: Tensor) -> Tensor:
    """Patches (B, N, P) of B square pictures -> tokens (B, N / 4, text width) in the order of the picture's rows."""
    config = tower.config
    side = round(patches.shape[1] ** 0.5)
    row, column = _places(side, config.spatial_merge_size, patches.device)
    rotation = _rotation(row, column, config.hidden_size // config.num_heads)
    across = config.window_size // config.patch_size
    window = row // across * side + column // across
    within = window[:, None] == window
    states = tower.patch_embed(patches.flatten(0, 1)).unflatten(0, patches.shape[:2])
    for number, block in enumerate(tower.blocks):
        mask = None if number in config.fullatt_block_indexes else within
        states = states + _attended(block.attn, block.norm1(states), rotation, mask)
        states = states + block.mlp(block.norm2(states))
    merged = config.spatial_merge_size**2
    return tower.merger(states.flatten(0, 1)).unflatten(0, (len(patches), patches.shape[1] // merged))


def _places(side: int, merge: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column, (N,) int64 each, of patches that come merged token by merged token."""
    line = torch.arange(side, device=device)
    grid = torch.stack(torch.meshgrid(line, line, indexing="ij"))
    row, column = grid.reshape(2, side // merge, merge, side // merge, merge).transpose(2, 3).flatten(1)
    return row, column


def _rotation(row: Tensor, column: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine (N, head_dim) float32: half of the pairs turn by row, half by column."""
    half = head_dim // 2
    exponents = torch.arange(0, half, 2, dtype=torch.float32, device=row.device) / half
    frequencies = 10000.0**-exponents
    angles = torch.cat([place[:, None] * frequencies for place in (row, column)] * 2, dim=-1)
    return angles.cos(), angles.sin()


def _attended(attention: Any, states: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
    """Self-attention of states (B, N, D) within each picture, to the patches that `mask` (N, N) allows."""
    heads = attention.num_heads
    query, key, value = attention.qkv(states).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    mixed = functional.scaled_dot_product_attention(
        _turned(query, rotation), _turned(key, rotation), value, attn_mask=mask
    )
    return attention.proj(mixed.transpose(1, 2).flatten(2))


def _turned(states: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions in float32: channel i of a head pairs with channel i + half."""
    cosine, sine = rotation
    first, second = states.float().chunk(2, dim=-1)
    turned = states.float() * cosine + torch.cat([-second, first], dim=-1) * sine
    return turned.to(states.dtype)
