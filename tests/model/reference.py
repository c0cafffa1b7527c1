"""The network as plain mathematics in float64: what the tests hold the real one to.

Comes in: a state dict under the published names, the config as a dict, the inputs of one forward, and a mask of valid
text tokens. Goes out: the velocity (B, T, H, W, out_visual_dim), differentiable in everything floating that came in.
Every formula is spelled out with elementary operations (matmul, exp, erf, sums); a rotation is a product of complex
numbers; attention runs one row and one head at a time and *leaves out* masked keys instead of weighing them down.
Knows nothing of modules, precision, kernels or the package under test. Tables are exact: no float32 anywhere.

Sources: model_facts.md "Transformer"; layouts and constants read from diffusers 0.42.1, `transformer_kandinsky.py`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ROPE_BASE = 10000.0
LAYER_NORM_EPS = 1e-5
RMS_NORM_EPS = torch.finfo(torch.float32).eps
"""`torch.nn.RMSNorm`'s default, machine epsilon of its input, which is float32 in the released network."""

Weights = Mapping[str, Tensor]


def velocity(
    weights: Weights,
    config: Mapping[str, Any],
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    timestep: Tensor,
    pooled_projections: Tensor,
    visual_rope_pos: Sequence[Tensor],
    text_rope_pos: Tensor,
    scale_factor: Sequence[float] = (1.0, 1.0, 1.0),
    mask: Tensor | None = None,
) -> Tensor:
    """One forward.

    Latents (B, T, H, W, C), text (B, L, E), `timestep` (B,) in 0 to 1000, CLIP's vector (B, P), `mask` (B, L) bool.
    """
    w = {name: tensor.double() for name, tensor in weights.items()}
    head_dim = sum(config["axes_dims"])
    if mask is None:
        mask = torch.ones(encoder_hidden_states.shape[:2], dtype=torch.bool)

    time = time_vector(w, config["model_dim"], timestep.double(), pooled_projections.double())
    text = text_tokens(w, encoder_hidden_states.double())
    visual = patches(hidden_states.double(), config["patch_size"])
    grid = visual.shape[1:4]
    visual = linear(w, "visual_embeddings.in_layer", visual.flatten(1, 3))

    text_turns = turns(text_rope_pos, head_dim)
    for i in range(config["num_text_blocks"]):
        text = text_block(w, f"text_transformer_blocks.{i}", text, time, text_turns, mask, head_dim)

    visual_turns = grid_turns(visual_rope_pos, config["axes_dims"], scale_factor)
    for i in range(config["num_visual_blocks"]):
        block = f"visual_transformer_blocks.{i}"
        visual = visual_block(w, block, visual, text, time, visual_turns, mask, head_dim)

    shift, scale = modulation(w, "out_layer.modulation", time, 2)
    visual = linear(w, "out_layer.out_layer", layer_norm(visual) * (1 + scale) + shift)
    return pixels(visual.unflatten(1, grid), config["patch_size"], config["out_visual_dim"])


# --- blocks -----------------------------------------------------------------------------------------------------------


def text_block(
    w: Weights, name: str, text: Tensor, time: Tensor, rotation: Tensor, mask: Tensor, head_dim: int
) -> Tensor:
    """Self-attention over the valid tokens, then the feed-forward, each shifted, scaled and gated by time."""
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation(w, f"{name}.text_modulation", time, 6)
    x = layer_norm(text) * (1 + scale_a) + shift_a
    text = text + gate_a * attention(w, f"{name}.self_attention", x, x, mask, rotation, head_dim)
    x = layer_norm(text) * (1 + scale_f) + shift_f
    return text + gate_f * feed_forward(w, f"{name}.feed_forward", x)


def visual_block(
    w: Weights,
    name: str,
    visual: Tensor,
    text: Tensor,
    time: Tensor,
    rotation: Tensor,
    mask: Tensor,
    head_dim: int,
) -> Tensor:
    """Self-attention, attention to the valid text without rotation, feed-forward; three shift-scale-gate triples."""
    p = modulation(w, f"{name}.visual_modulation", time, 9)
    x = layer_norm(visual) * (1 + p[1]) + p[0]
    visual = visual + p[2] * attention(w, f"{name}.self_attention", x, x, None, rotation, head_dim)
    x = layer_norm(visual) * (1 + p[4]) + p[3]
    visual = visual + p[5] * attention(w, f"{name}.cross_attention", x, text, mask, None, head_dim)
    x = layer_norm(visual) * (1 + p[7]) + p[6]
    return visual + p[8] * feed_forward(w, f"{name}.feed_forward", x)


def attention(
    w: Weights,
    name: str,
    x: Tensor,
    context: Tensor,
    mask: Tensor | None,
    rotation: Tensor | None,
    head_dim: int,
) -> Tensor:
    """Tokens `x` (B, N, D) look at `context` (B, M, D); a False in `mask` (B, M) takes that key out of the sum."""
    query, key, value = (
        linear(w, f"{name}.to_query", x),
        linear(w, f"{name}.to_key", context),
        linear(w, f"{name}.to_value", context),
    )
    rows = []
    for b in range(x.shape[0]):
        seen = torch.ones(context.shape[1], dtype=torch.bool) if mask is None else mask[b]
        heads = []
        for start in range(0, x.shape[2], head_dim):
            q = rms_norm(query[b, :, start : start + head_dim], w[f"{name}.query_norm.weight"])
            k = rms_norm(key[b, :, start : start + head_dim], w[f"{name}.key_norm.weight"])
            v = value[b, :, start : start + head_dim]
            if rotation is not None:
                q, k = rotate(q, rotation), rotate(k, rotation)
            heads.append(softmax(q @ k[seen].T / math.sqrt(head_dim)) @ v[seen])
        rows.append(torch.cat(heads, dim=-1))
    return linear(w, f"{name}.out_layer", torch.stack(rows))


def feed_forward(w: Weights, name: str, x: Tensor) -> Tensor:
    """Two matrices without bias around the exact GELU, x Phi(x)."""
    x = x @ w[f"{name}.in_layer.weight"].T
    x = x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x @ w[f"{name}.out_layer.weight"].T


# --- what goes in and out ---------------------------------------------------------------------------------------------


def time_vector(w: Weights, model_dim: int, timestep: Tensor, pooled: Tensor) -> Tensor:
    """(B, time_dim): an MLP of the sinusoid of `timestep` (0 to 1000), plus the normed projection of CLIP's vector."""
    angles = timestep[:, None] * frequencies(model_dim)
    wave = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)
    hidden = silu(linear(w, "time_embeddings.in_layer", wave))
    clip = layer_norm(linear(w, "pooled_text_embeddings.in_layer", pooled))
    clip = clip * w["pooled_text_embeddings.norm.weight"] + w["pooled_text_embeddings.norm.bias"]
    return linear(w, "time_embeddings.out_layer", hidden) + clip


def text_tokens(w: Weights, text: Tensor) -> Tensor:
    """(B, L, D): Qwen's states projected and normed."""
    x = layer_norm(linear(w, "text_embeddings.in_layer", text))
    return x * w["text_embeddings.norm.weight"] + w["text_embeddings.norm.bias"]


def modulation(w: Weights, name: str, time: Tensor, count: int) -> list[Tensor]:
    """`count` vectors (B, 1, D) from the time vector."""
    return list(linear(w, f"{name}.out_layer", silu(time))[:, None].chunk(count, dim=-1))


def patches(x: Tensor, patch_size: Sequence[int]) -> Tensor:
    """(B, T, H, W, C) -> (B, t, h, w, pt ph pw C): within a patch the channel runs fastest."""
    pt, ph, pw = patch_size
    parts = [x[:, i::pt, j::ph, k::pw] for i in range(pt) for j in range(ph) for k in range(pw)]
    return torch.cat(parts, dim=-1)


def pixels(x: Tensor, patch_size: Sequence[int], channels: int) -> Tensor:
    """(B, t, h, w, C pt ph pw) -> (B, T, H, W, C): on the way out the *patch* runs fastest, the channel slowest."""
    pt, ph, pw = patch_size
    b, t, h, w, _ = x.shape
    out = x.new_zeros(b, t * pt, h * ph, w * pw, channels)
    each = [(i, j, k) for i in range(pt) for j in range(ph) for k in range(pw)]
    for n, (i, j, k) in enumerate(each):
        out[:, i::pt, j::ph, k::pw] = x[..., n :: len(each)]
    return out


# --- leaves -----------------------------------------------------------------------------------------------------------


def frequencies(dim: int) -> Tensor:
    """Angular frequencies 10000^(-2i/dim), dim / 2 of them."""
    return ROPE_BASE ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))


def turns(positions: Tensor, dim: int) -> Tensor:
    """(M,) -> (M, dim / 2) unit complex numbers: how far position m turns each pair of channels."""
    angles = positions.double()[:, None] * frequencies(dim)
    return torch.complex(torch.cos(angles), torch.sin(angles))


def grid_turns(
    positions: Sequence[Tensor], axes_dims: Sequence[int], scale_factor: Sequence[float]
) -> Tensor:
    """Turns of t, h and w side by side for every cell of the grid, (t h w, head_dim / 2)."""
    axes = [turns(p.double() / s, d) for p, d, s in zip(positions, axes_dims, scale_factor, strict=True)]
    t, h, w = (len(axis) for axis in axes)
    return torch.stack(
        [
            torch.cat([axes[0][i], axes[1][j], axes[2][k]])
            for i in range(t)
            for j in range(h)
            for k in range(w)
        ]
    )


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Neighbouring channels (0, 1), (2, 3), ... of `x` (M, K) as complex numbers, times `rotation` (M, K / 2)."""
    turned = torch.complex(x[:, 0::2], x[:, 1::2]) * rotation
    return torch.stack([turned.real, turned.imag], dim=-1).flatten(-2)


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim=-1, keepdim=True) + LAYER_NORM_EPS)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).mean(dim=-1, keepdim=True) + RMS_NORM_EPS) * weight


def softmax(x: Tensor) -> Tensor:
    weights = torch.exp(x - x.amax(dim=-1, keepdim=True))
    return weights / weights.sum(dim=-1, keepdim=True)


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))
