"""Whether an edited picture shows what was asked for, and everything else as it was.

Comes in: an edit, and the picture before and after it, or what `recognition` saw in the result. Goes out: a report: the
asked change done or not, the rest kept or not with what is wrong in words, and how close the pixels are that nothing
should have touched. Things that were not to move are looked for where they were; a moved or added group wherever the
instruction allows. Knows nothing of words of instructions.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from kandinsky5.demo.edits import Edit, Pair, group_of, pair_of
from kandinsky5.demo.layout import Point
from kandinsky5.demo.recognition import NEUTRAL, Found, Sight, look
from kandinsky5.demo.renderer import pack, render
from kandinsky5.demo.standing import stands, stands_at
from kandinsky5.demo.world import Scene, Thing

STRAYING = 0.05
"""A thing is still in its place this far from it, of the canvas: things of a scene are at least 0.156 apart."""

MARGIN = 6
"""Pixels this near to one that the edit changes, on a canvas of 256, are not untouched: latents blur across edges."""
LEAST_UNTOUCHED = 64
"""Untouched pixels, on a canvas of 256, below which there is nothing to measure."""


@dataclass(frozen=True, kw_only=True)
class EditReport:
    """What became of an edit.

    `undone` says what of the asked change is missing and `lost` what else changed, a phrase each; `untouched` is the
    PSNR in dB of the pixels that should be the source's (infinite if they are), None where there are hardly any.
    """

    edit: Edit
    sight: Sight
    undone: tuple[str, ...]
    lost: tuple[str, ...]
    untouched: float | None

    @property
    def done(self) -> bool:
        """Whether the asked change is there."""
        return not self.undone

    @property
    def kept(self) -> bool:
        """Whether everything else is as it was."""
        return not self.lost

    @property
    def whole(self) -> bool:
        """Both."""
        return self.done and self.kept


def score_edit(edit: Edit, source: NDArray[np.uint8], result: NDArray[np.uint8]) -> EditReport:
    """Check a picture, uint8 (S, S, 3), against the edit it was to be of `source`, likewise. Others: ValueError."""
    if source.shape != result.shape:
        raise ValueError(f"The source is {source.shape} and the result {result.shape}; they must be alike.")
    return checked_edit(edit, look(result), untouched_psnr(edit, source, result))


def checked_edit(edit: Edit, sight: Sight, untouched: float | None) -> EditReport:
    """Check what was seen in a result."""
    judge = _Judge(edit, sight)
    judge.judge()
    return EditReport(
        edit=edit, sight=sight, undone=tuple(judge.undone), lost=tuple(judge.lost), untouched=untouched
    )


def untouched_psnr(edit: Edit, source: NDArray[np.uint8], result: NDArray[np.uint8]) -> float | None:
    """PSNR in dB between source and result over the pixels that the edit has no business with."""
    mask = untouched_region(edit, len(source))
    if mask.sum() < LEAST_UNTOUCHED * (len(source) / 256) ** 2:
        return None
    error = np.mean((source[mask].astype(np.float64) - result[mask]) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / float(error))


def untouched_region(edit: Edit, size: int) -> NDArray[np.bool_]:
    """(S, S), True where the true pictures before and after are the same, also all around."""
    before, after = render(pack([edit.source, edit.target]), size).numpy()
    changed = (np.abs(before - after) > 1e-3).any(0)
    reach = max(round(MARGIN * size / 256), 1)
    return ndimage.distance_transform_edt(~changed) > reach if changed.any() else ~changed


class _Judge:
    """One result under examination: which found things are accounted for, and what is wrong."""

    def __init__(self, edit: Edit, sight: Sight):
        self.edit = edit
        self.sight = sight
        self.left = list(sight.things)
        self.undone: list[str] = []
        self.lost: list[str] = []

    def judge(self) -> None:
        """Account for what was seen: first what is to be in its place, then the asked change, then the rest."""
        edit = self.edit
        self._ground()
        for thing in self._unchanged():
            found = self._take_near(thing)
            self.lost += [f"no {_named(thing)} in its place"] if found is None else _differences(thing, found)
        if edit.kind in ("recolour", "reshape", "fill"):
            self._changed_in_place()
        elif edit.kind == "remove":
            self._removed()
        elif edit.kind in ("move", "add"):
            self._placed()
        self.lost += [f"extra {_seen(thing)}" for thing in self.left]

    def _ground(self) -> None:
        wanted = self.edit.target.ground.name or NEUTRAL
        if self.sight.ground != wanted:
            wrong = self.undone if self.edit.kind == "ground" else self.lost
            wrong.append(f"ground {self.sight.ground or self.sight.ground_rgb}, not {wanted}")

    def _unchanged(self) -> Iterator[Thing]:
        """The things that are the same before and after."""
        return (thing for thing in self.edit.target.things if thing in self.edit.source.things)

    def _take_near(self, thing: Thing) -> Found | None:
        """The found thing at a thing's place, no longer left then."""
        near = [found for found in self.left if _distance(found, thing) <= STRAYING]
        if not near:
            return None
        nearest = min(near, key=lambda found: _distance(found, thing))
        self.left.remove(nearest)
        return nearest

    def _changed_in_place(self) -> None:
        asked = {"recolour": "colour", "reshape": "shape", "fill": "fill"}[self.edit.kind]
        for thing in _group(self.edit.target, self.edit.after):
            found = self._take_near(thing)
            if found is None:
                self.undone.append(f"no {_named(thing)} in its place")
                continue
            if getattr(found, asked) != getattr(thing, asked):
                self.undone.append(f"{_seen(found)}, not {getattr(thing, asked)}")
            self.lost += _differences(thing, found, but=asked)

    def _removed(self) -> None:
        gone = _group(self.edit.source, self.edit.before)
        for found in list(self.left):
            near = any(_distance(found, thing) <= max(thing.radius, STRAYING) for thing in gone)
            if near or (found.colour, found.shape) == self.edit.before:
                self.left.remove(found)
                self.undone.append(f"{_seen(found)} is still there")

    def _placed(self) -> None:
        """A moved or added group: of its kind, as many as it should be, and where it should be."""
        things = _group(self.edit.target, self.edit.after)
        mine = [found for found in self.left if (found.colour, found.shape) == self.edit.after]
        attempts = [found for found in self.left if found not in mine and _resembles(found, things[0])]
        of_group = mine + attempts[: max(len(things) - len(mine), 0)]
        self.left = [found for found in self.left if found not in of_group]
        moved = self.edit.kind == "move"
        # What a moved group looks like was not to change; what an added one looks like was asked for.
        looks = self.lost if moved else self.undone
        if len(mine) != len(things):
            looks.append(f"{len(mine)} of {len(things)} {_named(things[0])}")
        for found in mine:
            looks += _differences(things[0], found)
        self._stands([(found.x, found.y) for found in of_group])

    def _stands(self, centres: Sequence[Point]) -> None:
        if not centres:
            self.undone.append(f"no {' '.join(self.edit.after or ())}")
        if self.edit.place and not stands_at(centres, self.edit.place):
            self.undone.append(f"not {self.edit.place}")
        if self.edit.relation:
            name, other = self.edit.relation
            theirs = [(thing.x, thing.y) for thing in _group(self.edit.target, other)]
            if not stands(centres, name, theirs):
                self.undone.append(f"not {name} the {' '.join(other)}")


def _group(scene: Scene, pair: Pair | None) -> tuple[Thing, ...]:
    return group_of(scene, pair) if pair else ()


def _distance(found: Found, thing: Thing) -> float:
    return math.hypot(found.x - thing.x, found.y - thing.y)


def _resembles(found: Found, thing: Thing) -> bool:
    return found.colour == thing.colour or found.shape == thing.shape


def _differences(thing: Thing, found: Found, but: str = "") -> list[str]:
    """In what a found thing is not as it should be."""
    names = [name for name in ("colour", "shape", "fill", "size") if name != but]
    wrong = [name for name in names if getattr(found, name) != getattr(thing, name)]
    return [f"{_named(thing)}: {_seen(found)}"] if wrong else []


def _named(thing: Thing) -> str:
    return f"{thing.size} {thing.fill} {' '.join(pair_of(thing))}"


def _seen(thing: Found) -> str:
    return (
        f"{thing.size} {thing.fill or 'half-filled'} {thing.colour or thing.rgb} {thing.shape or 'shapeless'}"
    )
