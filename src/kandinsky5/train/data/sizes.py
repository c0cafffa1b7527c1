"""Which size a picture is learnt at.

In: a picture's width and height, and the sizes there are. Out: one of them, or why none will do. Shapes are compared by
the logarithm of their proportions, so that a wide and a tall picture are treated alike.
"""

import math
from collections.abc import Sequence

from kandinsky5.geometry import FitKind, parse_size
from kandinsky5.train.settings import NATIVE

Size = tuple[int, int]


def sizes_of(names: Sequence[str], native: Sequence[Size]) -> list[Size]:
    """(width, height) of every size that is named; "native" stands for the checkpoint's."""
    found: list[Size] = []
    for name in names:
        found += native if name == NATIVE else [parse_size(name)]
    return list(dict.fromkeys(found))


def nearest_size(width: int, height: int, sizes: Sequence[Size]) -> Size:
    """The one nearest in proportions; of several alike the largest that the picture fills, else the smallest."""
    aspect = math.log(width / height)

    def badness(size: Size) -> tuple[float, bool, int]:
        smaller = enlarged(width, height, size, "cover") > 1
        area = size[0] * size[1]
        return round(abs(math.log(size[0] / size[1]) - aspect), 4), smaller, area if smaller else -area

    return min(sizes, key=badness)


def enlarged(width: int, height: int, size: Size, fit: FitKind) -> float:
    """By how much a picture would have to be enlarged to fill a size; below 1 it is made smaller."""
    scales = size[0] / width, size[1] / height
    return min(scales) if fit == "pad" else max(scales)
