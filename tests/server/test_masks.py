"""What a mask protects keeps the fitted source's pixels, at every size and in every way to come there."""

import math
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from kandinsky5.geometry import FitKind
from kandinsky5.pictures import fit_picture
from kandinsky5.server.masks import fitted_mask
from kandinsky5.server.uploads import Upload, keep_outside
from tests.pipelines.conftest import picture


def left_half_open(side: int) -> Image.Image:
    mask = np.zeros((side, side), np.uint8)
    mask[:, : side // 2] = 255
    return Image.fromarray(mask)


@pytest.mark.parametrize(
    ("side", "size"), [(512, 256), (128, 256), (512, 192), (256, 256), (96, 80), (130, 64)]
)
def test_protected_pixels_are_the_fitted_sources(side: int, size: int) -> None:
    source, edited = picture(side, side, seed=1), Image.new("RGB", (size, size), (255, 0, 255))
    upload = Upload(picture=source, source="", mask=left_half_open(side))
    kept = np.asarray(keep_outside(edited, upload, "cover"))
    fitted = np.asarray(fit_picture(source, (size, size))[0])
    edge = (side // 2) * size // side  # of the pixels that lie in the open half altogether
    assert np.array_equal(kept[:, edge:], fitted[:, edge:])
    assert np.array_equal(kept[:, :edge], np.asarray(edited)[:, :edge])


@pytest.mark.parametrize("kind", ["cover", "pad", "stretch"])
@pytest.mark.parametrize(
    "sizes", [((50, 37), (32, 48)), ((33, 64), (80, 48)), ((64, 32), (16, 16)), ((48, 48), (48, 48))]
)
def test_a_pixel_may_change_as_much_as_the_least_that_it_covers(kind: FitKind, sizes: tuple) -> None:
    """Against every pixel's own box in exact fractions."""
    source, size = sizes
    values = np.random.default_rng(0).choice([0, 90, 255, 255, 255], size=source[::-1]).astype(np.uint8)
    _, fit = fit_picture(Image.new("RGB", source), size, kind)
    found = np.asarray(fitted_mask(Image.fromarray(values), fit))
    left, top, right, bottom = fit.placed
    width, height = right - left, bottom - top
    strides = [Fraction(source[0], width), Fraction(source[1], height)]
    strides = [min(strides)] * 2 if kind == "cover" else strides
    starts = [(source[i] - (width, height)[i] * strides[i]) / 2 for i in (0, 1)]
    wanted = np.full(size[::-1], 255, np.uint8)
    for y in range(height):
        rows = slice(math.floor(starts[1] + y * strides[1]), math.ceil(starts[1] + (y + 1) * strides[1]))
        for x in range(width):
            columns = slice(
                math.floor(starts[0] + x * strides[0]), math.ceil(starts[0] + (x + 1) * strides[0])
            )
            wanted[top + y, left + x] = values[rows, columns].min()
    assert np.array_equal(found, wanted)
