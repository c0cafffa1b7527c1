"""The autoencoder's kernels compile for the cards they are meant for, at the published widths; no card is needed."""

import os

import pytest

triton = pytest.importorskip("triton")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("the interpreter compiles nothing", allow_module_level=True)

from kandinsky5.autoencoder import triton_norm, triton_softmax  # noqa: E402

from ..cubins import CARDS, bytes_on_the_stack, compiled  # noqa: E402

GROUPS = 32


def norms(channels):
    """(kernel, types of its pointers and numbers, constants, warps)"""
    size = channels // GROUPS
    tile = {"C": channels, "COLUMNS": channels, "ROWS": triton_norm.ELEMENTS // channels}
    partial = {"mean_ptr": "*fp32", "deviations_ptr": "*fp32"}
    whole = {"group_mean_ptr": "*fp32", "inverse_ptr": "*fp32"}
    counts = {"pixels": "i32", "runs": "i32"}
    measured = tile | {"TILES": triton_norm.TILES_MEASURED}
    yield triton_norm._measure, {"x_ptr": "*bf16"} | partial | counts, measured, triton_norm.WARPS
    rows = {"ROWS": triton_norm.ELEMENTS_JOINED // size, "PIXELS": tile["ROWS"] * triton_norm.TILES_MEASURED}
    joined = {"C": channels, "SIZE": size, "COLUMNS": size, "EPS": 1e-6} | rows
    yield triton_norm._join, partial | whole | counts, joined, triton_norm.WARPS_JOINING
    types = dict.fromkeys(("x_ptr", "out_ptr", "weight_ptr", "bias_ptr"), "*bf16") | whole
    for silu in (True, False):
        constants = tile | {"SIZE": size, "TILES": triton_norm.TILES_NORMED, "SILU": silu}
        yield triton_norm._norm, types | {"pixels": "i32"}, constants, triton_norm.WARPS


def softmax():
    types = {"scores_ptr": "*fp32", "weights_ptr": "*bf16", "width": "i32", "scale": "fp32"}
    yield triton_softmax._softmax, types, {"COLUMNS": triton_softmax.COLUMNS}, triton_softmax.WARPS


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("channels", [128, 512])
def test_norms_compile_without_spilling(card, channels, tmp_path):
    check(norms(channels), card, tmp_path)


@pytest.mark.parametrize("card", CARDS)
def test_softmax_compiles_without_spilling(card, tmp_path):
    check(softmax(), card, tmp_path)


def check(cases, card, folder):
    for kernel, types, constants, warps in cases:
        made = compiled(kernel, types, constants, warps=warps, card=card, divisible=("width",))
        assert "ld.global.v4" in made.asm["ptx"], "16 bytes at a time"
        assert bytes_on_the_stack(made.asm["cubin"], folder) == 0, f"{kernel.fn.__name__} spills"
