"""How a source comes to a size, and whether the record of it is true."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kandinsky5.errors import RequestError
from kandinsky5.geometry import FIT_KINDS
from kandinsky5.pictures import fit_picture, halved

from ..pipelines.conftest import picture

SIDES = st.integers(16, 120)


def ramp(width: int, height: int) -> Image.Image:
    """Red is the column, green the row, blue always 200."""
    values = np.full((height, width, 3), 200, np.uint8)
    values[..., 0] = np.arange(width)[None]
    values[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(values)


@pytest.mark.parametrize("kind", FIT_KINDS)
def test_the_right_shape_is_only_scaled(kind):
    for scale in (1, 2):
        result, fit = fit_picture(picture(96 * scale, 64 * scale), (96, 64), kind)
        assert (fit.changes, fit.kept, fit.placed) == ("", (0, 0, 96 * scale, 64 * scale), (0, 0, 96, 64))
        assert result.size == (96, 64)
        if scale == 1:
            assert result.tobytes() == picture(96, 64).tobytes()


@pytest.mark.parametrize(("source", "kept", "words"), [
    ((200, 100), (50, 0, 150, 100), "100 of 200 columns cut off, left and right"),
    ((100, 200), (0, 50, 100, 150), "100 of 200 rows cut off, above and below"),
])  # fmt: skip
def test_cover_keeps_the_middle(source, kept, words):
    result, fit = fit_picture(ramp(*source), (64, 64))
    assert (fit.kind, fit.kept, fit.placed, fit.changes) == ("cover", kept, (0, 0, 64, 64), words)
    values = np.asarray(result).astype(int)
    assert abs(values[:, 0, 0].mean() - kept[0]) < 2 and abs(values[:, -1, 0].mean() - kept[2]) < 2
    assert abs(values[0, :, 1].mean() - kept[1]) < 2 and abs(values[-1, :, 1].mean() - kept[3]) < 2


@pytest.mark.parametrize(("source", "placed", "words"), [
    ((200, 100), (0, 16, 64, 48), "white added above and below"),
    ((100, 200), (16, 0, 48, 64), "white added left and right"),
])  # fmt: skip
def test_pad_shows_everything(source, placed, words):
    result, fit = fit_picture(ramp(*source), (64, 64), "pad")
    assert (fit.kept, fit.placed, fit.changes) == ((0, 0, *source), placed, words)
    values = np.asarray(result)
    inside = np.zeros((64, 64), bool)
    inside[placed[1] : placed[3], placed[0] : placed[2]] = True
    assert (values[~inside] == 255).all() and (values[inside][:, 2] == 200).all()


def test_stretch_shows_everything_out_of_proportion():
    result, fit = fit_picture(ramp(200, 100), (64, 64), "stretch")
    assert (fit.kept, fit.placed) == ((0, 0, 200, 100), (0, 0, 64, 64))
    assert fit.changes == "stretched to 0.50 times its proportions"
    values = np.asarray(result).astype(int)
    assert values[:, 0, 0].mean() < 4 and values[:, -1, 0].mean() > 195


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES, st.sampled_from(FIT_KINDS))
def test_the_record_is_true(width, height, to_width, to_height, kind):
    """Boxes lie within; what is seen and where it lies have one scale on both sides, up to whole pixels."""
    result, fit = fit_picture(ramp(width, height), (to_width, to_height), kind)
    assert result.size == fit.size == (to_width, to_height) and fit.source == (width, height)
    for box, size in ((fit.kept, fit.source), (fit.placed, fit.size)):
        assert 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]
    assert kind == "cover" or fit.kept == (0, 0, width, height)
    assert kind == "pad" or fit.placed == (0, 0, to_width, to_height)
    if kind != "stretch":
        kept_width, kept_height = fit.kept[2] - fit.kept[0], fit.kept[3] - fit.kept[1]
        across = (fit.placed[2] - fit.placed[0]) / kept_width
        down = (fit.placed[3] - fit.placed[1]) / kept_height
        slack = across * 2.1 / kept_width + down * 2.1 / kept_height + 1 / kept_width + 1 / kept_height
        assert abs(across - down) <= slack


def test_an_unknown_kind():
    with pytest.raises(RequestError, match="cover, pad, stretch"):
        fit_picture(picture(), (64, 64), "crop")  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "area", "expected"), [
    ((1024, 1024), 1024**2, (512, 512)), ((640, 1408), 1024**2, (320, 704)), ((256, 256), 1024**2, (128, 128)),
    ((2048, 2048), 1024**2, (512, 512)), ((2048, 1024), 1024**2, (724, 362)), ((16, 2048), 64**2, (2, 362)),
])  # fmt: skip
def test_the_vision_tower_is_shown_half(size, area, expected):
    shown = halved(Image.new("RGB", size), area)
    assert shown.size == expected
    assert shown.width * shown.height <= area / 4
    assert math.isclose(shown.width / shown.height, size[0] / size[1], rel_tol=0.5)
