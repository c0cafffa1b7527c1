"""Attention from the visual tokens to the text in Triton: head norm, softmax product and rounding in one pass.

Queries are 32 times as many as keys, so what costs time is reading queries and writing results, and a library's kernel
does that between a pass for the norm and, in float8, one that quantises. A program keeps all keys and values of a head
and takes queries tile after tile. Sums are float32; normed queries and the weights of a sum are rounded to the dtype of
the keys, as libraries do. Importing this file needs Triton. No gradients.

Shapes: B batch, N query tokens, M key tokens, A heads of K channels.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from kandinsky5.model.precision import RMS_NORM_EPS
from kandinsky5.model.scaled import FLOAT8, LARGEST, LEAST_SCALE, ScaledRows
from kandinsky5.model.triton_numbers import clamped, largest_or_nan, scale_of

LENGTHS = 64, 128
"""Keys that a program of each of the two kernels keeps. Both are compiled when one is first asked for, so that neither
another prompt nor a mask compiles anything later: 1 to 2 s, measured with one for each power of two and for a mask
(benchmarks/results/2026-11-28-drawing-h200-sizes.json)."""

QUERIES, TILES = 64, 4
"""Of a tile; tiles of a program."""

WARPS, STAGES = 4, 1

_compiled: set[tuple[torch.device, torch.dtype, int, int, bool]] = set()


@triton.jit(do_not_specialize=["mask_ptr", "masked", "tokens", "keys"])
def _attend_text(query_ptr, weight_ptr, key_ptr, value_ptr, mask_ptr, largest_ptr, out_ptr, row_scale_ptr,
                 masked, tokens, keys, query_entry, query_row, key_entry, key_row, value_entry, value_row,
                 HEADS: tl.constexpr, K: tl.constexpr, EPS: tl.constexpr, EXPONENT: tl.constexpr,
                 QUERIES: tl.constexpr, TILES: tl.constexpr, KEYS: tl.constexpr, STAGES: tl.constexpr,
                 QUANTISE: tl.constexpr, LARGEST_FLOAT8: tl.constexpr, LEAST: tl.constexpr):  # fmt: skip
    """Some queries of one head of a batch entry; `EXPONENT` takes a product to the power of 2 of its weight.

    A mask is read where `masked` is not 0. In float8 all rows of an entry share a scale: no result is larger than the
    largest value that may be attended to.
    """
    head, entry = tl.program_id(0), tl.program_id(2).to(tl.int64)
    channels = tl.arange(0, K)[None]
    columns = tl.arange(0, KEYS)
    there = columns < keys
    read = columns < masked * keys
    there = there & (tl.load(mask_ptr + entry * keys + columns, mask=read, other=1) != 0)
    counted = there[:, None] & (channels < K)
    key_ptr += entry * key_entry + head * K
    value_ptr += entry * value_entry + head * K
    key = tl.load(key_ptr + columns[:, None] * key_row + channels, mask=counted, other=0.0)
    value = tl.load(value_ptr + columns[:, None] * value_row + channels, mask=counted, other=0.0)
    weight = tl.load(weight_ptr + channels).to(tl.float32)
    scale = 1.0
    if QUANTISE:
        each = tl.load(largest_ptr + entry * keys + columns, mask=there, other=0.0)
        scale = scale_of(tl.reduce(each, 0, largest_or_nan), LARGEST_FLOAT8, LEAST)
    begin = tl.program_id(1) * (QUERIES * TILES)
    for tile in tl.range(0, TILES, num_stages=STAGES):
        rows = begin + tile * QUERIES + tl.arange(0, QUERIES)
        inside = (rows[:, None] < tokens) & (channels < K)
        place = entry * query_entry + rows[:, None].to(tl.int64) * query_row + head * K + channels
        query = tl.load(query_ptr + place, mask=inside, other=0.0).to(tl.float32)
        query = query * tl.rsqrt(tl.sum(query * query, axis=1)[:, None] / K + EPS) * weight
        score = tl.dot(query.to(key.dtype), tl.trans(key), input_precision="ieee") * EXPONENT
        score = tl.where(there[None], score, -float("inf"))
        shares = tl.exp2(score - tl.max(score, axis=1)[:, None])
        found = tl.dot(shares.to(value.dtype), value, input_precision="ieee")
        found = found / tl.sum(shares, axis=1)[:, None]
        if QUANTISE:
            found = clamped(found * (1.0 / scale), LARGEST_FLOAT8)
            if head == 0:
                scales = tl.zeros([QUERIES], tl.float32) + scale
                tl.store(row_scale_ptr + entry * tokens + rows, scales, mask=rows < tokens)
        place = (entry * tokens + rows[:, None]) * (HEADS * K) + head * K + channels
        tl.store(out_ptr + place, found.to(out_ptr.dtype.element_ty), mask=inside)


def fits(keys: int, channels: int) -> bool:
    """Whether a program can keep so many keys: a prompt of usual length, heads of the published width."""
    return 0 < keys <= LENGTHS[-1] and 16 <= channels <= 128 and channels & (channels - 1) == 0


def attend_text(
    query: Tensor, weight: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None, quantise: bool
) -> Tensor | ScaledRows:
    """As `Kernels.attend_text`, of keys that fit."""
    B, N, A, K = query.shape
    M = key.shape[1]
    query, key, value = (x if x.stride()[2:] == (K, 1) else x.contiguous() for x in (query, key, value))
    out = torch.empty((B, N, A * K), dtype=FLOAT8 if quantise else query.dtype, device=query.device)
    scale = out.new_empty((B, N, 1), dtype=torch.float32) if quantise else None
    # (B, M), of the values that may count; which may, the kernel's mask says
    largest = torch.linalg.vector_norm(value, math.inf, (2, 3), dtype=torch.float32) if quantise else None
    queries = QUERIES // (query.element_size() // 2)  # of float32 a program holds half as much
    mask = out if key_mask is None else key_mask.contiguous()
    arguments = (
        *(query, weight, key, value, mask.view(torch.uint8)),
        *(query if largest is None else largest, out, query if scale is None else scale),
        *(int(key_mask is not None), N, M),
        *(query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1)),
    )
    constants = {
        "HEADS": A,
        "K": K,
        "EPS": RMS_NORM_EPS,
        "EXPONENT": math.log2(math.e) / math.sqrt(K),
        "QUERIES": queries,
        "TILES": TILES,
        "STAGES": STAGES,
        "QUANTISE": quantise,
        "LARGEST_FLOAT8": LARGEST,
        "LEAST": LEAST_SCALE,
        "num_warps": WARPS,
    }
    kind = query.device, query.dtype, A, K, quantise
    if kind not in _compiled:
        for length in LENGTHS:
            _attend_text.warmup(*arguments, grid=(1,), KEYS=length, **constants)
        _compiled.add(kind)
    length = next(length for length in LENGTHS if length >= M)
    _attend_text[(A, triton.cdiv(N, queries * TILES), B)](*arguments, KEYS=length, **constants)
    return out if scale is None else ScaledRows(values=out, scale=scale, dtype=query.dtype)
