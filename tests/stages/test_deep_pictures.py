"""Sixteen bits and floats: byte orders, a transparent grey, and values a hair outside of what they may be."""

import io

import numpy as np
import pytest
from PIL import Image

from kandinsky5.errors import RequestError
from kandinsky5.pictures import read_mask, read_picture
from kandinsky5.pictures.arrays import as_pictures

from ..pipelines.conftest import picture
from .test_pictures import grey


@pytest.mark.parametrize("orientation", [1, 6])
def test_sixteen_bits_of_the_other_byte_order(orientation):
    """A TIFF that begins with "MM", which Pillow opens as mode "I;16B"; upright, and turned by its EXIF data."""
    stands = grey()
    turned = np.rot90(stands) if orientation == 6 else stands
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = io.BytesIO()
    Image.frombytes("I;16B", turned.shape[::-1], (turned.astype(">u2") * 257).tobytes()).save(
        stored, "TIFF", exif=exif
    )
    assert Image.open(stored).mode == "I;16B"
    stored.seek(0)
    assert np.array_equal(np.asarray(read_picture(stored))[..., 0], stands)


def test_sixteen_bits_with_a_transparent_grey():
    """One grey level of a PNG is transparent (tRNS): white in the picture, and what its mask lets change."""
    eight = grey()
    deep = eight.astype(np.uint16) * 257
    level = int(deep[3, 5])
    stored = io.BytesIO()
    Image.fromarray(deep).save(stored, "PNG", transparency=level)
    expected = np.where(deep == level, 255, eight)
    assert 0 < (expected != eight).sum() < eight.size / 2
    stored.seek(0)
    assert np.array_equal(np.asarray(read_picture(stored)), np.dstack([expected] * 3))
    stored.seek(0)
    assert np.array_equal(np.asarray(read_mask(stored)), np.where(deep == level, 255, 0))


@pytest.mark.parametrize("dtype", [">u2", "<u2", ">f4", "<f8"])
def test_any_byte_order(dtype):
    scale = 257 if "u" in dtype else 1 / 255
    values = (np.asarray(picture(40, 30), np.float64) * scale).astype(dtype)
    assert np.array_equal(np.asarray(as_pictures(values)[0]), np.asarray(picture(40, 30)))


def test_a_hair_outside_is_rounding():
    values = np.asarray(picture(40, 30)) / 255
    values[0, 0], values[0, 1] = 1 + 1e-7, -9e-4
    found = np.asarray(as_pictures(values)[0])
    assert found[0, 0].tolist() == [255] * 3 and found[0, 1].tolist() == [0] * 3
    assert np.array_equal(found[1:], np.asarray(picture(40, 30))[1:])
    values[0, 0] = 1.0010001
    with pytest.raises(RequestError, match=r"values from -0.0009 to 1.0010001; floats must be"):
        as_pictures(values)
