"""The element-wise stretches between two matrix products, as the ordinary way through the network computes them.

Comes in: rows of token states, shifts, scales and gates in float32 or wider. Goes out: rows in the dtype they came in,
computed in float32 or wider and rounded once. `EAGER_STRETCHES` writes each in torch operations, for every device and
dtype; the blocks are given others where those are faster (`kernels.stretches_for`). All have gradients. Refuses to
know: weights of layers, times, float8.

Shapes: B batch, N tokens, D width of a row, A heads of K channels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kandinsky5.model.precision import LAYER_NORM_EPS, RMS_NORM_EPS, at_least_float32


@dataclass(frozen=True, kw_only=True)
class Stretches:
    """One implementation of every stretch. Shifts, scales and gates are (B, D), float32 or wider.

    norm_modulate: (x (B, N, D), shift, scale) -> `layer_norm(x) (1 + scale) + shift`.
    add_gated_norm_modulate: (x, gate, out (B, N, D), shift, scale) -> `x + gate out`, and `norm_modulate` of it.
    add_gated: (x, gate, out) -> `x + gate out`.
    norm_rotate: (x (B, N, A, K), weight (K,), rotation (N, K / 2, 2) or None) -> (B, N, A, K): RMS norm of each head,
        then each interleaved pair of channels turned by its token's angle, given as cosine and sine.
    """

    norm_modulate: Callable[[Tensor, Tensor, Tensor], Tensor]
    add_gated_norm_modulate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    add_gated: Callable[[Tensor, Tensor, Tensor], Tensor]
    norm_rotate: Callable[[Tensor, Tensor, Tensor | None], Tensor]


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`layer_norm(x) (1 + scale) + shift`, (B, N, D) in float32 or wider: before it is rounded."""
    normed = F.layer_norm(at_least_float32(x), x.shape[-1:], eps=LAYER_NORM_EPS)
    return normed * (1 + scale[:, None]) + shift[:, None]


def _norm_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return modulated(x, shift, scale).to(x.dtype)


def _add_gated_norm_modulate(
    x: Tensor, gate: Tensor, out: Tensor, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    x = _add_gated(x, gate, out)
    return x, _norm_modulate(x, shift, scale)


def _add_gated(x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
    return (at_least_float32(x) + gate[:, None] * out).to(x.dtype)


def _norm_rotate(x: Tensor, weight: Tensor, rotation: Tensor | None) -> Tensor:
    wide = at_least_float32(x)
    normed = F.rms_norm(wide, x.shape[-1:], weight.to(wide.dtype), RMS_NORM_EPS)
    return (normed if rotation is None else _rotated(normed, rotation)).to(x.dtype)


def _rotated(x: Tensor, rotation: Tensor) -> Tensor:
    cos, sin = rotation[:, None].to(x.dtype).unbind(-1)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


EAGER_STRETCHES = Stretches(
    norm_modulate=_norm_modulate,
    add_gated_norm_modulate=_add_gated_norm_modulate,
    add_gated=_add_gated,
    norm_rotate=_norm_rotate,
)
