"""Where groups of things stand on the canvas, and what can be said of it without doubt.

Comes in: how many things of which radius each group has. Goes out: their centres, as fractions of the canvas
(x to the right, y down), apart from each other and from the edges. Also here, because drawing and describing must
mean the same by them: the named positions and the relations between groups. Knows nothing of shapes, colours or
words beyond those names.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
Centres = Sequence[Point]
"""The centres of one group's things."""

GAP = 0.032
"""Least distance between two bounding circles."""
EDGE = 0.025
"""Least distance from a bounding circle to the edge of the canvas."""

RELATION_DISTANCE = 0.18
"""A relation holds only if the groups' mean centres are this far apart along its axis ..."""
RELATION_DOMINANCE = 2.0
"""... and this many times farther than across it."""


def mean_centre(centres: Centres) -> Point:
    """The middle of a group."""
    return sum(x for x, _ in centres) / len(centres), sum(y for _, y in centres) / len(centres)


def _before(axis: int) -> Callable[[Centres, Centres], bool]:
    def holds(a: Centres, b: Centres) -> bool:
        mean_a, mean_b = mean_centre(a), mean_centre(b)
        along, across = mean_b[axis] - mean_a[axis], abs(mean_b[1 - axis] - mean_a[1 - axis])
        return (
            along >= RELATION_DISTANCE
            and along >= RELATION_DOMINANCE * across
            and max(p[axis] for p in a) < min(p[axis] for p in b)
        )

    return holds


def _swapped(holds: Callable[[Centres, Centres], bool]) -> Callable[[Centres, Centres], bool]:
    return lambda a, b: holds(b, a)


@dataclass(frozen=True, kw_only=True)
class Relation:
    """Something that is plainly true, or not, of two groups. `holds(a, b)` reads "a is <relation> b"."""

    inverse: str
    holds: Callable[[Centres, Centres], bool]


RELATIONS: dict[str, Relation] = {
    "left of": Relation(inverse="right of", holds=_before(0)),
    "right of": Relation(inverse="left of", holds=_swapped(_before(0))),
    "above": Relation(inverse="below", holds=_before(1)),
    "below": Relation(inverse="above", holds=_swapped(_before(1))),
}

POSITIONS: dict[str, tuple[int, int]] = {
    "left": (0, 1),
    "right": (2, 1),
    "top": (1, 0),
    "bottom": (1, 2),
    "centre": (1, 1),
    "top left": (0, 0),
    "top right": (2, 0),
    "bottom left": (0, 2),
    "bottom right": (2, 2),
}
"""Named places of the canvas: column and row of a grid of three by three."""

_NAME_AT: dict[tuple[int | None, int | None], str] = {cell: name for name, cell in POSITIONS.items()}
ANCHORS = (0.22, 0.5, 0.78)
"""Where the columns and rows of named places are drawn."""


def position_of(centres: Centres) -> str | None:
    """The named place where a group plainly is, or None: in between, or spread too widely."""
    mean = mean_centre(centres)
    cell = (_third(mean[0], [x for x, _ in centres]), _third(mean[1], [y for _, y in centres]))
    if cell == (1, 1) and max(abs(v - 0.5) for point in centres for v in point) > 0.3:
        return None
    return _NAME_AT.get(cell)


def _third(mean: float, values: list[float]) -> int | None:
    if mean < 0.35:
        return 0 if max(values) < 0.5 else None
    if mean > 0.65:
        return 2 if min(values) > 0.5 else None
    return 1 if 0.38 < mean < 0.62 else None


_H = math.sqrt(0.5)
_T = math.sqrt(3) / 2
_PATTERNS: dict[int, tuple[tuple[Point, ...], ...]] = {
    1: (((0, 0),),),
    2: (((-0.5, 0), (0.5, 0)), ((0, -0.5), (0, 0.5)), ((-0.4, -0.3), (0.4, 0.3)), ((-0.4, 0.3), (0.4, -0.3))),
    3: (
        ((-1, 0), (0, 0), (1, 0)),
        ((0, -1), (0, 0), (0, 1)),
        ((0, -2 * _T / 3), (-0.5, _T / 3), (0.5, _T / 3)),
        ((0, 2 * _T / 3), (-0.5, -_T / 3), (0.5, -_T / 3)),
    ),
    4: (
        ((-1.5, 0), (-0.5, 0), (0.5, 0), (1.5, 0)),
        ((0, -1.5), (0, -0.5), (0, 0.5), (0, 1.5)),
        ((-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)),
        ((0, -_H), (_H, 0), (0, _H), (-_H, 0)),
    ),
    5: (
        ((-2, 0), (-1, 0), (0, 0), (1, 0), (2, 0)),
        ((0, -2), (0, -1), (0, 0), (0, 1), (0, 2)),
        ((-_H, -_H), (_H, -_H), (0, 0), (-_H, _H), (_H, _H)),
        ((-0.5, -_T / 2), (0.5, -_T / 2), (-1, _T / 2), (0, _T / 2), (1, _T / 2)),
    ),
}
"""Arrangements of equal things about their middle, at least one unit apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """A group before it is placed: offsets from its middle, and how far it reaches from there in x and y."""

    offsets: tuple[Point, ...]
    radius: float
    reach: Point

    def at(self, x: float, y: float) -> list[Point]:
        """The centres of its things once its middle is put at (x, y)."""
        return [(x + dx, y + dy) for dx, dy in self.offsets]


def cluster(rng: random.Random, count: int, radius: float) -> Cluster | None:
    """A pattern for `count` things of one radius, or None if the one drawn does not fit the canvas."""
    pattern = _PATTERNS[count][int(rng.random() * len(_PATTERNS[count]))]
    if count == 1:
        return Cluster(offsets=((0.0, 0.0),), radius=radius, reach=(radius, radius))
    spacing = (2 * radius + GAP) * (1.02 + 0.25 * rng.random())
    tilt = 0.5 * (rng.random() - 0.5) if rng.random() < 0.5 else 0.0
    c, s = spacing * math.cos(tilt), spacing * math.sin(tilt)
    offsets = tuple((c * x - s * y, s * x + c * y) for x, y in pattern)
    reach = (max(abs(x) for x, _ in offsets) + radius, max(abs(y) for _, y in offsets) + radius)
    return Cluster(offsets=offsets, radius=radius, reach=reach) if max(reach) < 0.5 - EDGE else None


def arrange(rng: random.Random, groups: Sequence[tuple[int, float]]) -> list[list[Point]] | None:
    """Centres for groups of (count, radius), or None where this draw found no room; then draw again.

    Two groups and more stand along an axis (half of the time), at named places, or anywhere; a single group at a
    named place or anywhere, at times scattered.
    """
    kind = rng.random()
    if kind >= 0.75 and rng.random() < 0.35:
        return _scattered(rng, groups)
    clusters = [cluster(rng, count, radius) for count, radius in groups]
    if not all(clusters):
        return None
    drawn = [c for c in clusters if c is not None]
    if len(drawn) > 1 and kind < 0.5:
        return _along_an_axis(rng, drawn)
    return _at_named_places(rng, drawn) if kind < 0.75 else _anywhere(rng, drawn)


def _along_an_axis(rng: random.Random, clusters: list[Cluster]) -> list[list[Point]] | None:
    axis = int(rng.random() * 2)
    order = list(range(len(clusters)))
    rng.shuffle(order)
    reaches = [clusters[index].reach[axis] for index in order]
    across = max(c.reach[1 - axis] for c in clusters)
    steps = [max(p + q + GAP, RELATION_DISTANCE + 0.03) for p, q in itertools.pairwise(reaches)]
    slack = 1 - 2 * EDGE - reaches[0] - reaches[-1] - sum(steps)
    if slack < 0:
        return None
    # Slack falls at random before, between and after the groups, a little more often between them.
    shares = [rng.random()] + [0.4 + rng.random() for _ in steps] + [rng.random()]
    unit = slack / sum(shares)
    low, high = EDGE + across, 1 - EDGE - across
    line = low + (high - low) * (0.5 + (rng.random() - 0.5) * rng.random())
    along = EDGE + reaches[0] + shares[0] * unit
    placed: dict[int, list[Point]] = {}
    for step, index in enumerate(order):
        if step:
            along += steps[step - 1] + shares[step] * unit
        beside = min(max(line + 0.1 * (rng.random() - 0.5), low), high)
        c = clusters[index]
        placed[index] = c.at(along, beside) if axis == 0 else c.at(beside, along)
    return [placed[index] for index in range(len(clusters))]


def _at_named_places(rng: random.Random, clusters: list[Cluster]) -> list[list[Point]] | None:
    cells = rng.sample(list(POSITIONS.values()), len(clusters))
    placed: list[list[Point]] = []
    taken: list[tuple[float, float, float]] = []
    for c, (column, row) in zip(clusters, cells, strict=True):
        x, y = (ANCHORS[cell] + 0.06 * (rng.random() - 0.5) for cell in (column, row))
        x, y = (min(max(v, EDGE + r), 1 - EDGE - r) for v, r in zip((x, y), c.reach, strict=True))
        centres = c.at(x, y)
        if not fits(centres, c.radius, taken):
            return None
        placed.append(centres)
        taken += [(px, py, c.radius) for px, py in centres]
    return placed


def _anywhere(rng: random.Random, clusters: list[Cluster]) -> list[list[Point]] | None:
    placed: list[list[Point]] = []
    taken: list[tuple[float, float, float]] = []
    for c in clusters:
        for _ in range(12):
            x, y = (EDGE + r + (1 - 2 * EDGE - 2 * r) * rng.random() for r in c.reach)
            centres = c.at(x, y)
            if fits(centres, c.radius, taken):
                break
        else:
            return None
        placed.append(centres)
        taken += [(px, py, c.radius) for px, py in centres]
    return placed


def _scattered(rng: random.Random, groups: Sequence[tuple[int, float]]) -> list[list[Point]] | None:
    singles = [
        Cluster(offsets=((0.0, 0.0),), radius=r, reach=(r, r)) for count, r in groups for _ in range(count)
    ]
    flat = _anywhere(rng, singles)
    if flat is None:
        return None
    points = iter(flat)
    return [[next(points)[0] for _ in range(count)] for count, _ in groups]


def fits(centres: Centres, radius: float, taken: Sequence[tuple[float, float, float]]) -> bool:
    """Whether things of one radius keep `GAP` from all of `taken`, which are (x, y, radius)."""
    return all(
        (x - tx) ** 2 + (y - ty) ** 2 >= (radius + tr + GAP) ** 2 for x, y in centres for tx, ty, tr in taken
    )
