"""A source picture brought to the size of its edit, with a record of what that did to it.

Comes in: an RGB picture and a size. Goes out: the picture at that size, and a `Fit`. Nothing is cut off, added or
distorted without the record saying so. The file refuses to know where sizes come from.
"""

import math
from dataclasses import dataclass
from typing import Final

from PIL import Image

from kandinsky5.errors import RequestError
from kandinsky5.geometry import FIT_KINDS, FitKind

_BILINEAR, _LANCZOS = Image.Resampling.BILINEAR, Image.Resampling.LANCZOS
_FILTERS: Final = {"cover": _BILINEAR, "pad": _BILINEAR, "stretch": _LANCZOS}
"""Of the authors' code, and of diffusers'."""

Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How a source came to the size of its edit.

    kind: one of `FIT_KINDS`.
    source, size: (width, height) before and after.
    kept: (left, top, right, bottom) of the source that is seen, to whole pixels of the source.
    placed: (left, top, right, bottom) of the result that it fills.
    """

    kind: FitKind
    source: tuple[int, int]
    size: tuple[int, int]
    kept: Box
    placed: Box

    @property
    def changes(self) -> str:
        """What is not as it was, for a person: what was cut off, added or distorted; empty if only the scale was."""
        width, height = self.source
        left, top, right, bottom = self.kept
        if cut := left + width - right:
            return f"{cut} of {width} columns cut off, left and right"
        if cut := top + height - bottom:
            return f"{cut} of {height} rows cut off, above and below"
        if self.placed != (0, 0, *self.size):
            side = "left and right" if self.placed[0] or self.placed[2] < self.size[0] else "above and below"
            return f"white added {side}"
        across, down = self.size[0] / width, self.size[1] / height
        if self.kind == "stretch" and abs(across / down - 1) > 0.005:
            return f"stretched to {across / down:.2f} times its proportions"
        return ""


def fit_picture(
    picture: Image.Image, size: tuple[int, int], kind: FitKind = "cover"
) -> tuple[Image.Image, Fit]:
    """The picture at `size` (width, height), and how it got there. Raises RequestError for an unknown kind."""
    if kind not in FIT_KINDS:
        raise RequestError(f"fit={kind!r} is not one of {', '.join(FIT_KINDS)}.")
    whole: Box = (0, 0, *picture.size)
    if kind == "pad":
        placed = _middle(size, _scaled(picture.size, min(_scales(picture.size, size))))
        inner = picture.resize((placed[2] - placed[0], placed[3] - placed[1]), _FILTERS[kind])
        result = Image.new("RGB", size, "white")
        result.paste(inner, placed[:2])
        return result, Fit(kind=kind, source=picture.size, size=size, kept=whole, placed=placed)
    box = _seen(picture.size, size) if kind == "cover" else whole
    left, top, right, bottom = box
    kept = (math.floor(left + 0.5), math.floor(top + 0.5), math.ceil(right - 0.5), math.ceil(bottom - 0.5))
    fit = Fit(kind=kind, source=picture.size, size=size, kept=kept, placed=(0, 0, *size))
    return picture.resize(size, _FILTERS[kind], box=box), fit


def halved(picture: Image.Image, native_area: int) -> Image.Image:
    """What the vision tower is shown: half the picture's sides, or half of those it would have at the native area."""
    scale = min(1.0, math.sqrt(native_area / (picture.width * picture.height))) / 2
    return picture.resize(
        (max(1, int(picture.width * scale)), max(1, int(picture.height * scale))), _BILINEAR
    )


def _scales(source: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    return size[0] / source[0], size[1] / source[1]


def _scaled(source: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(source[0] * scale)), max(1, round(source[1] * scale))


def _middle(size: tuple[int, int], inner: tuple[int, int]) -> Box:
    left, top = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    return left, top, left + inner[0], top + inner[1]


def _seen(source: tuple[int, int], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The middle of the source in the size's proportions."""
    scale = max(_scales(source, size))
    width, height = min(source[0], size[0] / scale), min(source[1], size[1] / scale)
    left, top = (source[0] - width) / 2, (source[1] - height) / 2
    return left, top, left + width, top + height
