"""What enters the network, as vectors of its width: time, text, pooled text, latent patches, and positions.

Shapes: B batch, T frames (1 for images), H and W latent rows and columns, N = T H/2 W/2 visual tokens, L text tokens,
D model width, K head width. Everything here is pure arithmetic on what it is given; positions have no tables that a
`.to(dtype)` could round.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kandinsky5.model.precision import InputPrecisionLinear, PreciseLayerNorm

MAX_PERIOD = 10000.0
"""Base of the geometric frequencies, for time and for rotary positions."""


class TimeEmbedding(nn.Module):
    """Sinusoid of the network's time (1000 t), then a two-layer perceptron; float32."""

    def __init__(self, model_dim: int, time_dim: int):
        super().__init__()
        self.model_dim = model_dim
        self.in_layer = InputPrecisionLinear(model_dim, time_dim)
        self.activation = nn.SiLU()
        self.out_layer = InputPrecisionLinear(time_dim, time_dim)

    def forward(self, time: Tensor) -> Tensor:
        """(B,) in [0, 1000], float32 or wider -> (B, time_dim), same dtype."""
        angles = torch.outer(time, frequencies(self.model_dim, time.device).to(time.dtype))
        sinusoid = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.out_layer(self.activation(self.in_layer(sinusoid)))


class TextEmbedding(nn.Module):
    """Text states of an encoder brought to the width of the network and normalised in float32."""

    def __init__(self, text_dim: int, out_dim: int):
        super().__init__()
        self.in_layer = nn.Linear(text_dim, out_dim)
        self.norm = PreciseLayerNorm(out_dim)

    def forward(self, text: Tensor) -> Tensor:
        """(..., text_dim) -> (..., out_dim), float32 or wider."""
        return self.norm(self.in_layer(text))


class VisualEmbedding(nn.Module):
    """Latents cut into patches of (frames, rows, columns, channels), each projected to the width of the network."""

    def __init__(self, channels: int, model_dim: int, patch_size: Sequence[int]):
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.in_layer = InputPrecisionLinear(math.prod(patch_size) * channels, model_dim)

    def forward(self, latents: Tensor) -> Tensor:
        """(B, T, H, W, C) -> (B, T / pt, H / ph, W / pw, D), same dtype."""
        pt, ph, pw = self.patch_size
        x = latents.unflatten(3, (-1, pw)).unflatten(2, (-1, ph)).unflatten(1, (-1, pt))
        return self.in_layer(x.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4))


def frequencies(dim: int, device: torch.device) -> Tensor:
    """(dim / 2,) float32: `MAX_PERIOD ** (-i / (dim / 2))`."""
    i = torch.arange(dim // 2, device=device, dtype=torch.float32)
    return torch.exp(-math.log(MAX_PERIOD) / (dim // 2) * i)


def rotary_angles(positions: Tensor, dim: int) -> Tensor:
    """Angles of one axis: positions (P,) -> (P, dim / 2), float32."""
    return torch.outer(positions.to(torch.float32), frequencies(dim, positions.device))


def text_rotation(positions: Tensor, head_dim: int) -> Tensor:
    """Rotation of the text tokens: positions (L,) -> (L, K / 2, 2), cosine and sine, float32."""
    angles = rotary_angles(positions, head_dim)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def visual_rotation(
    positions: Sequence[Tensor], axes_dims: Sequence[int], scale_factor: Sequence[float]
) -> Tensor:
    """Rotation of the visual tokens over (frame, row, column).

    Args:
        positions: three (P,) index tensors, one an axis.
        axes_dims: how many of the K channels of a head each axis turns; they sum to K.
        scale_factor: angles of each axis are divided by it.

    Returns:
        (N, K / 2, 2), cosine and sine, float32; N in frame, row, column order.
    """
    t, h, w = (
        rotary_angles(p, dim) / scale
        for p, dim, scale in zip(positions, axes_dims, scale_factor, strict=True)
    )
    grid = (len(t), len(h), len(w), -1)
    angles = torch.cat(
        [t[:, None, None].expand(grid), h[None, :, None].expand(grid), w[None, None, :].expand(grid)], dim=-1
    ).flatten(0, 2)
    return torch.stack([angles.cos(), angles.sin()], dim=-1)
