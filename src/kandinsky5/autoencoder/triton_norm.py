"""Group norm, and SiLU of it on request, in Triton: two passes over memory that is read as it lies, channels last.

The first pass leaves a mean and a sum of squared deviations for each channel and run of pixels, a small kernel puts
those of a group together, the second pass norms. No atomics: the same input gives the same bits. Arithmetic is float32,
rounded once. Channels, groups and eps are compile-time constants, numbers of pixels and pictures are not, so another
size of picture compiles nothing. Importing this file needs Triton. float32, bfloat16 or float16; no gradients.

Shapes: N pictures, P pixels, C channels, G groups of C / G channels, R runs of pixels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096
"""Of a tile, some pixels with all their channels: 32 a thread, four 16-byte accesses of bfloat16."""

WARPS = 4

TILES_MEASURED = 16
"""Of a program of the first pass. Its sums are taken around the mean of its first tile: that tile is a 16th of what is
measured, so the squared distance from the whole's mean is at most 15 variances, and no more than a factor of 15 of
float32's precision can cancel."""

TILES_NORMED = 8
"""Of a program of the second pass, which reads a channel's mean, deviation, weight and bias once for so many."""

ELEMENTS_JOINED = 4096
"""Of a group's partial results that are put together at a time."""

WARPS_JOINING = 8


@triton.jit
def _tile(x_ptr, begin, pixels, channels, ROWS: tl.constexpr, C: tl.constexpr):
    """Some pixels from `begin` on in float32, zeros outside; which places are inside; and where they lie."""
    rows = tl.arange(0, ROWS)
    inside = (begin + rows < pixels)[:, None] & (channels < C)[None]
    place = begin.to(tl.int64) * C + rows[:, None] * C + channels[None]
    return tl.load(x_ptr + place, mask=inside, other=0.0).to(tl.float32), inside, place


@triton.jit
def _of_a_thread(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Four pixels of a tile added up: those that one thread holds in 16-bit dtypes, which so keeps one sum."""
    fewer: tl.constexpr = ROWS // 4 if ROWS >= 4 else 1
    return tl.sum(tl.reshape(x, [ROWS // fewer, fewer, COLUMNS]), axis=0)


@triton.jit(do_not_specialize=["pixels", "runs"])
def _measure(x_ptr, mean_ptr, deviations_ptr, pixels, runs, C: tl.constexpr, COLUMNS: tl.constexpr,
             ROWS: tl.constexpr, TILES: tl.constexpr):  # fmt: skip
    """A run of pixels: each channel's mean and its sum of squared deviations from that, (N, R, C) float32."""
    run, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, COLUMNS)
    x_ptr += picture * pixels * C
    begin = run * (ROWS * TILES)
    x, inside, _ = _tile(x_ptr, begin, pixels, channels, ROWS, C)
    middle = tl.sum(x, axis=0) / tl.minimum(pixels - begin, ROWS)
    apart = tl.where(inside, x - middle[None], 0.0)
    total, squares = _of_a_thread(apart, ROWS, COLUMNS), _of_a_thread(apart * apart, ROWS, COLUMNS)
    for i in range(1, TILES):
        x, inside, _ = _tile(x_ptr, begin + i * ROWS, pixels, channels, ROWS, C)
        apart = tl.where(inside, x - middle[None], 0.0)
        total += _of_a_thread(apart, ROWS, COLUMNS)
        squares += _of_a_thread(apart * apart, ROWS, COLUMNS)
    count = tl.minimum(pixels - begin, ROWS * TILES).to(tl.float32)
    away = tl.sum(total, axis=0) / count
    place = (picture * runs + run) * C + channels
    tl.store(mean_ptr + place, middle + away, mask=channels < C)
    tl.store(deviations_ptr + place, tl.sum(squares, axis=0) - count * away * away, mask=channels < C)


@triton.jit
def _partial(pointer, first, run, runs, channel, SIZE: tl.constexpr, C: tl.constexpr):
    """One of the partial results of some runs and a group's channels, zeros outside; and which are inside."""
    inside = (run < runs)[:, None] & (channel < SIZE)[None]
    place = (first + run)[:, None] * C + channel[None]
    return tl.load(pointer + place, mask=inside, other=0.0), inside


@triton.jit(do_not_specialize=["pixels", "runs"])
def _join(mean_ptr, deviations_ptr, group_mean_ptr, inverse_ptr, pixels, runs, C: tl.constexpr, SIZE: tl.constexpr,
          COLUMNS: tl.constexpr, ROWS: tl.constexpr, PIXELS: tl.constexpr, EPS: tl.constexpr):  # fmt: skip
    """A group of a picture: its mean and one over its deviation, (N, G) float32, from the partial results.

    A run's deviations count around its own mean; how far that is from the group's is added (Chan, Golub and LeVeque).
    """
    group, picture = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel, rows = tl.arange(0, COLUMNS), tl.arange(0, ROWS)
    mean_ptr += group * SIZE
    deviations_ptr += group * SIZE
    first = picture * runs
    total = pixels.to(tl.float32) * SIZE
    middle = tl.load(mean_ptr + first * C)
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, runs, ROWS):
        run = begin + rows
        mean, inside = _partial(mean_ptr, first, run, runs, channel, SIZE, C)
        count = tl.minimum(pixels - run * PIXELS, PIXELS).to(tl.float32)
        sums += tl.where(inside, (mean - middle) * count[:, None], 0.0)
    group_mean = middle + tl.sum(sums) / total
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for begin in range(0, runs, ROWS):
        run = begin + rows
        mean, inside = _partial(mean_ptr, first, run, runs, channel, SIZE, C)
        deviations, _ = _partial(deviations_ptr, first, run, runs, channel, SIZE, C)
        count = tl.minimum(pixels - run * PIXELS, PIXELS).to(tl.float32)
        apart = mean - group_mean
        sums += tl.where(inside, deviations + apart * apart * count[:, None], 0.0)
    place = picture * (C // SIZE) + group
    tl.store(group_mean_ptr + place, group_mean)
    tl.store(inverse_ptr + place, 1.0 / tl.sqrt(tl.sum(sums) / total + EPS))


@triton.jit(do_not_specialize=["pixels"])
def _norm(x_ptr, out_ptr, group_mean_ptr, inverse_ptr, weight_ptr, bias_ptr, pixels, C: tl.constexpr,
          SIZE: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
          SILU: tl.constexpr):  # fmt: skip
    """A run of pixels, normed. The last runs come first: the first pass has left them in the cache."""
    run, picture = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1).to(tl.int64)
    channels = tl.arange(0, COLUMNS)
    here = channels < C
    place = picture * (C // SIZE) + channels // SIZE
    mean = tl.load(group_mean_ptr + place, mask=here, other=0.0)
    scale = tl.load(inverse_ptr + place, mask=here, other=0.0)
    scale *= tl.load(weight_ptr + channels, mask=here, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channels, mask=here, other=0.0).to(tl.float32)
    x_ptr += picture * pixels * C
    out_ptr += picture * pixels * C
    begin = run * (ROWS * TILES)
    for i in range(TILES):
        x, inside, lies = _tile(x_ptr, begin + i * ROWS, pixels, channels, ROWS, C)
        y = (x - mean[None]) * scale[None] + bias[None]
        if SILU:
            y = y / (1.0 + tl.exp(-y))
        tl.store(out_ptr + lies, y.to(out_ptr.dtype.element_ty), mask=inside)


def triton_group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, *, silu: bool
) -> Tensor:
    """As `group_norm.group_norm`, (N, C, ...) -> (N, C, ...), channels last; what comes in otherwise is copied."""
    rows = x.movedim(1, -1).contiguous()
    N, C = x.shape[:2]
    P, size = rows.numel() // max(1, N * C), C // groups
    out = torch.empty_like(rows)
    if rows.numel() == 0:
        return out.movedim(-1, 1)
    columns = triton.next_power_of_2(C)
    tile = max(1, ELEMENTS // columns)
    runs = triton.cdiv(P, tile * TILES_MEASURED)
    means, deviations = torch.empty((2, N, runs, C), dtype=torch.float32, device=x.device)
    group_means, inverse = torch.empty((2, N, groups), dtype=torch.float32, device=x.device)
    side = triton.next_power_of_2(size)
    with torch.cuda.device_of(x):
        _measure[(runs, N)](
            *(rows, means, deviations, P, runs),
            C=C,
            COLUMNS=columns,
            ROWS=tile,
            TILES=TILES_MEASURED,
            num_warps=WARPS,
        )
        _join[(groups, N)](
            *(means, deviations, group_means, inverse, P, runs),
            C=C,
            SIZE=size,
            COLUMNS=side,
            ROWS=max(1, ELEMENTS_JOINED // side),
            PIXELS=tile * TILES_MEASURED,
            EPS=eps,
            num_warps=WARPS_JOINING,
        )
        _norm[(triton.cdiv(P, tile * TILES_NORMED), N)](
            *(rows, out, group_means, inverse, weight, bias, P),
            C=C,
            SIZE=size,
            COLUMNS=columns,
            ROWS=tile,
            TILES=TILES_NORMED,
            SILU=silu,
            num_warps=WARPS,
        )
    return out.movedim(-1, 1)
