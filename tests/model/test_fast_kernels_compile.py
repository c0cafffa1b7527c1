"""The Triton kernels compile for the cards they are meant for, at the published widths; no card is needed for it."""

import os
import re

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from kandinsky5.model import triton_attention, triton_gradients, triton_kernels  # noqa: E402

from ..cubins import CARDS, bytes_on_the_stack, compiled  # noqa: E402

WIDTH, FF_WIDTH, HEADS, K = 2560, 10240, 20, 128
FLOAT8 = {"LARGEST_FLOAT8": 448.0, "LEAST": 1e-12}


def warps(count):
    return {"warps": count}


def cases(out):
    """(kernel, types of its pointers and numbers, constants, options)"""
    norm = {
        "x_ptr": "*bf16",
        "gate_ptr": "*fp32",
        "out_ptr": "*bf16",
        "sum_ptr": "*bf16",
        "shift_ptr": "*fp32",
    }
    norm |= {"scale_ptr": "*fp32", "rows_ptr": out, "row_scale_ptr": "*fp32", "tokens": "i32"}
    norm |= {"modulation_stride": "i32"}
    sizes = {
        "WIDTH": WIDTH,
        "PARTS": 5,
        "PART": 512,
        "EPS": 1e-5,
        **FLOAT8,
    }
    row = {"x_ptr": "*bf16", "rows_ptr": out, "row_scale_ptr": "*fp32"}
    heads = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "rotation_ptr": "*fp32", "out_ptr": "*bf16"}
    heads |= {"tokens": "i32", "row_stride": "i32"}
    head_sizes = {"HEADS": HEADS, "K": K, "EPS": 1e-7, "GROUP": 8}
    quantise = out != "*bf16"
    for gated, normed in ((True, True), (False, True), (True, False)):
        flags = {"GATED": gated, "NORM": normed, "QUANTISE": quantise}
        yield triton_kernels._residual_norm, norm, sizes | flags, warps(triton_kernels.warps_of(512))
    # In float8 whole rows, else parts of them.
    for gelu, width, part in (
        ((True, FF_WIDTH, 2048), (False, WIDTH, 512)) if quantise else ((True, 2048, 2048),)
    ):
        constants = {"WIDTH": width, "PARTS": width // part, "PART": part, "GELU": gelu, **FLOAT8}
        yield (
            triton_kernels._row,
            row,
            constants | {"QUANTISE": quantise},
            warps(triton_kernels.warps_of(part)),
        )
    for rotated in (True, False):
        yield (
            triton_kernels._heads,
            heads,
            head_sizes | {"ROTATE": rotated},
            warps(triton_kernels.group_of(HEADS, K)[1]),
        )
    yield from attention_cases(out)
    if not quantise:
        yield from backward_cases(sizes, head_sizes)


def attention_cases(out):
    """Of bfloat16."""
    names = ("query_ptr", "weight_ptr", "key_ptr", "value_ptr")
    types = dict.fromkeys(names, "*bf16") | {"mask_ptr": "*u8", "largest_ptr": "*fp32", "out_ptr": out}
    types |= {"row_scale_ptr": "*fp32", "masked": "i32", "tokens": "i32", "keys": "i32"}
    strides = (f"{name}_{of}" for name in ("query", "key", "value") for of in ("entry", "row"))
    types |= dict.fromkeys(strides, "i32")
    constants = {
        "HEADS": HEADS,
        "K": K,
        "EPS": 1e-7,
        "EXPONENT": 0.1275,
        "QUANTISE": out != "*bf16",
        **FLOAT8,
    }
    constants |= {name: getattr(triton_attention, name) for name in ("QUERIES", "TILES", "STAGES")}
    for length in triton_attention.LENGTHS:
        options = warps(triton_attention.WARPS)
        yield triton_attention._attend_text, types, constants | {"KEYS": length}, options


def backward_cases(sizes, head_sizes):
    rows = ("x_ptr", "rows_grad_ptr", "sum_grad_ptr", "x_grad_ptr", "out_grad_ptr")
    norm = dict.fromkeys(rows, "*bf16") | {"gate_ptr": "*fp32", "scale_ptr": "*fp32"}
    norm |= {"tokens": "i32", "modulation_stride": "i32"}
    constants = {name: sizes[name] for name in ("WIDTH", "PARTS", "PART", "EPS")}
    for gated in (True, False):
        kernel = triton_gradients._norm_backward
        yield kernel, norm, constants | {"GATED": gated}, warps(triton_kernels.warps_of(512))
    heads = dict.fromkeys(("x_ptr", "weight_ptr", "grad_ptr", "x_grad_ptr"), "*bf16")
    heads |= {"rotation_ptr": "*fp32", "tokens": "i32"}
    for rotated in (True, False):
        yield (
            triton_gradients._heads_backward,
            heads,
            head_sizes | {"ROTATE": rotated},
            warps(triton_kernels.group_of(HEADS, K)[1]),
        )


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("out", ["*bf16", "*fp8e4nv"])
def test_kernels_compile_without_spilling(card, out, tmp_path):
    if card == "ampere" and out != "*bf16":
        pytest.skip("no float8 before Hopper")
    for kernel, types, constants, options in cases(out):
        strides = [name for name in types if name.endswith(("stride", "_entry", "_row"))]
        made = compiled(kernel, types, constants, card=card, divisible=strides, **options)
        assert re.search(r"ld\.global\.v[24]", made.asm["ptx"]), "8 bytes at a time or more"
        assert bytes_on_the_stack(made.asm["cubin"], tmp_path) == 0, f"{kernel.fn.__name__} spills"
