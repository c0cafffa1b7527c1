"""Whether a picture shows what its caption claims.

Comes in: a picture, or what `recognition` saw in it, and the claims of its caption. Goes out: a report in which every
claimed thing, count, relation, position and ground is right or wrong. Claimed and found things are paired in the way
that is best for the claims; a claimed thing is right when everything claimed of it is. Knows nothing of pixels or
words.

Where things stand is judged more leniently than scenes are drawn: the world keeps clear of borderline cases, a person
looking at a picture does not. `standing` says how.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from kandinsky5.demo.claims import Claims, Group, Related
from kandinsky5.demo.layout import Point
from kandinsky5.demo.recognition import NEUTRAL, Found, Sight, look
from kandinsky5.demo.standing import stands, stands_at

_RIGHT, _SHAPE, _COLOUR, _DETAIL = 100.0, 5.0, 4.0, 1.0
"""Worth of a pair: of one that is right in everything, and of what agrees in one that is not."""


@dataclass(frozen=True, kw_only=True)
class ObjectCheck:
    """One claimed thing of group `group`, the thing found for it (an index, or None), and what of it is right.

    What is not claimed is right; a claim without a fill claims "solid". Without a thing nothing is right.
    """

    group: int
    found: int | None
    colour: bool = False
    shape: bool = False
    fill: bool = False
    size: bool = False

    @property
    def right(self) -> bool:
        """Whether everything claimed of it is right."""
        return self.colour and self.shape and self.fill and self.size


@dataclass(frozen=True, kw_only=True)
class RelationCheck:
    """A claimed relation. `right` judges where the things paired with the two groups stand; `sure` says that both
    groups have a thing of the claimed colour and shape, so that the whole sentence is true if `right` is.
    """

    related: Related
    right: bool
    sure: bool


@dataclass(frozen=True, kw_only=True)
class Report:
    """What of a caption's claims a picture shows.

    `objects` has one check a claimed thing; `counts` one pair a group, right or not and how many there are of its
    colour and shape; `positions` one pair a claimed position, group and whether it is right; `extra` holds indices of
    found things that nothing claims. An unnamed ground has to be the neutral one.
    """

    claims: Claims
    sight: Sight
    objects: tuple[ObjectCheck, ...]
    counts: tuple[tuple[bool, int], ...]
    relations: tuple[RelationCheck, ...]
    positions: tuple[tuple[int, bool], ...]
    ground: bool
    extra: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether everything is right, and nothing is there that nobody asked for."""
        return (
            all(check.right for check in self.objects)
            and all(right for right, _ in self.counts)
            and all(check.right for check in self.relations)
            and all(right for _, right in self.positions)
            and self.ground
            and not self.extra
        )


def score(image: NDArray[np.uint8], claims: Claims) -> Report:
    """Check a picture, uint8 (S, S, 3), against the claims of its caption. Other pictures are a ValueError."""
    return checked(look(image), claims)


def checked(sight: Sight, claims: Claims) -> Report:
    """Check what was seen in a picture against claims."""
    objects = _paired(sight.things, claims.groups)
    kinds = [[thing for thing in sight.things if _is_kind(thing, group)] for group in claims.groups]
    places = [_places(index, kind, objects, sight.things) for index, kind in enumerate(kinds)]
    taken = {check.found for check in objects}
    return Report(
        claims=claims,
        sight=sight,
        objects=tuple(objects),
        counts=tuple(
            (len(kind) == group.count, len(kind)) for kind, group in zip(kinds, claims.groups, strict=True)
        ),
        relations=tuple(
            RelationCheck(
                related=(a, name, b),
                right=stands(places[a], name, places[b]),
                sure=bool(kinds[a] and kinds[b]),
            )
            for a, name, b in claims.relations
        ),
        positions=tuple(
            (index, stands_at(places[index], group.position))
            for index, group in enumerate(claims.groups)
            if group.position is not None
        ),
        ground=sight.ground == (claims.ground or NEUTRAL),
        extra=tuple(index for index in range(len(sight.things)) if index not in taken),
    )


def _is_kind(thing: Found, group: Group) -> bool:
    return thing.shape == group.shape and group.colour in (None, thing.colour)


def _places(
    group: int, kind: Sequence[Found], objects: Sequence[ObjectCheck], things: Sequence[Found]
) -> list[Point]:
    """Where a group is: its kind of things, and what was taken for one of them."""
    taken = [things[check.found] for check in objects if check.group == group and check.found is not None]
    return [(thing.x, thing.y) for thing in [*kind, *(thing for thing in taken if thing not in kind)]]


def _paired(things: Sequence[Found], groups: Sequence[Group]) -> list[ObjectCheck]:
    """The claimed things, paired so that most are right and the rest agree most, by Kuhn and Munkres' method."""
    slots = [index for index, group in enumerate(groups) for _ in range(group.count)]
    checks = [
        [_compared(slot, groups[slot], number, thing) for number, thing in enumerate(things)]
        for slot in slots
    ]
    paired = [ObjectCheck(group=slot, found=None) for slot in slots]
    if not slots or not things:
        return paired
    worth = np.array([[_worth(check, groups[check.group]) for check in row] for row in checks])
    for slot, number in zip(*linear_sum_assignment(worth, maximize=True), strict=True):
        if worth[slot, number] > 0:
            paired[slot] = checks[slot][number]
    return paired


def _compared(slot: int, group: Group, number: int, thing: Found) -> ObjectCheck:
    return ObjectCheck(
        group=slot,
        found=number,
        colour=group.colour in (None, thing.colour),
        shape=thing.shape == group.shape,
        fill=thing.fill == (group.fill or "solid"),
        size=group.size in (None, thing.size),
    )


def _worth(check: ObjectCheck, group: Group) -> float:
    """What a pair is worth; nothing if neither shape nor colour tell that this was meant."""
    told_by_colour = check.colour and group.colour is not None
    if not (check.shape or told_by_colour):
        return 0.0
    details = _DETAIL * (check.fill + check.size)
    return _RIGHT * check.right + _SHAPE * check.shape + _COLOUR * check.colour + details
