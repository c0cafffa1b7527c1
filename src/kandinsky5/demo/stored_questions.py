"""Questions of the withheld sets as they are written down: one JSON value each, and back.

Comes in: scenes, claims, edits. Goes out: lists and names that JSON has; a thing that an edit leaves as it was is its
number in the source. It does not know which questions there are.
"""

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from kandinsky5.demo.claims import Claims, Group
from kandinsky5.demo.edits import Edit, Pair
from kandinsky5.demo.palette import Ground
from kandinsky5.demo.world import Scene, Thing

DIGITS = 6
"""Of lengths, which are fractions of the canvas."""

Stored = dict[str, Any]


def store_claims(claims: Claims) -> Stored:
    """Groups with their fields in order, and relations; the ground is the scene's."""
    return {"groups": [list(astuple(group)) for group in claims.groups], "relations": claims.relations}


def read_claims(stored: Stored, scene: Scene) -> Claims:
    """Claims that `store_claims` wrote of a scene."""
    names = tuple(Group.__dataclass_fields__)
    return Claims(
        groups=tuple(Group(**dict(zip(names, group, strict=True))) for group in stored["groups"]),
        relations=tuple((a, name, b) for a, name, b in stored["relations"]),
        ground=scene.ground.name,
    )


def store_scene(scene: Scene, before: Sequence[Thing] = ()) -> list[Any]:
    """The ground's name and colour, then the things; one of `before` as its number there."""
    ground = [scene.ground.name, *scene.ground.rgb]
    return [ground, *(before.index(thing) if thing in before else _store(thing) for thing in scene.things)]


def read_scene(stored: list[Any], before: Sequence[Thing] = ()) -> Scene:
    """A scene that `store_scene` wrote."""
    (name, red, green, blue), *things = stored
    return Scene(
        things=tuple(before[thing] if isinstance(thing, int) else _read(thing) for thing in things),
        ground=Ground(name=name, rgb=(red, green, blue)),
    )


def store_edit(edit: Edit) -> Stored:
    """Both scenes, and what was asked."""
    return {
        "kind": edit.kind,
        "source": store_scene(edit.source),
        "target": store_scene(edit.target, edit.source.things),
        **{
            name: value for name in ("before", "after", "place", "relation") if (value := getattr(edit, name))
        },
    }


def read_edit(stored: Stored) -> Edit:
    """An edit that `store_edit` wrote."""
    source = read_scene(stored["source"])
    relation = stored.get("relation")
    before, after = (_pair(stored[name]) if name in stored else None for name in ("before", "after"))
    return Edit(
        kind=stored["kind"],
        source=source,
        target=read_scene(stored["target"], source.things),
        before=before,
        after=after,
        place=stored.get("place"),
        relation=(relation[0], _pair(relation[1])) if relation else None,
    )


def _store(thing: Thing) -> list[Any]:
    return [round(value, DIGITS) if isinstance(value, float) else value for value in astuple(thing)]


def _read(stored: list[Any]) -> Thing:
    return Thing(**dict(zip(Thing.__dataclass_fields__, stored, strict=True)))


def _pair(stored: list[str]) -> Pair:
    colour, shape = stored
    return colour, shape
