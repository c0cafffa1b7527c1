"""Sizes: what can be run, what the weights were trained on, pixels to latents to patches.

In: widths and heights in pixels, or a text such as "1024x768". Out: the same numbers checked, or the nearest that work.
Pairs are always (width, height). Refuses to know: pictures, tensors, which checkpoint is loaded.
"""

import math
import re
from collections.abc import Sequence
from typing import Final, Literal, get_args

from kandinsky5.errors import RequestError

VAE_FACTOR: Final = 8
"""Pixels per latent position on each axis (the FLUX VAE; the embedded model's VAE is built to the same factor)."""

PATCH: Final = 2
"""Latent positions per token on each axis (`patch_size=(1, 2, 2)` of every published config)."""

SIZE_MULTIPLE: Final = VAE_FACTOR * PATCH
"""Pixels per token on each axis; both sides of a picture are multiples of this."""

POSITIONS_PER_AXIS: Final = 128
"""Rotary positions per spatial axis in the authors' network."""

LARGEST_SIDE: Final = POSITIONS_PER_AXIS * SIZE_MULTIPLE

NATIVE_SIZES: Final[tuple[tuple[int, int], ...]] = (
    (1024, 1024),
    (640, 1408),
    (1408, 640),
    (768, 1280),
    (1280, 768),
    (896, 1152),
    (1152, 896),
)
"""(width, height) pairs the published Image Lite checkpoints were trained on (authors' repository)."""

FitKind = Literal["cover", "pad", "stretch"]
"""How a picture of another shape comes to a size. cover: fill it and cut off what reaches beyond, the middle kept (the
authors). pad: show everything, white around it. stretch: both sides to the size, out of proportion (diffusers)."""

FIT_KINDS: Final[tuple[FitKind, ...]] = get_args(FitKind)

_SIZE_TEXT = re.compile(r"\s*(\d{1,9})\s*[xX×]\s*(\d{1,9})\s*", re.ASCII)


def check_size(
    width: int, height: int, *, multiple: int = SIZE_MULTIPLE, largest: int = LARGEST_SIDE
) -> None:
    """Refuse a size that cannot be run.

    `multiple` is the VAE's factor times the patch; `largest` is the longest side the network's positions reach.
    Raises RequestError naming the side, its value and the nearest that works.
    """
    _check_side("Width", width, multiple, largest)
    _check_side("Height", height, multiple, largest)


def nearest_native(
    width: int, height: int, sizes: Sequence[tuple[int, int]] = NATIVE_SIZES
) -> tuple[int, int]:
    """The one of `sizes` whose height / width is closest to that of (width, height), as the authors choose it.

    Raises RequestError unless both are positive.
    """
    if width <= 0 or height <= 0:
        raise RequestError(f"A picture of {width}x{height} has no shape; both sides must be positive.")
    aspect = height / width
    return min(sizes, key=lambda size: abs(size[1] / size[0] - aspect))


def same_shape(
    width: int, height: int, area: int, *, multiple: int = SIZE_MULTIPLE, largest: int = LARGEST_SIDE
) -> tuple[int, int]:
    """The size that can be run with about the proportions of (width, height) and about `area` pixels.

    Proportions come first: where the longer side would pass `largest`, both shrink.
    """
    scale = min(math.sqrt(area / (width * height)), largest / max(width, height))
    return (
        _nearest_side(round(width * scale), multiple, largest),
        _nearest_side(round(height * scale), multiple, largest),
    )


def side_for(other: int, source: tuple[int, int], axis: Literal["width", "height"]) -> int:
    """The side on `axis` that keeps the proportions of a source (width, height) when the other side is `other`.

    Raises RequestError for an `other` that cannot be run, or whose other side, rounded, cannot.
    """
    given = "height" if axis == "width" else "width"
    _check_side(given.capitalize(), other, SIZE_MULTIPLE, LARGEST_SIDE)
    width, height = source
    ratio = width / height if axis == "width" else height / width
    side = _rounded(round(other * ratio), SIZE_MULTIPLE)
    if not SIZE_MULTIPLE <= side <= LARGEST_SIDE:
        raise RequestError(
            f"{given.capitalize()} {other} gives a source of {width}x{height} the {axis} {round(other * ratio)}, which "
            f"is outside {SIZE_MULTIPLE} to {LARGEST_SIDE}; {_that_keeps(given, ratio)}, or give both sides."
        )
    return side


def _that_keeps(given: str, ratio: float) -> str:
    """Which side would do, in words, when the other one is `ratio` times as long."""
    if ratio > 1:
        extreme, side = "largest", int(LARGEST_SIDE / ratio) // SIZE_MULTIPLE * SIZE_MULTIPLE
    else:
        extreme, side = "smallest", math.ceil(1 / ratio) * SIZE_MULTIPLE
    if not SIZE_MULTIPLE <= side <= LARGEST_SIDE:
        return f"no {given} keeps its shape"
    return f"the {extreme} {given} that keeps its shape is {side}"


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) from a text such as "1024x768". Raises RequestError for anything else; bounds are not checked."""
    match = _SIZE_TEXT.fullmatch(text)
    if match is None:
        raise RequestError(f"Size {text!r} is not WIDTHxHEIGHT in pixels, such as 1024x768.")
    return int(match[1]), int(match[2])


def _check_side(name: str, side: int, multiple: int, largest: int) -> None:
    if isinstance(side, bool) or not isinstance(side, int):
        raise RequestError(f"{name} {side!r} is not a whole number of pixels.")
    if not multiple <= side <= largest:
        nearest = _nearest_side(side, multiple, largest)
        raise RequestError(
            f"{name} {side} is outside {multiple} to {largest}; the nearest that works: {nearest}."
        )
    if side % multiple:
        below = side - side % multiple
        near = [str(n) for n in (below, below + multiple) if multiple <= n <= largest]
        raise RequestError(
            f"{name} {side} is not a multiple of {multiple}; the nearest that is: {' or '.join(near)}."
        )


def _nearest_side(side: int, multiple: int, largest: int) -> int:
    highest = largest - largest % multiple
    return min(max(_rounded(side, multiple), multiple), highest)


def _rounded(side: int, multiple: int) -> int:
    return (side + multiple // 2) // multiple * multiple
