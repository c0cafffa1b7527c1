"""Edits of scenes, as values: what was, what is to be, and what of the change was asked for.

Comes in: a random generator. Goes out: an `Edit`, whose target differs from its source in one group of things, or in
the ground, and in nothing else. Training edits hold nothing withheld, before or after; withheld ones hold what training
never draws where they change something. Knows nothing of words or pixels.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from kandinsky5.demo.layout import (
    ANCHORS,
    EDGE,
    POSITIONS,
    RELATIONS,
    Point,
    cluster,
    fits,
    mean_centre,
    position_of,
)
from kandinsky5.demo.palette import COLOURS, GROUNDS, MIN_CONTRAST, Ground, grounds_for, lab_distance
from kandinsky5.demo.standing import stands, stands_at
from kandinsky5.demo.world import (
    MAX_THINGS,
    SHAPES,
    SIZES,
    WITHHELD,
    Scene,
    Thing,
    draw_scene,
    fills_of,
    is_withheld,
)

KINDS: dict[str, float] = {
    "recolour": 1.2,
    "reshape": 1.2,
    "move": 1.4,
    "remove": 1.0,
    "add": 1.4,
    "ground": 0.8,
    "fill": 0.7,
}
"""The kinds of edits, and how often each is drawn for training, relative to the others."""

Pair = tuple[str, str]
"""Colour and shape: what tells the groups of a scene apart."""

LEAST_MOVE = 0.12
"""A moved group moves at least this far, of the canvas."""
MAX_GROUPS = 4
_ADDED_COUNTS = (1, 1, 1, 1, 1, 1, 2, 2, 3)
_TRIES = 40


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One change of a scene.

    `before` is the pair of the group that is changed, in the source, None where one is added or the ground changes;
    `after` its pair in the target, None where it is removed or the ground changes. A moved or added group may be asked
    to stand at the named place `place`, or in `relation` (a name, and the pair of another group of the target).
    """

    kind: str
    source: Scene
    target: Scene
    before: Pair | None = None
    after: Pair | None = None
    place: str | None = None
    relation: tuple[str, Pair] | None = None


def pair_of(thing: Thing) -> Pair:
    """Colour and shape of a thing."""
    return thing.colour, thing.shape


def group_of(scene: Scene, pair: Pair) -> tuple[Thing, ...]:
    """The things of a pair; none if there are none."""
    return tuple(thing for thing in scene.things if pair_of(thing) == pair)


def centres_of(things: Sequence[Thing]) -> list[Point]:
    """Where things are."""
    return [(thing.x, thing.y) for thing in things]


def draw_edit(
    rng: random.Random, *, split: Literal["train", "withheld"] = "train", kind: str | None = None
) -> Edit:
    """Draw an edit, of one of `KINDS` if it is named.

    `train` holds nothing withheld in source or target. In `withheld` the changed group is, afterwards or (where it is
    only moved, filled, taken away, or put on another ground) from the start, of a withheld pair.
    """
    makers = _MAKERS if split == "train" else _MAKERS_OF_WITHHELD
    if split not in ("train", "withheld") or kind not in (None, *KINDS):
        raise ValueError(
            f"There are edits of {', '.join(KINDS)} for train and withheld, not {kind} for {split}."
        )
    chosen = kind or rng.choices(list(KINDS), list(KINDS.values()))[0]
    needs_withheld_source = split == "withheld" and chosen not in _NEW_PAIRS
    while True:
        source = draw_scene(rng, split="withheld" if needs_withheld_source else "train")
        edit = makers[chosen](source, rng)
        if edit is not None and (split == "withheld" or not is_withheld(edit.target)):
            return edit


# --- the kinds: each an edit, or None where this source has no room for one -------------------------------------------

Maker = Callable[[Scene, random.Random], Edit | None]


def _recolour(source: Scene, rng: random.Random, *, withheld: bool) -> Edit | None:
    before, things = _one_group(source, rng)
    pairs = [(colour, before[1]) for colour in COLOURS if _stands_out(source, colour)]
    after = _new_pair(source, pairs, rng, withheld=withheld)
    if after is None:
        return None
    target = _with(source, things, lambda thing: replace(thing, colour=after[0]))
    return Edit(kind="recolour", source=source, target=target, before=before, after=after)


def _reshape(source: Scene, rng: random.Random, *, withheld: bool) -> Edit | None:
    before, things = _one_group(source, rng)
    pairs = [(before[0], shape) for shape in SHAPES if things[0].fill in fills_of(shape, things[0].size)]
    after = _new_pair(source, pairs, rng, withheld=withheld)
    if after is None:
        return None
    shape, angle = after[1], _angle(after[1], rng)
    target = _with(source, things, lambda thing: replace(thing, shape=shape, angle=angle))
    return Edit(kind="reshape", source=source, target=target, before=before, after=after)


def _move(source: Scene, rng: random.Random) -> Edit | None:
    pair, things = _one_group(source, rng)
    rest = tuple(thing for thing in source.things if pair_of(thing) != pair)
    offsets = _offsets(centres_of(things))
    place, relation = _destination(rest, rng, anywhere=0.0)
    if place is None and relation is None:
        return None
    here = centres_of(things)
    if place and stands_at(here, place):
        return None
    if relation and stands(here, relation[0], centres_of(group_of(source, relation[1]))):
        return None
    there = _room(offsets, things[0].radius, rest, place, relation, rng)
    if there is None or math.dist(mean_centre(here), mean_centre(there)) < LEAST_MOVE:
        return None
    moved = iter(there)

    def put(thing: Thing) -> Thing:
        x, y = next(moved)
        return replace(thing, x=x, y=y)

    target = _with(source, things, put)
    return Edit(
        kind="move", source=source, target=target, before=pair, after=pair, place=place, relation=relation
    )


def _remove(source: Scene, rng: random.Random) -> Edit | None:
    if len(source.groups()) < 2:
        return None
    before, _ = _one_group(source, rng)
    things = tuple(thing for thing in source.things if pair_of(thing) != before)
    return Edit(kind="remove", source=source, target=replace(source, things=things), before=before)


def _add(source: Scene, rng: random.Random, *, withheld: bool) -> Edit | None:
    count = rng.choice(_ADDED_COUNTS)
    if len(source.groups()) >= MAX_GROUPS or len(source.things) + count > MAX_THINGS:
        return None
    pairs = list(itertools.product([colour for colour in COLOURS if _stands_out(source, colour)], SHAPES))
    after = _new_pair(source, pairs, rng, withheld=withheld)
    size = rng.choice(("medium", "medium", "small", "large"))
    radius = rng.uniform(*SIZES[size])
    shape = cluster(rng, count, radius)
    if after is None or shape is None:
        return None
    fills = fills_of(after[1], size)
    fill = rng.choice(fills) if rng.random() < 0.4 else "solid"
    place, relation = _destination(source.things, rng, anywhere=0.35)
    there = _room(shape.offsets, radius, source.things, place, relation, rng)
    if there is None:
        return None
    angle = _angle(after[1], rng)
    new = tuple(
        Thing(shape=after[1], colour=after[0], size=size, fill=fill, x=x, y=y, radius=radius, angle=angle)
        for x, y in there
    )
    target = replace(source, things=(*source.things, *new))
    return Edit(kind="add", source=source, target=target, after=after, place=place, relation=relation)


def _ground(source: Scene, rng: random.Random) -> Edit | None:
    names, weights = grounds_for(frozenset(thing.colour for thing in source.things))
    name = rng.choices(names, weights)[0]
    if name == source.ground.name:
        return None
    target = replace(source, ground=Ground(name=name, rgb=GROUNDS[name]))
    return Edit(kind="ground", source=source, target=target)


def _fill(source: Scene, rng: random.Random) -> Edit | None:
    pair, things = _one_group(source, rng)
    fills = [fill for fill in fills_of(pair[1], things[0].size) if fill != things[0].fill]
    if not fills:
        return None
    fill = rng.choice(fills)
    target = _with(source, things, lambda thing: replace(thing, fill=fill))
    return Edit(kind="fill", source=source, target=target, before=pair, after=pair)


def _makers(*, withheld: bool) -> dict[str, Maker]:
    return {
        "recolour": lambda source, rng: _recolour(source, rng, withheld=withheld),
        "reshape": lambda source, rng: _reshape(source, rng, withheld=withheld),
        "move": _move,
        "remove": _remove,
        "add": lambda source, rng: _add(source, rng, withheld=withheld),
        "ground": _ground,
        "fill": _fill,
    }


_NEW_PAIRS = ("recolour", "reshape", "add")
"""Kinds after which there is a pair that was not there before."""
_MAKERS = _makers(withheld=False)
_MAKERS_OF_WITHHELD = _makers(withheld=True)


# --- parts ------------------------------------------------------------------------------------------------------------


def _one_group(scene: Scene, rng: random.Random) -> tuple[Pair, tuple[Thing, ...]]:
    things = rng.choice(scene.groups())
    return pair_of(things[0]), things


def _new_pair(scene: Scene, pairs: Sequence[Pair], rng: random.Random, *, withheld: bool) -> Pair | None:
    """One of the pairs that the scene does not hold yet; all withheld from training, or none."""
    there = {pair_of(thing) for thing in scene.things}
    fresh = [pair for pair in pairs if pair not in there and (pair in WITHHELD) == withheld]
    return rng.choice(fresh) if fresh else None


def _stands_out(scene: Scene, colour: str) -> bool:
    return lab_distance(COLOURS[colour], scene.ground.rgb) >= MIN_CONTRAST


def _angle(shape: str, rng: random.Random) -> float:
    return SHAPES[shape] * (2 * rng.random() - 1)


def _with(scene: Scene, things: Sequence[Thing], change: Callable[[Thing], Thing]) -> Scene:
    """The scene with each of these things changed."""
    return replace(scene, things=tuple(change(thing) if thing in things else thing for thing in scene.things))


def _offsets(centres: Sequence[Point]) -> tuple[Point, ...]:
    x, y = mean_centre(centres)
    return tuple((px - x, py - y) for px, py in centres)


def _destination(
    others: Sequence[Thing], rng: random.Random, *, anywhere: float
) -> tuple[str | None, tuple[str, Pair] | None]:
    """A named place, or a relation to one of the other groups, or with this chance neither."""
    if rng.random() < anywhere:
        return None, None
    if others and rng.random() < 0.5:
        return None, (rng.choice(list(RELATIONS)), rng.choice(sorted({pair_of(thing) for thing in others})))
    return rng.choice(list(POSITIONS)), None


def _room(
    offsets: Sequence[Point],
    radius: float,
    others: Sequence[Thing],
    place: str | None,
    relation: tuple[str, Pair] | None,
    rng: random.Random,
) -> list[Point] | None:
    """Centres for a group, free of the others and plainly where it is asked to be, or None if none were found."""
    taken = [(thing.x, thing.y, thing.radius) for thing in others]
    near = centres_of([thing for thing in others if relation and pair_of(thing) == relation[1]])
    reach = [max(abs(offset[axis]) for offset in offsets) + radius + EDGE for axis in (0, 1)]
    if max(reach) > 0.5:
        return None
    for _ in range(_TRIES):
        middle = _aim(place, relation, near, rng)
        x, y = (min(max(value, r), 1 - r) for value, r in zip(middle, reach, strict=True))
        centres = [(x + dx, y + dy) for dx, dy in offsets]
        if not fits(centres, radius, taken) or (place and position_of(centres) != place):
            continue
        if relation and not RELATIONS[relation[0]].holds(centres, near):
            continue
        return centres
    return None


def _aim(
    place: str | None, relation: tuple[str, Pair] | None, near: Sequence[Point], rng: random.Random
) -> Point:
    """A middle to try: at the place, on that side of the others, or anywhere."""
    if place:
        column, row = POSITIONS[place]
        return ANCHORS[column] + 0.06 * (rng.random() - 0.5), ANCHORS[row] + 0.06 * (rng.random() - 0.5)
    if relation is None:
        return rng.random(), rng.random()
    x, y = mean_centre(near)
    along, across = 0.2 + 0.5 * rng.random(), 0.2 * (rng.random() - 0.5)
    dx, dy = {
        "left of": (-along, across),
        "right of": (along, across),
        "above": (across, -along),
        "below": (across, along),
    }[relation[0]]
    return x + dx, y + dy
