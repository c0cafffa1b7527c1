"""Where an edit may change its source, at the size of the result.

In: a mask as large as the source, and how the source was fitted. Out: a mask as large as the result, in which a pixel
may change as much as the least of the mask's pixels that it covers: what is protected stays so, also in part of a
pixel. Refuses to know: where masks come from, what is done with them.
"""

from typing import Final

import numpy as np
from PIL import Image

from kandinsky5.pictures import Fit

HAIR: Final = 1e-6
"""Of a pixel; what is covered by less than that is covered by rounding."""

OPEN: Final = 255
"""What may change altogether; also where `fit="pad"` has put white around the source."""


def fitted_mask(mask: Image.Image, fit: Fit) -> Image.Image:
    """The mask, of mode "L" and 0 where nothing may change, fitted as its source was."""
    left, top, right, bottom = fit.placed
    stride = (fit.source[0] / (right - left), fit.source[1] / (bottom - top))
    if fit.kind == "cover":
        stride = (min(stride), min(stride))
    across = _covered(fit.source[0], right - left, stride[0])
    down = _covered(fit.source[1], bottom - top, stride[1])
    result = np.full(fit.size[::-1], OPEN, np.uint8)
    result[top:bottom, left:right] = _least(_least(np.asarray(mask), down, 0), across, 1)
    return Image.fromarray(result)


def _covered(source: int, size: int, stride: float) -> np.ndarray:
    """(2 size,) whole pixels of the source: the first that each of the result covers, and the one after the last.

    The result sees the middle of the source, `stride` of its pixels in each of its own.
    """
    edges = (source - size * stride) / 2 + stride * np.arange(size + 1)
    first = np.floor(edges[:-1] + HAIR).clip(0, source - 1)
    end = np.ceil(edges[1:] - HAIR).clip(1, source)
    return np.stack([first, end], axis=1).astype(np.intp).ravel()


def _least(values: np.ndarray, covered: np.ndarray, axis: int) -> np.ndarray:
    """The least of the values that each pixel covers along an axis."""
    padded = np.concatenate([values, np.take(values, [-1], axis)], axis)  # an end may be one after the last
    pairs = np.minimum.reduceat(
        padded, covered, axis
    )  # also from each end to the next first, which nobody wants
    return np.take(pairs, range(0, len(covered), 2), axis)
