"""A file or a PIL image of any mode as an upright 8-bit RGB picture.

Comes in: a path, an open file, or a PIL image, perhaps not decoded yet. Goes out: a PIL image of mode "RGB", turned as
its EXIF data says, transparency laid over white. What is no picture, is cut short, or is made to fill the memory is a
RequestError. The file refuses to know arrays of callers, sizes of edits, and models.
"""

import hashlib
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
from PIL import Image, ImageOps

from kandinsky5.errors import RequestError

MAX_PIXELS: Final = 89_478_485
"""Where Pillow begins to suspect a decompression bomb: a quarter of a gigabyte as RGB."""

SMALLEST_SIDE: Final = 16
"""Pixels; one token of the network."""

LARGEST_ASPECT: Final = 16
"""Longer side over shorter side. The native sizes reach 2.2, phones' panoramas about 10."""

ROUNDING: Final = 1e-3
"""How far beyond 0 to 1 a float may be: less than half a level of 255, as arithmetic and resampling leave it."""

DEEP_MODES: Final = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Modes that Pillow's own conversion to RGB clips instead of scaling."""


FORMATS: Final = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""What is read of a file, where this Pillow can. Others have no pixels of their own, or start a program (EPS)."""


def read_picture(file: str | Path | BinaryIO) -> Image.Image:
    """The first picture in a file, decoded, upright, in RGB.

    Raises:
        RequestError: a file that is missing, no picture, cut short, or outside the bounds of `upright_rgb`.
    """
    name = str(file) if isinstance(file, str | Path) else getattr(file, "name", "The picture")
    with opened(file, name) as image:
        return upright_rgb(image, name)


def read_mask(file: str | Path | BinaryIO) -> Image.Image:
    """Where an edit may change its source: mode "L", upright, 255 where the file is transparent, 0 where it is opaque.

    Raises:
        RequestError: as `read_picture`, and for a picture that has no transparency.
    """
    name = "The mask"
    with opened(file, name) as image:
        check_shape(*image.size, name)
        image.load()
        upright = ImageOps.exif_transpose(image)
        if not upright.has_transparency_data:
            raise RequestError(
                f"{name} has no transparency; make transparent what may be changed, in a PNG or WebP."
            )
        return ImageOps.invert(_rgba(upright, name).getchannel("A"))


DAMAGED: Final = (
    *(ValueError, SyntaxError, TypeError, LookupError, EOFError, ArithmeticError, AttributeError),
    *(RuntimeError, struct.error, zlib.error),
)
"""What Pillow's plug-ins raise about damaged files, beside OSError; RuntimeError is what the AVIF decoder raises."""


@contextmanager
def opened(file: str | Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    """A file of one of `FORMATS`, not decoded yet; what goes wrong inside is a RequestError that says `name`."""
    with _refusals(name), warnings.catch_warnings():
        # Its size is judged by check_shape, in words; other remarks are of EXIF data that can be done without.
        warnings.simplefilter("ignore")
        with Image.open(file, formats=_readable()) as image:
            yield image


def _readable() -> list[str]:
    """Of `FORMATS` what this Pillow reads."""
    Image.init()
    return [known for known in FORMATS if known in Image.OPEN]


def upright_rgb(image: Image.Image, name: str = "The picture") -> Image.Image:
    """A PIL image of any mode as a new RGB one; the caller's is not changed.

    Greyscale of 16 bits is scaled to 8 (mode "I" is taken to hold 0 to 65535, "F" 0 to 1); CMYK is converted without
    its colour profile; transparency is laid over white. `name` is what a refusal calls the picture.

    Raises:
        RequestError: more than `MAX_PIXELS`, a side below `SMALLEST_SIDE`, an aspect beyond `LARGEST_ASPECT`, a mode
            that has no RGB, or data that cannot be decoded.
    """
    check_shape(
        *image.size, name
    )  # before anything is decoded; both bounds are the same after a quarter turn
    with _refusals(name):
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            return Image.alpha_composite(white, _rgba(upright, name)).convert("RGB")
        if upright.mode in DEEP_MODES:
            return Image.fromarray(eight_bits(_deep_array(upright), name)).convert("RGB")
        return upright.convert("RGB")


def check_shape(width: int, height: int, name: str = "The picture") -> None:
    """Refuse what no edit can be made of. Raises RequestError naming the size and what would work."""
    if min(width, height) < SMALLEST_SIDE:
        raise RequestError(f"{name} is {width}x{height}; both sides must be at least {SMALLEST_SIDE} pixels.")
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"{name} is {width}x{height}, {width * height / 1e6:.0f} megapixels; at most "
            f"{MAX_PIXELS / 1e6:.0f} are read. Make it smaller first."
        )
    if max(width, height) > LARGEST_ASPECT * min(width, height):
        raise RequestError(
            f"{name} is {width}x{height}; its longer side may be {LARGEST_ASPECT} times the shorter. Crop it first."
        )


def eight_bits(values: np.ndarray, name: str = "The picture") -> np.ndarray:
    """Values as uint8: uint8 as they are, uint16 over 257, floats from 0 to 1 times 255, rounded; of any byte order.

    Floats at most `ROUNDING` outside are clipped.

    Raises:
        RequestError: another dtype, or floats further outside 0 to 1 (NaN among them).
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.newbyteorder("=") == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind != "f":
        raise RequestError(
            f"{name} has values of type {values.dtype}; it must be uint8, uint16, or floats from 0 to 1."
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise RequestError(
            f"{name} has values from {low:.9g} to {high:.9g}; floats must be from 0 to 1 (if yours are from -1 to 1, "
            "pass image / 2 + 0.5)."
        )
    return np.rint(values.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def content_hash(image: Image.Image) -> str:
    """SHA-256 of an RGB picture's size and pixels, whatever file or array they came from, as hexadecimal digits."""
    digest = hashlib.sha256(f"{image.width}x{image.height} {image.mode} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _deep_array(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode != "I":
        return values
    if int(values.min()) < 0 or int(values.max()) > 65535:
        raise RequestError(
            f"The picture's whole numbers go from {values.min()} to {values.max()}; 16 bits hold 0 to 65535."
        )
    return values.astype(np.uint16)


def _rgba(image: Image.Image, name: str) -> Image.Image:
    """With plain alpha; Pillow takes "La" there by way of "LA" only, and greyscale of 16 bits not at all."""
    if image.mode in DEEP_MODES:
        values, clear = _deep_array(image), image.info.get("transparency")
        grey, opaque = eight_bits(values, name), np.full(values.shape, 255, np.uint8)
        if isinstance(clear, int):  # the one grey that is transparent
            opaque[values == clear] = 0
        return Image.merge("RGBA", [Image.fromarray(channel) for channel in (grey, grey, grey, opaque)])
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


@contextmanager
def _refusals(name: str) -> Iterator[None]:
    """What Pillow raises about a file or its data, in our words."""
    try:
        yield
    except RequestError:
        raise
    except Image.UnidentifiedImageError:
        formats = ", ".join(_readable())
        raise RequestError(f"{name} is not a picture that can be read; {formats} are.") from None
    except Image.DecompressionBombError as error:
        raise RequestError(f"{name} is far too large to be read: {error}.") from error
    except AssertionError as error:  # Pillow's, of an image whose `with` block has ended
        raise RequestError(
            f"{name} cannot be read: its file was closed too early (image.load() reads pixels before), or is damaged."
        ) from error
    except OSError as error:
        raise RequestError(f"{name} cannot be read: {error.strerror or error}.") from error
    except DAMAGED as error:
        raise RequestError(f"{name} cannot be read: {error or type(error).__name__}.") from error
