"""Softmax of float32 scores, rounded once to a narrower dtype, in Triton.

A row's length is no compile-time constant: a picture whose number of places is divisible by 16, as of all native sizes,
compiles nothing after another. Importing this file needs Triton.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 4096
"""Of a row at a time."""

WARPS = 8


@triton.jit
def _softmax(scores_ptr, weights_ptr, width, scale, COLUMNS: tl.constexpr):
    """One row, read twice: the largest and the sum, kept apart for each of so many columns, then the weights.

    `scale` has the base-2 logarithm of e in it. What stands for no score is far below all and no infinity, whose
    difference to itself would be no number.
    """
    columns = tl.arange(0, COLUMNS)
    row = tl.program_id(0).to(tl.int64) * width
    scores_ptr += row
    weights_ptr += row
    largest = tl.full([COLUMNS], -3e38, tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    for begin in range(0, width, COLUMNS):
        inside = begin + columns < width
        x = tl.load(scores_ptr + begin + columns, mask=inside, other=0.0) * scale
        x = tl.where(inside, x, -3e38)
        larger = tl.maximum(largest, x)
        total = total * tl.exp2(largest - larger) + tl.exp2(x - larger)
        largest = larger
    top = tl.max(largest, axis=0)
    share = 1.0 / tl.sum(total * tl.exp2(largest - top), axis=0)
    for begin in range(0, width, COLUMNS):
        inside = begin + columns < width
        x = tl.load(scores_ptr + begin + columns, mask=inside, other=0.0) * scale
        y = (tl.exp2(x - top) * share).to(weights_ptr.dtype.element_ty)
        tl.store(weights_ptr + begin + columns, y, mask=inside)


def triton_softmax(scores: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Softmax of `scale scores` over the last dimension, (..., L) float32 -> (..., L) in a dtype."""
    scores = scores.contiguous()
    weights = torch.empty_like(scores, dtype=dtype)
    width = scores.shape[-1]
    with torch.cuda.device_of(scores):
        _softmax[(scores.numel() // width,)](
            *(scores, weights, width, scale * math.log2(math.e)), COLUMNS=COLUMNS, num_warps=WARPS
        )
    return weights
