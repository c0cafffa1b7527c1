"""Small arithmetic of the Triton kernels, which each of them that writes float8 shares.

Importing this file needs Triton.
"""

import triton
import triton.language as tl


@triton.jit
def largest_or_nan(a, b):
    """The larger; no number if one of them is none, so that a row's scale keeps what clamping would hide."""
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def scale_of(largest, LARGEST_FLOAT8: tl.constexpr, LEAST: tl.constexpr):
    """The scale of a row whose largest magnitude is given."""
    return largest_or_nan(largest / LARGEST_FLOAT8, LEAST)


@triton.jit
def clamped(y, LARGEST_FLOAT8: tl.constexpr):
    """Within what float8 has; what is no number stays so."""
    ALL: tl.constexpr = tl.PropagateNan.ALL
    return tl.minimum(tl.maximum(y, -LARGEST_FLOAT8, propagate_nan=ALL), LARGEST_FLOAT8, propagate_nan=ALL)
