"""What stands in a picture: each connected piece read as a thing of the world, or as none of them.

Comes in: one picture, uint8 (S, S, 3). Goes out: the ground and the things found, with colour, shape, fill and size in
the world's names, None where a thing is none of them. Drawings need not be perfect, they need to be what a person
would call them by that name: limits are given where they are decided. Knows nothing of claims or captions.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kandinsky5.demo.palette import COLOURS, GROUNDS, RGB, lab_distance, neutral
from kandinsky5.demo.pieces import CANVAS, EIGHT, Bools, Floats, Piece, cut
from kandinsky5.demo.silhouettes import Outline, outline_of
from kandinsky5.demo.world import FILLS, SIZES

COLOUR_TOLERANCE = 30.0
"""Lab distance at which a colour still has its name: a pale pink is pink ..."""
COLOUR_LEAD = 1.2
"""... if the next name is this many times farther: between red and orange it is neither."""
GROUND_TOLERANCE = 14.0
"""Likewise for grounds, which are at least 14 apart, so that the nearest is enough."""

DEVIATION = (0.045, 0.1)
"""How far an edge may stray from the ideal one on average: of the radius, and pixels at 256 on top. True things stay
below 0.025 of the radius after blur and noise; a regular pentagon is 0.054 from a circle, a rectangle of 6 to 5 0.059
from a square."""
STRICTER = {"half-circle": 0.75}
"""Parts of that for some shapes: a half-circle is what any longish blob is nearest to."""
LEAD = 1.15
"""The next shape's edge has to be this many times farther: halfway from a circle to a square is neither."""

SIZE_BOUNDS = tuple(
    (before[1] + after[0]) / 2 for before, after in itertools.pairwise(sorted(SIZES.values()))
)
"""Sizes meet midway between the ranges that are drawn."""

NEUTRAL = "neutral"
"""What the ground is called that captions do not name."""

NO_GAPS = 0.07
"""A share of holes up to this is still solid ..."""
LEAST_HOLLOW = 0.15
"""... and one from here on hollow; those drawn are at least 0.32. In between it is neither."""
LEAST_GAP = 0.25
"""A gap counts from this share of the largest: smaller ones are specks."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A thing in a picture. Lengths are fractions of the canvas; `shape`, `colour` and `fill` are names of the world
    or None, `size` always a name; `deviation` is how far the edge strays from the shape's, of the radius.
    """

    shape: str | None
    colour: str | None
    fill: str | None
    size: str
    x: float
    y: float
    radius: float
    rgb: RGB
    deviation: float


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A picture as it was read. `ground` is a name, `NEUTRAL`, or None for neither."""

    ground: str | None
    ground_rgb: RGB
    things: tuple[Found, ...]


def look(image: NDArray[np.uint8]) -> Sight:
    """Read one picture. One that is not uint8 (S, S, 3) is a ValueError."""
    ground, pieces = cut(image)
    return Sight(
        ground=_nearest(ground, {**GROUNDS, NEUTRAL: neutral(0.5).rgb}.items(), GROUND_TOLERANCE),
        ground_rgb=ground,
        things=tuple(thing for piece in pieces for thing in things_of(piece)),
    )


def things_of(piece: Piece) -> list[Found]:
    """The thing that a piece is, or several if only their touching makes it shapeless."""
    whole = recognised(piece)
    if whole.shape is None:
        for parts in _parted(piece):
            found = [recognised(part) for part in parts]
            if all(thing.shape for thing in found):
                return found
    return [whole]


def recognised(piece: Piece) -> Found:
    """The one thing that a piece is."""
    filled, gaps = _without_holes(piece)
    outline = outline_of(filled)
    share, pixel = DEVIATION
    limit = (share + pixel * piece.canvas / CANVAS / outline.radius) * STRICTER.get(outline.shape, 1)
    named = outline.deviation <= min(limit, outline.rival / LEAD)
    shape, fill = _shape_and_fill(outline, piece, filled, gaps)
    column, row = piece.origin
    return Found(
        shape=shape if named else None,
        colour=_nearest(piece.rgb, COLOURS.items(), COLOUR_TOLERANCE, COLOUR_LEAD),
        fill=fill,
        size=_size_of(outline.radius / piece.canvas),
        # The centre of the first pixel is half a pixel from the edge.
        x=(outline.x + column + 0.5) / piece.canvas,
        y=(outline.y + row + 0.5) / piece.canvas,
        radius=outline.radius / piece.canvas,
        rgb=piece.rgb,
        deviation=outline.deviation,
    )


def _nearest(rgb: RGB, named: Iterable[tuple[str, RGB]], tolerance: float, lead: float = 1.0) -> str | None:
    (distance, name), (next_distance, _), *_ = sorted(
        (lab_distance(rgb, other), name) for name, other in named
    )
    return name if distance <= min(tolerance, next_distance / lead) else None


def _size_of(radius: float) -> str:
    names = sorted(SIZES, key=lambda name: SIZES[name])
    return names[sum(radius > bound for bound in SIZE_BOUNDS)]


def _without_holes(piece: Piece) -> tuple[Floats, Bools]:
    """The piece's coverage with its holes filled in, and which pixels these are. A rim may be broken by 2 pixels."""
    solid = np.pad(piece.coverage > 0.5, 2)
    closed = ndimage.binary_fill_holes(ndimage.binary_dilation(solid, EIGHT))
    closed = ndimage.binary_erosion(closed, EIGHT)[2:-2, 2:-2] | (piece.coverage > 0.5)
    inside = ndimage.binary_erosion(closed)
    return np.maximum(piece.coverage, inside).astype(np.float32), inside & (piece.coverage < 0.5)


def _shape_and_fill(outline: Outline, piece: Piece, filled: Floats, gaps: Bools) -> tuple[str, str | None]:
    """What the gaps inside an outline make of it: one gap a ring or an outlined thing, several a striped one."""
    area = float(filled.sum())
    if gaps.sum() < NO_GAPS * area or outline.shape == "line":
        return outline.shape, "solid"
    numbered, _ = ndimage.label(gaps)
    sizes = np.bincount(numbered.ravel())[1:]
    if (sizes > LEAST_GAP * sizes.max()).sum() > 1:
        return outline.shape, "striped" if outline.shape in FILLS["striped"][0] else None
    if gaps.sum() < LEAST_HOLLOW * area:
        return outline.shape, None
    if outline.shape == "circle":
        return "ring", "solid"
    return outline.shape, "outlined" if outline.shape in FILLS["outlined"][0] else None


def _parted(piece: Piece) -> Iterator[list[Piece]]:
    """A piece cut at its necks, the thinnest first: as many parts as remain when its edge is worn away so far.

    A part of filled-in gap alone, as between things that nearly touch, is left out: nothing is drawn there.
    """
    filled, _ = _without_holes(piece)
    depth = ndimage.distance_transform_edt(filled > 0.5)
    before = 1
    for worn in range(1, int(depth.max())):
        numbered, number = ndimage.label(depth > worn)
        if number > before:
            nearest = ndimage.distance_transform_edt(
                numbered == 0, return_distances=False, return_indices=True
            )
            owner = numbered[tuple(nearest)]
            parts = [np.where(owner == n, piece.coverage, 0) for n in range(1, number + 1)]
            drawn = [part for part in parts if (part > 0.5).any()]
            yield [replace(piece, coverage=part.astype(np.float32)) for part in drawn]
        before = number
