"""What the Triton kernels share: a row of columns in parts, and the arithmetic of float8.

A row's parts are tensors of a power of two of columns, as Triton's must be; all parts of a row are added, or compared,
before one reduction across threads. Importing this file needs Triton.
"""

import triton
import triton.language as tl

MOST_PARTS = 5
"""2,560 and 10,240 columns are five parts of 512 and 2,048; in two parts a norm took a seventh to a quarter longer
(benchmarks/results/2026-11-28-drawing-h200-kernels.json)."""


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


@triton.jit
def load_row(pointer, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr):
    """A row, or a shift, scale or gate, as float32 parts; zeros beyond the last column."""
    parts = ()
    for i in tl.static_range(PARTS):
        columns = i * PART + tl.arange(0, PART)
        parts = parts + (tl.load(pointer + columns, mask=columns < WIDTH, other=0.0).to(tl.float32),)  # noqa: RUF005
    return parts


@triton.jit
def sum_of(parts, PARTS: tl.constexpr):
    """Of all columns."""
    total = parts[0]
    for i in tl.static_range(1, PARTS):
        total += parts[i]
    return tl.sum(total, axis=0)


@triton.jit
def sum_of_products(parts, others, PARTS: tl.constexpr):
    """Of two rows, column by column."""
    total = parts[0] * others[0]
    for i in tl.static_range(1, PARTS):
        total += parts[i] * others[i]
    return tl.sum(total, axis=0)


@triton.jit
def centred(x, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr):
    """A row less its mean; zeros beyond its last column."""
    mean = sum_of(x, PARTS) / WIDTH
    parts = ()
    for i in tl.static_range(PARTS):
        y = x[i] - mean
        if PARTS * PART > WIDTH:
            y = tl.where(i * PART + tl.arange(0, PART) < WIDTH, y, 0.0)
        parts = parts + (y,)  # noqa: RUF005
    return parts


@triton.jit
def largest_of(parts, PARTS: tl.constexpr):
    """The largest magnitude of all columns, or no number."""
    largest = tl.abs(parts[0])
    for i in tl.static_range(1, PARTS):
        largest = largest_or_nan(largest, tl.abs(parts[i]))
    return tl.reduce(largest, 0, largest_or_nan)


def parts_of(width: int) -> tuple[int, int]:
    """How many parts a row has, at most `MOST_PARTS`, and of how many columns; without an empty column if it can be."""
    even = width & -width
    if width // even <= MOST_PARTS:
        return width // even, even
    part = triton.next_power_of_2(triton.cdiv(width, MOST_PARTS))
    return triton.cdiv(width, part), part
