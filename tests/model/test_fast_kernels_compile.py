"""The Triton kernels compile for the cards they are meant for, at the published widths; no card is needed for it."""

import os

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from kandinsky5.model import triton_kernels  # noqa: E402

WIDTH, FF_WIDTH, HEADS, K = 2560, 10240, 20, 128
CARDS = {"ampere": 80, "hopper": 90}
FLOAT8 = {"LARGEST_FLOAT8": 448.0, "LEAST": 1e-12}


def cases(out):
    """Name -> (kernel, types of its pointers and numbers, constants, warps)"""
    norm = {
        "x_ptr": "*bf16",
        "gate_ptr": "*fp32",
        "out_ptr": "*bf16",
        "sum_ptr": "*bf16",
        "shift_ptr": "*fp32",
    }
    norm |= {"scale_ptr": "*fp32", "rows_ptr": out, "row_scale_ptr": "*fp32", "tokens": "i32"}
    norm |= {"modulation_stride": "i32"}
    sizes = {"WIDTH": WIDTH, "BLOCK": 4096, "EPS": 1e-5, **FLOAT8}
    row = {"x_ptr": "*bf16", "rows_ptr": out, "row_scale_ptr": "*fp32"}
    heads = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "rotation_ptr": "*fp32", "out_ptr": "*bf16"}
    heads |= {"tokens": "i32", "row_stride": "i32"}
    head_sizes = {"HEADS": HEADS, "K": K, "EPS": 1e-7, "GROUP": 8}
    quantise = out != "*bf16"
    for gated, normed in ((True, True), (False, True), (True, False)):
        flags = {"GATED": gated, "NORM": normed, "QUANTISE": quantise}
        yield triton_kernels._residual_norm, norm, sizes | flags, 8
    for gelu in (True, False):
        constants = {"WIDTH": FF_WIDTH, "BLOCK": 16384, "GELU": gelu, "QUANTISE": quantise, **FLOAT8}
        yield triton_kernels._row, row, constants, 16
    for rotated in (True, False):
        yield triton_kernels._heads, heads, head_sizes | {"ROTATE": rotated}, 2


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("out", ["*bf16", "*fp8e4nv"])
def test_kernels_compile_without_spilling(card, out):
    if card == "ampere" and out != "*bf16":
        pytest.skip("no float8 before Hopper")
    target = GPUTarget("cuda", CARDS[card], 32)
    for kernel, types, constants, warps in cases(out):
        signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
        source = ASTSource(
            kernel, signature, constexprs={(kernel.arg_names.index(k),): v for k, v in constants.items()}
        )
        made = triton.compile(source, target=target, options={"num_warps": warps})
        assert "ld.global" in made.asm["ptx"]
        assert not made.metadata.global_scratch_size, f"{kernel.fn.__name__} spills"
