"""What no way of drawing can beat on a device, and the fused stretches one by one.

Comes in: a `Bench`. Goes out: rows of operations and bytes a second. Refuses to know: whole networks.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from drawing.bench import Bench, often
from drawing.ledger import Row
from kandinsky5.model.kernels import EAGER, Kernels, kernels_for
from kandinsky5.model.scaled import ScaledLinear, quantise_rows, why_no_float8_products


def ceilings(bench: Bench) -> Iterator[Row]:
    """Products at the network's shapes, attention and a copy."""
    config, device, dtype = bench.network.config, bench.device, bench.dtype
    D, ff, K = config.model_dim, config.ff_dim, sum(config.axes_dims)
    M = 2 * bench.scene().tokens
    for rows in (M // 2, M):
        for width, out in ((D, D), (D, 3 * D), (D, ff), (ff, D)):
            x, w = (torch.randn(shape, device=device, dtype=dtype) for shape in ((rows, width), (out, width)))
            work = 2 * rows * width * out / 1e12
            seconds = often(partial(F.linear, x, w), bench)
            yield {"what": f"product {rows}x{width}x{out} {dtype}", "teraflops": work / seconds}
            if why_no_float8_products(device, dtype) is None:
                scaled, quantised = ScaledLinear.of(_linear(w)), quantise_rows(x, dtype)
                seconds = often(partial(scaled.multiply, quantised), bench)
                yield {"what": f"product {rows}x{width}x{out} float8", "teraflops": work / seconds}
    heads, N = D // K, M // 2
    backends = [SDPBackend.MATH]
    if device.type == "cuda":
        backends = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    for batch in (1, 2):
        q, k, v = (
            torch.randn(batch, N, heads, K, device=device, dtype=dtype).transpose(1, 2) for _ in range(3)
        )
        for backend in backends:
            with sdpa_kernel(backend):
                seconds = often(partial(F.scaled_dot_product_attention, q, k, v), bench)
            work = 4 * batch * N * N * D / 1e12
            yield {"what": f"attention {backend.name} batch {batch}", "teraflops": work / seconds}
    source = torch.randn(2**20 if bench.tiny else 2**30, device=device)
    target = torch.empty_like(source)
    yield {
        "what": "copy",
        "tb_a_second": 2 * source.nbytes / often(partial(target.copy_, source), bench) / 1e12,
    }


def pieces(bench: Bench) -> Iterator[Row]:
    """Each stretch at the shapes of a guided step: milliseconds, and bytes that must move over time."""
    config, device = bench.network.config, bench.device
    scene = bench.scene()
    shape = (2, scene.tokens, config.model_dim)
    x, out = (torch.randn(shape, device=device, dtype=bench.dtype) for _ in range(2))
    hidden = torch.randn(2, scene.tokens, config.ff_dim, device=device, dtype=bench.dtype)
    shift, scale, gate = torch.randn(2, 9, config.model_dim, device=device).unbind(1)[:3]
    K = sum(config.axes_dims)
    packed = torch.randn(2, scene.tokens, 3 * config.model_dim, device=device, dtype=bench.dtype)
    query = packed.chunk(3, dim=-1)[0].unflatten(-1, (-1, K))
    weight = torch.randn(K, device=device, dtype=bench.dtype)
    rotation = torch.randn(scene.tokens, K // 2, 2, device=device)
    queries = x.unflatten(-1, (-1, K))
    key, value = torch.randn(2, 2, bench.tokens, *queries.shape[2:], device=device, dtype=bench.dtype)
    size = x.nbytes
    for quantise in (False, True):
        written = size // 2 if quantise else size
        hidden_written = hidden.nbytes // 2 if quantise else hidden.nbytes
        cases: list[tuple[str, float, Callable[[Kernels], Any]]] = [
            (
                "norm_modulate",
                size + written,
                lambda k, q=quantise: k.norm_modulate(x, shift, scale, q),
            ),
            (
                "add_gated_norm_modulate",
                3 * size + written,
                lambda k, q=quantise: k.add_gated_norm_modulate(x, gate, out, shift, scale, q),
            ),
            ("gelu", hidden.nbytes + hidden_written, lambda k, q=quantise: k.gelu(hidden, q)),
            (
                "attend_text",
                size + written,
                lambda k, q=quantise: k.attend_text(queries, weight, key, value, None, q),
            ),
        ]
        if quantise:
            cases.append(("quantise", size + written, lambda k: k.quantise(x)))
        else:
            cases.append(("norm_rotate", 2 * size, lambda k: k.norm_rotate(query, weight, rotation)))
            cases.append(("add_gated", 3 * size, lambda k: k.add_gated(x, gate, out)))
        for name, moved, call in cases:
            row: dict[str, Any] = {"piece": name, "float8": quantise}
            for kernels in {k.name: k for k in (EAGER, kernels_for(device, float8=quantise))}.values():
                seconds = often(partial(call, kernels), bench)
                row |= {f"{kernels.name}_ms": 1000 * seconds}
                row |= {f"{kernels.name}_tb_a_second": moved / seconds / 1e12}
            yield row
    if kernels_for(device, float8=True).name == "triton":
        yield from _shapes_of_programs(hidden, x, shift, scale, gate, out, bench)


def _shapes_of_programs(
    hidden: Tensor, x: Tensor, shift: Tensor, scale: Tensor, gate: Tensor, out: Tensor, bench: Bench
) -> Iterator[Row]:
    """The two heaviest kernels by columns a warp: what is chosen is to be the fastest."""
    from kandinsky5.model import triton_kernels

    kernels, chosen = triton_kernels.TRITON, triton_kernels.ELEMENTS_A_WARP
    norm = partial(kernels.add_gated_norm_modulate, x, gate, out, shift, scale)
    for elements in (64, 128, 256, 512):
        triton_kernels.ELEMENTS_A_WARP = elements
        yield {
            "elements_a_warp": elements,
            "chosen": elements == chosen,
            "norm_ms": 1000 * often(partial(norm, False), bench),
            "norm_float8_ms": 1000 * often(partial(norm, True), bench),
            "gelu_float8_ms": 1000 * often(partial(kernels.gelu, hidden, True), bench),
        }
    triton_kernels.ELEMENTS_A_WARP = chosen


def _linear(weight: Tensor) -> torch.nn.Linear:
    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    return layer
