"""What the fast path computes between two matrix products, one function each, and who computes it.

Comes in: rows of token states in the network's dtype, shifts, scales and gates in float32. Goes out: rows for the next
product, in the network's dtype or as float8 with a scale a row; without gradients. `EAGER` writes each in torch
operations and is what the others are tested against; `kernels_for` chooses, and `stretches_for` does so for the
ordinary way. Refuses to know: weights, layers, times.

Shapes: B batch, N tokens, M tokens of text, D width of a row, A heads of K channels.
"""

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kandinsky5.model.float8_attention import attend_self, why_no_float8_attention
from kandinsky5.model.precision import at_least_float32
from kandinsky5.model.scaled import ScaledRows, quantise_rows
from kandinsky5.model.stretches import EAGER_STRETCHES, Stretches, modulated

Rows: TypeAlias = Tensor | ScaledRows
"""What a product reads."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """One implementation of every stretch. Shifts, scales and gates are (B, D), float32 or wider.

    norm_modulate: (x (B, N, D), shift, scale, quantise) -> rows: `layer_norm(x) (1 + scale) + shift`.
    add_gated_norm_modulate: (x, gate, out (B, N, D), shift, scale, quantise) -> `x + gate out` in the dtype of x, and
        the rows that `norm_modulate` makes of it.
    add_gated: (x, gate, out) -> `x + gate out`.
    norm_rotate: (x (B, N, A, K), weight (K,), rotation (N, K / 2, 2) or None) -> (B, N, A, K) in the dtype of x.
    gelu: (x (B, N, D), quantise) -> rows: the exact (erf) GELU.
    quantise: x (B, N, D) -> float8 rows.
    attend_text: (query (B, N, A, K) before its norm, weight (K,) of that norm, key and value (B, M, A, K), key_mask
        (B, M) bool or None, quantise) -> rows of A K channels.
    attend_self: `float8_attention.attend_self`, or None where visual tokens attend as the back end does.
    """

    name: str
    norm_modulate: Callable[[Tensor, Tensor, Tensor, bool], Rows]
    add_gated_norm_modulate: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, bool], tuple[Tensor, Rows]]
    add_gated: Callable[[Tensor, Tensor, Tensor], Tensor]
    norm_rotate: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    gelu: Callable[[Tensor, bool], Rows]
    quantise: Callable[[Tensor], ScaledRows]
    attend_text: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None, bool], Rows]
    attend_self: Callable[..., ScaledRows | None] | None = None


def kernels_for(device: torch.device, *, float8: bool, float8_attention: bool = False) -> Kernels:
    """The fastest implementation that runs on a device.

    Args:
        device: where it runs.
        float8: it will be asked to quantise.
        float8_attention: it attends in float8 where the device can.
    """
    if why_no_triton(device, float8=float8) is not None:
        return EAGER
    from kandinsky5.model.triton_kernels import TRITON

    if float8_attention and why_no_float8_attention(device) is None:
        return replace(TRITON, attend_self=attend_self)
    return TRITON


def stretches_for(device: torch.device) -> Stretches:
    """The fastest stretches with gradients that run on a device, for a network that learns there."""
    if why_no_triton(device, float8=False) is not None:
        return EAGER_STRETCHES
    from kandinsky5.model.triton_gradients import TRITON_STRETCHES

    return TRITON_STRETCHES


def why_no_triton(device: torch.device, *, float8: bool) -> str | None:
    """Why the fused kernels do not run on a device, in words; None where they do."""
    if device.type != "cuda":
        return f"the fused kernels need a CUDA device, not {device.type}"
    if torch.version.hip is not None:
        return "the fused kernels have not been tried on ROCm"
    if not _triton_is_here():
        return "the fused kernels need Triton, which is not installed"
    if not _compiler_is_here():
        return "the fused kernels need a C compiler (gcc or clang), with which Triton builds their launchers"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return "the fused kernels need compute capability 8.0 (Ampere) or later"
    if float8 and capability < (8, 9):
        return "the fused kernels that write float8 need compute capability 8.9 (Ada) or later"
    return None


@cache
def _triton_is_here() -> bool:
    return find_spec("triton") is not None


@cache
def _compiler_is_here() -> bool:
    """As Triton looks for one; its builds for Windows bring their own."""
    return sys.platform == "win32" or any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))


def _norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, quantise: bool) -> Rows:
    return _rows(modulated(x, shift, scale), x.dtype, quantise)


def _add_gated_norm_modulate(
    x: Tensor, gate: Tensor, out: Tensor, shift: Tensor, scale: Tensor, quantise: bool
) -> tuple[Tensor, Rows]:
    x = EAGER_STRETCHES.add_gated(x, gate, out)
    return x, _norm_modulate(x, shift, scale, quantise)


def _gelu(x: Tensor, quantise: bool) -> Rows:
    return _rows(F.gelu(at_least_float32(x)), x.dtype, True) if quantise else F.gelu(x)


def _attend_text(
    query: Tensor, weight: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, quantise: bool
) -> Rows:
    out = attended(EAGER_STRETCHES.norm_rotate(query, weight, None), key, value, key_mask)
    return quantise_rows(out, out.dtype) if quantise else out


def attended(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
    """Torch's own attention: (B, N, A, K), (B, M, A, K) twice, (B, M) bool or None -> (B, N, A K)."""
    mask = None if key_mask is None else key_mask[:, None, None]
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(-2)


def _rows(x: Tensor, dtype: torch.dtype, quantise: bool) -> Rows:
    """Rows in the dtype a product reads; quantised ones are rounded once, from what was computed."""
    return quantise_rows(x, dtype) if quantise else x.to(dtype)


EAGER = Kernels(
    name="eager",
    norm_modulate=_norm_modulate,
    add_gated_norm_modulate=_add_gated_norm_modulate,
    add_gated=EAGER_STRETCHES.add_gated,
    norm_rotate=EAGER_STRETCHES.norm_rotate,
    gelu=_gelu,
    quantise=lambda x: quantise_rows(x, x.dtype),
    attend_text=_attend_text,
)
