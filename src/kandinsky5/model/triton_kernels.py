"""The stretches of `kernels` as one pass over memory each, in Triton.

A program takes whole rows (tokens), so each input is read once and each result written once; arithmetic is float32,
rounded where the eager twins round. Widths are compile-time constants, numbers of rows are not, so another picture size
or batch compiles nothing. Importing this file needs Triton. Rows of float32, bfloat16 or float16; no gradients.

Shapes: B batch, N tokens, D width of a row, A heads of K channels.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kandinsky5.model.kernels import EAGER, Kernels, Rows, attended
from kandinsky5.model.precision import LAYER_NORM_EPS, RMS_NORM_EPS
from kandinsky5.model.scaled import FLOAT8, LARGEST, LEAST_SCALE, ScaledRows
from kandinsky5.model.triton_attention import attend_text, fits
from kandinsky5.model.triton_numbers import (
    centred,
    clamped,
    largest_of,
    load_row,
    parts_of,
    scale_of,
    sum_of_products,
)

ELEMENTS_A_WARP = 128
"""Of a part. On an H200 four warps for a norm of 2,560 columns took 0.043 ms (0.041 to float8), two 0.046 and 0.045
(benchmarks/results/2026-11-28-drawing-h200-kernels.json)."""

ELEMENTS_A_HEAD_WARP = 1024
"""8 heads of 128 channels a warp took 0.034 ms on an H200, with two warps 0.056."""

MOST_WARPS = 8
"""Of a program: for GELU of 10,240 columns to float8, 0.077 ms there, 0.079 with four."""


@triton.jit
def _store_row(rows_ptr, parts, scale, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
               QUANTISE: tl.constexpr, LARGEST_FLOAT8: tl.constexpr):  # fmt: skip
    """A row for the next product, in float8 over the row's scale if asked for."""
    for i in tl.static_range(PARTS):
        columns = i * PART + tl.arange(0, PART)
        x = parts[i]
        if QUANTISE:
            x = x * (1.0 / scale)
        tl.store(rows_ptr + columns, x.to(rows_ptr.dtype.element_ty), mask=columns < WIDTH)


@triton.jit
def _summed(x, gate, out, sum_ptr, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr):
    """`x + gate out`, rounded and stored."""
    parts = ()
    for i in tl.static_range(PARTS):
        columns = i * PART + tl.arange(0, PART)
        rounded = (x[i] + gate[i] * out[i]).to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + columns, rounded, mask=columns < WIDTH)
        parts = parts + (rounded.to(tl.float32),)  # noqa: RUF005
    return parts


@triton.jit
def _normed(x, shift, scale, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr, EPS: tl.constexpr):
    """`layer_norm(x) (1 + scale) + shift`."""
    apart = centred(x, WIDTH, PARTS, PART)
    inverse = tl.rsqrt(sum_of_products(apart, apart, PARTS) / WIDTH + EPS)
    parts = ()
    for i in tl.static_range(PARTS):
        parts = parts + (apart[i] * inverse * (1.0 + scale[i]) + shift[i],)  # noqa: RUF005
    return parts


@triton.jit(do_not_specialize=["tokens"])
def _residual_norm(x_ptr, gate_ptr, out_ptr, sum_ptr, shift_ptr, scale_ptr, rows_ptr, row_scale_ptr,
                   tokens, modulation_stride, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
                   EPS: tl.constexpr, GATED: tl.constexpr, NORM: tl.constexpr,
                   QUANTISE: tl.constexpr, LARGEST_FLOAT8: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """One token: `x + gate out`, rounded and stored, and of it `layer_norm(...) (1 + scale) + shift`."""
    row = tl.program_id(0).to(tl.int64)
    modulation = (row // tokens) * modulation_stride
    place = row * WIDTH
    x = load_row(x_ptr + place, WIDTH, PARTS, PART)
    if GATED:
        gate = load_row(gate_ptr + modulation, WIDTH, PARTS, PART)
        out = load_row(out_ptr + place, WIDTH, PARTS, PART)
        x = _summed(x, gate, out, sum_ptr + place, WIDTH, PARTS, PART)
    if NORM:
        shift = load_row(shift_ptr + modulation, WIDTH, PARTS, PART)
        scale = load_row(scale_ptr + modulation, WIDTH, PARTS, PART)
        x = _normed(x, shift, scale, WIDTH, PARTS, PART, EPS)
        row_scale = 1.0
        if QUANTISE:
            row_scale = scale_of(largest_of(x, PARTS), LARGEST_FLOAT8, LEAST)
            tl.store(row_scale_ptr + row, row_scale)
        _store_row(rows_ptr + place, x, row_scale, WIDTH, PARTS, PART, QUANTISE, LARGEST_FLOAT8)


@triton.jit
def _gelu_of(x):
    """`x Phi(x)` as `x / (1 + 2^(x p(x x)))`, as exact as `erf` is in float32: within 1e-7, and 2e-7 of a large x.

    p is of sixth degree, the one by which the whole errs least (6.6e-8 before rounding), found by linear programs from
    `log2(Phi(-x) / Phi(x)) / x`; squares beyond 30 count as 30, for there p turns. Instructions decide the time.
    """
    square = tl.minimum(x * x, 30.0)
    power = 3.86016145e-07 - 5.23387565e-09 * square
    power = power * square - 1.14667347e-05
    power = power * square + 0.00015948521
    power = power * square + 9.52951504e-05
    power = power * square - 0.104838194
    power = power * square - 2.30220735
    whole = 1.0 + tl.exp2(x * power)
    return x * tl.rsqrt(whole * whole)  # one instruction; a quotient would be five


@triton.jit
def _row(x_ptr, rows_ptr, row_scale_ptr, WIDTH: tl.constexpr, PARTS: tl.constexpr, PART: tl.constexpr,
         GELU: tl.constexpr, QUANTISE: tl.constexpr, LARGEST_FLOAT8: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """One row: its GELU, or that in float8, or itself in float8."""
    row = tl.program_id(0).to(tl.int64)
    x = load_row(x_ptr + row * WIDTH, WIDTH, PARTS, PART)
    if GELU:
        found = ()
        for i in tl.static_range(PARTS):
            found = found + (_gelu_of(x[i]),)  # noqa: RUF005
        x = found
    scale = 1.0
    if QUANTISE:
        scale = scale_of(largest_of(x, PARTS), LARGEST_FLOAT8, LEAST)
        tl.store(row_scale_ptr + row, scale)
    _store_row(rows_ptr + row * WIDTH, x, scale, WIDTH, PARTS, PART, QUANTISE, LARGEST_FLOAT8)


@triton.jit
def turned(x, angles_ptr, GROUP: tl.constexpr, K: tl.constexpr, BACK: tl.constexpr):
    """Each pair of channels of some heads (GROUP, K) turned by a token's angle, or back by it."""
    cos, sin = tl.split(tl.reshape(tl.load(angles_ptr + tl.arange(0, K)), [K // 2, 2]))
    if BACK:
        sin = -sin
    even, odd = tl.split(tl.reshape(x, [GROUP, K // 2, 2]))
    pairs = tl.join(even * cos[None] - odd * sin[None], even * sin[None] + odd * cos[None])
    return tl.reshape(pairs, [GROUP, K])


@triton.jit(do_not_specialize=["tokens"])
def _heads(x_ptr, weight_ptr, rotation_ptr, out_ptr, tokens, row_stride, scale, HEADS: tl.constexpr,
           K: tl.constexpr, EPS: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, ROTATE: tl.constexpr,
           QUANTISE: tl.constexpr, LARGEST_FLOAT8: tl.constexpr):  # fmt: skip
    """Some heads of one token: RMS norm, then each pair of channels turned by the token's angle; for float8 scaled."""
    row = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * GROUP + tl.arange(0, GROUP)
    channels = tl.arange(0, K)
    inside = (heads < HEADS)[:, None]
    place = heads[:, None] * K + channels[None]
    x = tl.load(x_ptr + row * row_stride + place, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        weight = tl.load(weight_ptr + channels).to(tl.float32)
        x = x * tl.rsqrt(tl.sum(x * x, axis=1)[:, None] / K + EPS) * weight[None]
    if ROTATE:
        x = turned(x, rotation_ptr + (row % tokens) * K, GROUP, K, False)
    if QUANTISE:
        x = tl.where(tl.abs(x) == float("inf"), float("nan"), clamped(x * scale, LARGEST_FLOAT8))
    tl.store(out_ptr + row * HEADS * K + place, x.to(out_ptr.dtype.element_ty), mask=inside)


def _norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, quantise: bool) -> Rows:
    return _launch_residual_norm(x.contiguous(), None, None, shift, scale, quantise)[1]


def _add_gated_norm_modulate(
    x: Tensor, gate: Tensor, out: Tensor, shift: Tensor, scale: Tensor, quantise: bool
) -> tuple[Tensor, Rows]:
    return _launch_residual_norm(x.contiguous(), gate, out.contiguous(), shift, scale, quantise)


def _add_gated(x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
    return _launch_residual_norm(x.contiguous(), gate, out.contiguous(), None, None, False)[0]


def _launch_residual_norm(
    x: Tensor,
    gate: Tensor | None,
    out: Tensor | None,
    shift: Tensor | None,
    scale: Tensor | None,
    quantise: bool,
) -> tuple[Tensor, Rows]:
    """The sum and its rows; without a gate the sum is `x` itself, without a shift the rows are the sum."""
    width = x.shape[-1]
    parts, part = parts_of(width)
    total = x if gate is None else torch.empty_like(x)
    rows: Rows = total if shift is None else _empty_rows(x, quantise)
    values, row_scale = _places(rows)
    modulation = [tensor for tensor in (gate, shift, scale) if tensor is not None]
    stride = modulation[0].stride(0)
    if any(m.stride() != (stride, 1) or m.dtype != torch.float32 for m in modulation):
        raise ValueError("Shifts, scales and gates must be float32 rows of one stride.")
    unused = modulation[0]
    tokens = x.shape[1]
    _residual_norm[(x.numel() // width,)](
        *(x, unused if gate is None else gate, x if out is None else out, total),
        *(unused if shift is None else shift, unused if scale is None else scale, values, row_scale),
        *(tokens, stride),
        WIDTH=width,
        PARTS=parts,
        PART=part,
        EPS=LAYER_NORM_EPS,
        GATED=gate is not None,
        NORM=shift is not None,
        QUANTISE=quantise,
        LARGEST_FLOAT8=LARGEST,
        LEAST=LEAST_SCALE,
        num_warps=warps_of(part),
    )
    return total, rows


def _gelu(x: Tensor, quantise: bool) -> Rows:
    return _launch_row(x, gelu=True, quantise=quantise)


def _quantise(x: Tensor) -> ScaledRows:
    rows = _launch_row(x, gelu=False, quantise=True)
    assert isinstance(rows, ScaledRows)
    return rows


def _launch_row(x: Tensor, *, gelu: bool, quantise: bool) -> Rows:
    x = x.contiguous()
    width = x.shape[-1]
    parts, part = parts_of(width)
    if not quantise and parts * part == width:  # nothing is shared along a row: each part is a row of its own
        width, parts = part, 1
    rows = _empty_rows(x, quantise)
    values, row_scale = _places(rows)
    _row[(x.numel() // width,)](
        *(x, values, row_scale),
        WIDTH=width,
        PARTS=parts,
        PART=part,
        GELU=gelu,
        QUANTISE=quantise,
        LARGEST_FLOAT8=LARGEST,
        LEAST=LEAST_SCALE,
        num_warps=warps_of(part),
    )
    return rows


def _norm_rotate(x: Tensor, weight: Tensor, rotation: Tensor | None) -> Tensor:
    if triton.next_power_of_2(x.shape[-1]) != x.shape[-1]:  # of no published network
        return EAGER.norm_rotate(x, weight, rotation)
    return _launch_heads(x, weight, rotation, None)


def heads_in_float8(x: Tensor, weight: Tensor | None, rotation: Tensor | None, scale: float) -> Tensor:
    """`norm_rotate` of (B, N, A, K), or where there is no weight `x` itself, times `scale` in float8.

    K a power of two. What is not finite becomes no number.
    """
    return _launch_heads(x, weight, rotation, scale)


def _launch_heads(x: Tensor, weight: Tensor | None, rotation: Tensor | None, scale: float | None) -> Tensor:
    B, N, A, K = x.shape
    together = x.stride()[2:] == (K, 1) and (B == 1 or x.stride(0) == N * x.stride(1))
    x = x if together else x.contiguous()
    out = torch.empty((B, N, A, K), dtype=x.dtype if scale is None else FLOAT8, device=x.device)
    group, warps = group_of(A, K)
    _heads[(B * N, triton.cdiv(A, group))](
        *(x, x if weight is None else weight, x if rotation is None else rotation, out),
        *(N, x.stride(1), 1.0 if scale is None else scale),
        HEADS=A,
        K=K,
        EPS=RMS_NORM_EPS,
        GROUP=group,
        NORM=weight is not None,
        ROTATE=rotation is not None,
        QUANTISE=scale is not None,
        LARGEST_FLOAT8=LARGEST,
        num_warps=warps,
    )
    return out


def _attend_text(
    query: Tensor, weight: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, quantise: bool
) -> Rows:
    if fits(key.shape[1], query.shape[-1]):
        return attend_text(query, weight, key, value, key_mask, quantise)
    out = attended(_norm_rotate(query, weight, None), key, value, key_mask)
    return _quantise(out) if quantise else out


def _empty_rows(x: Tensor, quantise: bool) -> Rows:
    if not quantise:
        return torch.empty_like(x)
    return ScaledRows(
        values=torch.empty_like(x, dtype=FLOAT8),
        scale=x.new_empty((*x.shape[:-1], 1), dtype=torch.float32),
        dtype=x.dtype,
    )


def _places(rows: Rows) -> tuple[Tensor, Tensor]:
    """Where rows and their scales are written; without scales, a place that is not written to."""
    return (rows.values, rows.scale) if isinstance(rows, ScaledRows) else (rows, rows)


def warps_of(part: int) -> int:
    """Of a program that takes rows in parts of so many columns."""
    return min(MOST_WARPS, max(1, part // ELEMENTS_A_WARP))


def group_of(heads: int, channels: int) -> tuple[int, int]:
    """How many heads of a token a program takes, a power of two, and its warps."""
    group = min(8, triton.next_power_of_2(heads))
    return group, max(1, group * channels // ELEMENTS_A_HEAD_WARP)


TRITON = Kernels(
    name="triton",
    norm_modulate=_norm_modulate,
    add_gated_norm_modulate=_add_gated_norm_modulate,
    add_gated=_add_gated,
    norm_rotate=_norm_rotate,
    gelu=_gelu,
    quantise=_quantise,
    attend_text=_attend_text,
)
