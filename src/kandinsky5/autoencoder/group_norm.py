"""Group norm, and SiLU of it on request, by whoever is fastest where the tensor is.

Comes in: (N, C, ...) of any floating dtype. Goes out: the same shape and dtype. The Triton kernels (`triton_norm`) have
no gradients and read pixels whose channels lie together; elsewhere torch's own operations compute. Refuses to know:
layers.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kandinsky5.model.kernels import why_no_triton

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

WIDEST = 4096
"""Channels of a pixel that a program of the kernels can take."""


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool) -> Tensor:
    """`silu(group_norm(x))`, or without the SiLU, (N, C, ...) -> (N, C, ...) in the dtype of `x`.

    Args:
        x: of at least one pixel.
        groups: of neighbouring channels; divides C.
        weight, bias: (C,).
        eps: added to the variance.
        silu: `y sigmoid(y)` of what was normed.
    """
    if _is_fused(x):
        from kandinsky5.autoencoder.triton_norm import triton_group_norm

        return triton_group_norm(x, groups, weight, bias, eps, silu=silu)
    return eager_group_norm(x, groups, weight, bias, eps, silu=silu)


def eager_group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool
) -> Tensor:
    """The same in torch's operations, rounded after each."""
    normed = F.group_norm(x, groups, weight, bias, eps)
    return F.silu(normed, inplace=not torch.is_grad_enabled()) if silu else normed


def goes_ordinary_way() -> bool:
    """Whether somebody asks for gradients or compiles: then diffusers' own operations compute."""
    return torch.is_grad_enabled() or torch.compiler.is_compiling()


def _is_fused(x: Tensor) -> bool:
    return (
        not goes_ordinary_way()
        and x.dtype in FUSED_DTYPES
        and x.shape[1] <= WIDEST
        and why_no_triton(x.device, float8=False) is None
    )
