"""What a caption says of a scene, as values: the meaning that a grammar puts into words and a scorer reads in pixels.

Comes in: groups of things. Goes out: claims about them, in the world's own names, each of them true. Knows nothing of
words or pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kandinsky5.demo.layout import RELATIONS
from kandinsky5.demo.world import Thing

Related = tuple[int, str, int]
"""Group a, relation, group b: "a is <relation> b"."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """What a caption says of one group of equal things; None where it says nothing."""

    count: int
    colour: str | None
    shape: str
    size: str | None
    fill: str | None
    position: str | None


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a caption says. `groups` are those of `Scene.groups()`, in that order; `ground` is a name or None."""

    groups: tuple[Group, ...]
    relations: tuple[Related, ...]
    ground: str | None


def true_relations(groups: Sequence[Sequence[Thing]]) -> list[Related]:
    """Every relation that holds between two groups, in both directions."""
    centres = [[(thing.x, thing.y) for thing in things] for things in groups]
    return [
        (a, name, b)
        for a in range(len(groups))
        for b in range(len(groups))
        if a != b
        for name, relation in RELATIONS.items()
        if relation.holds(centres[a], centres[b])
    ]
