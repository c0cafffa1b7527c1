"""Which shape an outline is: the one of the world that overlaps it best, at any angle.

Comes in: how much of each pixel a filled-in thing covers. Goes out: the best shape, the thing's centre and bounding
radius as the renderer means them, and how far its edge strays from the ideal one. Size and place are taken from area
and centroid, which a wobbly edge hardly moves; only the angle is searched. The ideals are drawn by the renderer. A
ring filled in is a circle, and a line is recognised by being long, so neither is among them. Knows nothing of colours,
fills or claims.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kandinsky5.demo.palette import COLOURS, GROUNDS, Ground
from kandinsky5.demo.renderer import pack, render
from kandinsky5.demo.world import Scene, Thing

Floats = NDArray[np.float32]

PERIODS: dict[str, float] = {
    "circle": 0.0,
    "square": math.pi / 2,
    "triangle": 2 * math.pi / 3,
    "half-circle": 2 * math.pi,
    "star": 2 * math.pi / 5,
    "cross": math.pi / 2,
}
"""The turn that brings each shape back onto itself."""
ANGLE_STEP = math.radians(4)

GRID = 40
REACH = 1.05
"""Outlines are compared on `GRID` x `GRID` cells that reach this far from the centroid, in roots of the area: the
tip of a triangle, the farthest of all, is at 0.88."""

LINE_ELONGATION = 3.1
"""Spread along by spread across from which a thing is a line: halfway, as a ratio, between a half-circle (1.89) and
the shortest line (5.07)."""

_DRAWN = 192
_DRAWN_RADIUS = 0.4


@dataclass(frozen=True, kw_only=True)
class Outline:
    """A recognised outline: centre and bounding radius in pixels of the window, `deviation` the mean distance of its
    edge from the ideal one, of the radius. `rival` is what that would be for the best of the other shapes.
    """

    shape: str
    x: float
    y: float
    radius: float
    deviation: float
    rival: float


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ideals:
    """Drawn shapes at many angles, in units of the root of their area about their centroid."""

    shapes: tuple[str, ...]
    cells: Floats
    perimeters: Floats
    radii: Floats
    offsets: Floats


def outline_of(filled: Floats) -> Outline:
    """Recognise a thing from its coverage (h, w), holes filled in."""
    centroid, area, along, across, direction = _moments(filled)
    if along > LINE_ELONGATION * across:
        return _line(filled, centroid, along, across, direction)
    ideals, unit = _ideals(), math.sqrt(area)
    cells = _cells(filled, centroid, unit)
    # What lies outside the grid overlaps nothing.
    apart = np.abs(ideals.cells - cells.ravel()).sum(1) * _cell_area() + max(
        1 - float(cells.sum()) * _cell_area(), 0
    )
    best = int(apart.argmin())
    deviations = apart / ideals.perimeters / ideals.radii
    others = np.array(ideals.shapes) != ideals.shapes[best]
    dx, dy = ideals.offsets[best]
    return Outline(
        shape=ideals.shapes[best],
        x=centroid[0] + float(dx) * unit,
        y=centroid[1] + float(dy) * unit,
        radius=float(ideals.radii[best]) * unit,
        deviation=float(deviations[best]),
        rival=float(deviations[others].min()),
    )


def _line(
    filled: Floats, centroid: tuple[float, float], along: float, across: float, direction: tuple[float, float]
) -> Outline:
    """A line, compared with the rectangle of the same spreads."""
    half_length, half_width = math.sqrt(3) * along, math.sqrt(3) * across
    rows, columns = np.mgrid[: filled.shape[0], : filled.shape[1]]
    dx, dy = columns - centroid[0], rows - centroid[1]
    u, v = dx * direction[0] + dy * direction[1], dy * direction[0] - dx * direction[1]
    ideal = (half_length - np.abs(u) + 0.5).clip(0, 1) * (half_width - np.abs(v) + 0.5).clip(0, 1)
    radius = math.hypot(half_length, half_width)
    apart = float(np.abs(ideal - filled).sum())
    return Outline(
        shape="line",
        x=centroid[0],
        y=centroid[1],
        radius=radius,
        deviation=apart / (4 * (half_length + half_width)) / radius,
        rival=math.inf,
    )


def _moments(filled: Floats) -> tuple[tuple[float, float], float, float, float, tuple[float, float]]:
    """Centroid, area, spreads along and across, and the unit vector along, in pixels."""
    rows, columns = np.arange(filled.shape[0]), np.arange(filled.shape[1])
    by_row, by_column = filled.sum(1, dtype=np.float64), filled.sum(0, dtype=np.float64)
    area = float(by_row.sum())
    x, y = float(by_column @ columns) / area, float(by_row @ rows) / area
    xx = float(by_column @ (columns - x) ** 2) / area
    yy = float(by_row @ (rows - y) ** 2) / area
    xy = float((rows - y) @ filled @ (columns - x)) / area
    values, vectors = np.linalg.eigh([[xx, xy], [xy, yy]])
    across, along = (math.sqrt(max(float(v), 0.0)) for v in values)
    return (x, y), area, along, across, (float(vectors[0, 1]), float(vectors[1, 1]))


def _cells(filled: Floats, centroid: tuple[float, float], unit: float) -> Floats:
    """Coverage on the common grid, each cell the mean of the pixels in it."""
    reach = REACH * unit
    margin = math.ceil(reach) + 1
    padded = Image.fromarray(np.pad(filled, margin))
    # The centre of pixel 0 is at 0.5 in Pillow's coordinates.
    x, y = centroid[0] + 0.5 + margin, centroid[1] + 0.5 + margin
    box = (x - reach, y - reach, x + reach, y + reach)
    return np.asarray(padded.resize((GRID, GRID), Image.Resampling.BILINEAR, box=box), dtype=np.float32)


def _cell_area() -> float:
    return (2 * REACH / GRID) ** 2


@functools.cache
def _ideals() -> _Ideals:
    shapes, cells, perimeters, radii, offsets = [], [], [], [], []
    for shape, period in PERIODS.items():
        drawn = Image.fromarray(_drawn(shape))
        middle = (_DRAWN - 1) / 2
        for step in range(max(math.ceil(period / ANGLE_STEP), 1)):
            turned = np.asarray(drawn.rotate(-math.degrees(step * ANGLE_STEP), Image.Resampling.BILINEAR))
            centroid, area, *_ = _moments(turned)
            unit = math.sqrt(area)
            cells.append(_cells(turned, centroid, unit))
            down, right = np.gradient(cells[-1])
            shapes.append(shape)
            perimeters.append(float(np.hypot(down, right).sum()) * 2 * REACH / GRID)
            radii.append(_DRAWN_RADIUS * _DRAWN / unit)
            offsets.append(((middle - centroid[0]) / unit, (middle - centroid[1]) / unit))
    return _Ideals(
        shapes=tuple(shapes),
        cells=np.stack(cells).reshape(len(cells), -1),
        perimeters=np.array(perimeters, dtype=np.float32),
        radii=np.array(radii, dtype=np.float32),
        offsets=np.array(offsets, dtype=np.float32),
    )


def _drawn(shape: str) -> Floats:
    """Coverage (`_DRAWN`, `_DRAWN`) of an upright solid shape, as the renderer draws it."""
    thing = Thing(
        shape=shape, colour="black", size="large", fill="solid", x=0.5, y=0.5, radius=_DRAWN_RADIUS, angle=0.0
    )
    scene = Scene(things=(thing,), ground=Ground(name="white", rgb=GROUNDS["white"]))
    red = render(pack([scene]), _DRAWN)[0, 0].numpy()
    black, white = COLOURS["black"][0] / 127.5 - 1, GROUNDS["white"][0] / 127.5 - 1
    return ((white - red) / (white - black)).clip(0, 1)
