"""The world of the embedded model: abstract compositions after Kandinsky, as values.

Comes in: a random generator. Goes out: a `Scene`, that is things on a ground, decidable from its pixels: things
never touch, stand out against the ground, and their sizes leave gaps. A fixed part of the pairs of colour and shape,
and of the ways two shapes stand to each other, is withheld from training, so that a scorer can ask whether the model
composes or remembers. Knows nothing of pixels, words or torch.
"""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from kandinsky5.demo.layout import POSITIONS, RELATIONS, Centres, Point, Relation, arrange
from kandinsky5.demo.palette import COLOURS, GROUNDS, RGB, Ground, grounds_for, neutral

__all__ = [
    "COLOURS",
    "FILLS",
    "GROUNDS",
    "MAX_THINGS",
    "POSITIONS",
    "RELATIONS",
    "RGB",
    "SHAPES",
    "SIZES",
    "WITHHELD",
    "WITHHELD_SIDES",
    "Ground",
    "Relation",
    "Scene",
    "Split",
    "Thing",
    "draw_scene",
    "fills_of",
    "is_withheld",
    "withheld_relations",
]

_T = TypeVar("_T")

Split = Literal["train", "withheld", "related"]
"""What scenes are drawn for: see `draw_scene`."""

SHAPES: dict[str, float] = {
    "circle": 0.0,
    "square": 0.2,
    "triangle": 0.2,
    "half-circle": math.pi,
    "star": 0.3,
    "cross": 0.15,
    "ring": 0.0,
    "line": math.pi / 2,
}
"""The shapes, and how far each may be turned from upright, in radians to either side."""

SIZES: dict[str, tuple[float, float]] = {
    "small": (0.062, 0.074),
    "medium": (0.1, 0.12),
    "large": (0.155, 0.185),
}
"""Radius of the bounding circle, as a fraction of the canvas. Medium is what no size named means."""

FILLS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "solid": (tuple(SHAPES), tuple(SIZES)),
    "outlined": (("square", "triangle", "half-circle", "star", "cross"), ("medium", "large")),
    "striped": (("circle", "square", "triangle", "half-circle"), ("medium", "large")),
}
"""The fills, and the shapes and sizes each is drawn with: an outlined circle would be a ring, a line has no inside,
the arms of a striped star or cross fall apart, and a small hollow or striped thing is a blur."""

MAX_THINGS = 6

WITHHELD: frozenset[tuple[str, str]] = frozenset(
    (colour, list(SHAPES)[(3 * index + 3) % len(SHAPES)]) for index, colour in enumerate(COLOURS)
)
"""(colour, shape) pairs never drawn for training: one a colour, in strides of three shapes, so that every colour
and every shape is among them. 12 of 96 pairs: red half-circle, orange ring, yellow square, green star ..."""

_BESIDE = (("circle", "star"), ("square", "ring"), ("triangle", "line"), ("half-circle", "cross"))
_ABOVE = (("circle", "half-circle"), ("square", "star"), ("triangle", "cross"), ("ring", "line"))
WITHHELD_SIDES: frozenset[tuple[str, str, str]] = frozenset(
    (a, name, b)
    for names, pairs in ((("left of", "right of"), _BESIDE), (("above", "below"), _ABOVE))
    for pair in pairs
    for a, b in (pair, pair[::-1])
    for name in names
)
"""(shape, relation, shape) never drawn for training, in any colour: a circle and a star are never side by side, a
square and a star never one above the other ... Each shape has one partner an axis, and both orders of a pair are
withheld, so that nothing about order can be learnt from what is left. 32 of 256."""


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One drawn thing. Lengths are fractions of the canvas, y grows downwards, `angle` is clockwise in radians."""

    shape: str
    colour: str
    size: str
    fill: str
    x: float
    y: float
    radius: float
    angle: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Things on a ground; things of one group (equal but for place) stand next to each other in `things`."""

    things: tuple[Thing, ...]
    ground: Ground

    def groups(self) -> tuple[tuple[Thing, ...], ...]:
        """The things by colour and shape, in the order of their first member."""
        found: dict[tuple[str, str], list[Thing]] = {}
        for thing in self.things:
            found.setdefault((thing.colour, thing.shape), []).append(thing)
        return tuple(tuple(group) for group in found.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kind:
    """What the things of a group have in common."""

    shape: str
    colour: str
    size: str
    fill: str
    count: int
    radius: float
    angle: float


def fills_of(shape: str, size: str) -> tuple[str, ...]:
    """The fills that stay unambiguous for a shape of a size."""
    return tuple(fill for fill, (shapes, sizes) in FILLS.items() if shape in shapes and size in sizes)


_ALL_PAIRS = tuple((colour, shape) for colour in COLOURS for shape in SHAPES)
_PAIRS = {
    "train": tuple(pair for pair in _ALL_PAIRS if pair not in WITHHELD),
    "withheld": tuple(pair for pair in _ALL_PAIRS if pair in WITHHELD),
    "related": tuple(pair for pair in _ALL_PAIRS if pair not in WITHHELD),
}
_FILLS_OF = {(shape, size): fills_of(shape, size) for shape in SHAPES for size in SIZES}
_GROUP_COUNTS = {
    "train": ((1, 0.15), (2, 0.63), (3, 0.91), (4, 1.0)),
    "withheld": ((2, 0.65), (3, 0.92), (4, 1.0)),
    "related": ((2, 0.65), (3, 0.92), (4, 1.0)),
}
_ONE_GROUP = ((1, 0.3), (2, 0.5), (3, 0.7), (4, 0.85), (5, 1.0))
_OF_SEVERAL = ((1, 0.68), (2, 0.82), (3, 0.92), (4, 0.97), (5, 1.0))
_SIZE_CHANCES = (("medium", 0.46), ("small", 0.73), ("large", 1.0))


def withheld_relations(shapes: Sequence[str], centres: Sequence[Centres]) -> list[tuple[int, str, int]]:
    """Of groups, by their shapes and where their things are: the relations that hold and are withheld."""
    return [
        (a, name, b)
        for a, b in itertools.permutations(range(len(shapes)), 2)
        for name, relation in RELATIONS.items()
        if (shapes[a], name, shapes[b]) in WITHHELD_SIDES and relation.holds(centres[a], centres[b])
    ]


def is_withheld(scene: Scene) -> bool:
    """Whether a scene holds anything that is withheld from training."""
    groups = scene.groups()
    return any((things[0].colour, things[0].shape) in WITHHELD for things in groups) or bool(
        withheld_relations(
            [things[0].shape for things in groups],
            [[(thing.x, thing.y) for thing in things] for things in groups],
        )
    )


def draw_scene(rng: random.Random, *, split: Split = "train") -> Scene:
    """Draw a scene of one to four groups and at most `MAX_THINGS` things.

    `train` holds nothing withheld; `withheld` has two groups or more, of withheld pairs only; `related` has two groups
    or more of other pairs, of which at least two stand to each other in a withheld way. The same state of `rng` gives
    the same scene.
    """
    if split not in _PAIRS:
        raise ValueError(f"No split is called {split!r}; there are {', '.join(_PAIRS)}.")
    while True:
        kinds = _draw_kinds(rng, split)
        # Several tries for one choice of things, so that crowded choices are not thinned out too much.
        without_room = refused = 0
        while without_room < 8 and refused < 40:
            places = arrange(rng, [(kind.count, kind.radius) for kind in kinds])
            if places is None:
                without_room += 1
            elif _allowed(split, kinds, places):
                return _scene(rng, kinds, places)
            else:
                without_room, refused = 0, refused + 1


def _allowed(split: str, kinds: list[_Kind], places: list[list[Point]]) -> bool:
    """Whether things may stand like this: only this is drawn again, so that the choice of things stays as it is."""
    if split == "withheld":
        return True
    return bool(withheld_relations([kind.shape for kind in kinds], places)) == (split == "related")


def _draw_kinds(rng: random.Random, split: str) -> list[_Kind]:
    wanted = _pick(rng, _GROUP_COUNTS[split])
    pairs = rng.sample(_PAIRS[split], wanted)
    kinds, left = [], MAX_THINGS
    for index, (colour, shape) in enumerate(pairs):
        count = min(_pick(rng, _ONE_GROUP if wanted == 1 else _OF_SEVERAL), left - (wanted - index - 1))
        left -= count
        size = _pick(rng, _SIZE_CHANCES)
        if size == "large" and count > 3 and rng.random() < 0.7:
            size = "medium"
        low, high = SIZES[size]
        fills = _FILLS_OF[shape, size]
        fill = (
            fills[1 + int(rng.random() * (len(fills) - 1))]
            if len(fills) > 1 and rng.random() < 0.33
            else "solid"
        )
        kinds.append(
            _Kind(
                shape=shape,
                colour=colour,
                size=size,
                fill=fill,
                count=count,
                radius=low + (high - low) * rng.random(),
                angle=SHAPES[shape] * (2 * rng.random() - 1),
            )
        )
    return kinds


def _scene(rng: random.Random, kinds: list[_Kind], places: list[list[Point]]) -> Scene:
    things = tuple(
        Thing(
            shape=kind.shape,
            colour=kind.colour,
            size=kind.size,
            fill=kind.fill,
            x=x,
            y=y,
            radius=kind.radius,
            angle=kind.angle,
        )
        for kind, centres in zip(kinds, places, strict=True)
        for x, y in centres
    )
    if rng.random() < 0.4:
        return Scene(things=things, ground=neutral(rng.random()))
    names, weights = grounds_for(frozenset(kind.colour for kind in kinds))
    name = rng.choices(names, weights)[0]
    return Scene(things=things, ground=Ground(name=name, rgb=GROUNDS[name]))


def _pick(rng: random.Random, cumulative: tuple[tuple[_T, float], ...]) -> _T:
    chance = rng.random()
    return next(value for value, limit in cumulative if chance < limit)
