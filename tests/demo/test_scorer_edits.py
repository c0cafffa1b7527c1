"""The scorer believes true edits, also blurred and noisy ones, and catches every planted fault."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from kandinsky5.demo.edit_scorer import EditReport, score_edit, untouched_psnr, untouched_region
from kandinsky5.demo.edits import KINDS, Edit, draw_edit, group_of, pair_of
from kandinsky5.demo.palette import COLOURS
from kandinsky5.demo.world import MAX_THINGS, Scene, Thing

from .test_scorer import (
    decoded,
    drawn,
    free,
    group_missing,
    is_new,
    joined_by,
    on_other_ground,
    recoloured,
    refilled,
    reshaped,
    resized,
    stands_out,
)

CASES = 4
"""Edits of each kind, half of them withheld ones."""


def edits(kind: str, seed: int = 0) -> Iterator[Edit]:
    rng = random.Random(f"{kind} {seed}")
    while True:
        yield draw_edit(rng, kind=kind)
        yield draw_edit(rng, kind=kind, split="withheld")


def scored(edit: Edit, result: Scene, *, noise: np.random.Generator | None = None) -> EditReport:
    source, after = drawn([edit.source, result])
    return score_edit(edit, source, after if noise is None else decoded(after, noise))


@pytest.mark.parametrize("kind", KINDS)
def test_true_edits_are_done_and_keep_the_rest(kind: str) -> None:
    """Of 700 edits 100 % were, clean and degraded."""
    noise, cases = np.random.default_rng(5), edits(kind)
    for _ in range(CASES):
        edit = next(cases)
        clean, degraded = scored(edit, edit.target), scored(edit, edit.target, noise=noise)
        assert (clean.undone, clean.lost) == ((), ())
        assert clean.untouched in (math.inf, None)
        assert (degraded.undone, degraded.lost) == ((), ())
        assert degraded.untouched is None or degraded.untouched > 30


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_that_nothing_was_done_to_keeps_everything(kind: str) -> None:
    cases = edits(kind)
    for _ in range(CASES):
        edit = next(cases)
        report = scored(edit, edit.source)
        assert report.undone
        assert not report.lost
        assert not report.whole


# Faults in things that nobody asked to change: the edit is done, something else is not kept.

Fault = Callable[[Edit, random.Random], Scene | None]
"""A wrong result, or None where this edit offers no room for it."""


def beside_the_edit(change: Callable[[Scene, random.Random], Scene | None]) -> Fault:
    """A change of the target that leaves the edited group, and everything the edit asks for, alone."""

    def fault(edit: Edit, rng: random.Random) -> Scene | None:
        wrong = change(edit.target, rng)
        if wrong is None:
            return None
        mine = group_of(edit.target, edit.after or ("", ""))
        alone = group_of(wrong, edit.after or ("", "")) == mine
        if edit.kind == "remove":
            # What stands where the removed things stood would count against the edit itself.
            old_places = group_of(edit.source, edit.before or ("", ""))
            alone = not any(
                pair_of(new) == edit.before or math.dist((new.x, new.y), (old.x, old.y)) < old.radius + 0.02
                for new in wrong.things
                for old in old_places
            )
        return wrong if alone else None

    return fault


def shifted(scene: Scene, rng: random.Random) -> Scene | None:
    """One thing a little elsewhere."""
    thing = rng.choice(scene.things)
    others = replace(scene, things=tuple(other for other in scene.things if other != thing))
    for _ in range(20):
        turn = rng.uniform(0, 2 * math.pi)
        x, y = thing.x + 0.08 * math.cos(turn), thing.y + 0.08 * math.sin(turn)
        if free(others, x, y, thing.radius):
            moved = replace(thing, x=x, y=y)
            return replace(scene, things=tuple(moved if t == thing else t for t in scene.things))
    return None


def joined_by_another(scene: Scene, rng: random.Random) -> Scene | None:
    colours = [colour for colour in COLOURS if stands_out(scene, colour) and is_new(scene, colour, "star")]
    if not colours:
        return None
    thing = Thing(
        shape="star",
        colour=rng.choice(colours),
        size="small",
        fill="solid",
        x=0,
        y=0,
        radius=0.07,
        angle=0.1,
    )
    return joined_by(scene, rng, thing)


BESIDE: dict[str, Fault] = {
    "another recoloured": beside_the_edit(recoloured),
    "another reshaped": beside_the_edit(reshaped),
    "another resized": beside_the_edit(resized),
    "another refilled": beside_the_edit(refilled),
    "another moved": beside_the_edit(shifted),
    "another missing": beside_the_edit(group_missing),
    "one too many": beside_the_edit(joined_by_another),
    "another ground": beside_the_edit(on_other_ground),
}


def planted(kind: str, fault: Fault) -> Iterator[tuple[Edit, Scene]]:
    rng = random.Random(7)
    for edit in edits(kind, seed=1):
        wrong = fault(edit, rng)
        if wrong is not None:
            yield edit, wrong


@pytest.mark.parametrize(
    ("name", "kind"),
    # Another ground is what a change of ground asks for.
    [(name, kind) for name in BESIDE for kind in KINDS if (name, kind) != ("another ground", "ground")],
)
def test_what_else_changed_is_caught(name: str, kind: str) -> None:
    """Nothing is said against the edit itself."""
    cases = planted(kind, BESIDE[name])
    for number in range(2):
        edit, wrong = next(cases)
        report = scored(edit, wrong, noise=np.random.default_rng(3) if number else None)
        assert not report.undone, wrong
        assert report.lost, wrong


# Faults in what was asked for.


def another_change(edit: Edit, rng: random.Random) -> Scene | None:
    """The same thing changed, but not to what was asked for."""
    if edit.kind == "ground":
        wrong = on_other_ground(edit.source, rng)
        return wrong if wrong is not None and wrong.ground != edit.target.ground else None
    pair = edit.before or ("", "")
    if len(group_of(edit.source, pair)) > 1:
        return None
    change = {"recolour": recoloured, "reshape": reshaped, "fill": refilled}[edit.kind]
    for _ in range(20):
        wrong = change(edit.source, rng)
        asked = group_of(edit.target, edit.after or ("", ""))[0]
        if wrong is None or group_of(wrong, pair) == group_of(edit.source, pair):
            continue
        if not any(
            (t.colour, t.shape, t.fill) == (asked.colour, asked.shape, asked.fill) for t in wrong.things
        ):
            return wrong
    return None


def in_part(edit: Edit, rng: random.Random) -> Scene | None:
    """One of a group as it was before."""
    before, after = (
        group_of(edit.source, edit.before or ("", "")),
        group_of(edit.target, edit.after or ("", "")),
    )
    if len(before) < 2 or edit.kind not in ("recolour", "reshape", "fill"):
        return None
    things = [before[0] if thing == after[0] else thing for thing in edit.target.things]
    return replace(edit.target, things=tuple(things))


def the_wrong_one(edit: Edit, rng: random.Random) -> Scene | None:
    """Another group than the one to be removed is."""
    others = [pair for pair in {pair_of(t) for t in edit.source.things} if pair != edit.before]
    pair = rng.choice(sorted(others))
    return replace(edit.source, things=tuple(t for t in edit.source.things if pair_of(t) != pair))


def left_behind(edit: Edit, rng: random.Random) -> Scene | None:
    """One of the things to be removed is still there."""
    gone = group_of(edit.source, edit.before or ("", ""))
    return replace(edit.target, things=(*edit.target.things, gone[0])) if len(gone) > 1 else None


def remnant(edit: Edit, rng: random.Random) -> Scene | None:
    """Something else stands where the removed thing was."""
    gone = group_of(edit.source, edit.before or ("", ""))
    colours = [c for c in COLOURS if stands_out(edit.target, c) and c != gone[0].colour]
    if len(gone) > 1 or not is_new(edit.target, colours[0], gone[0].shape):
        return None
    return replace(edit.target, things=(*edit.target.things, replace(gone[0], colour=colours[0])))


def elsewhere(edit: Edit, rng: random.Random) -> Scene | None:
    """The moved or added thing stands on the other side."""
    after = group_of(edit.target, edit.after or ("", ""))
    if len(after) > 1 or edit.place == "centre" or not (edit.place or edit.relation):
        return None
    thing = after[0]
    rest = replace(edit.target, things=tuple(t for t in edit.target.things if t != thing))
    x, y = 1 - thing.x, 1 - thing.y
    if edit.relation:
        other = group_of(edit.target, edit.relation[1])
        x = 2 * sum(t.x for t in other) / len(other) - thing.x
        y = 2 * sum(t.y for t in other) / len(other) - thing.y
    return (
        replace(rest, things=(*rest.things, replace(thing, x=x, y=y)))
        if free(rest, x, y, thing.radius)
        else None
    )


def of_another_colour(edit: Edit, rng: random.Random) -> Scene | None:
    """The added thing is not of the colour that was asked for."""
    after = group_of(edit.target, edit.after or ("", ""))
    colours = [c for c in COLOURS if stands_out(edit.source, c) and is_new(edit.target, c, after[0].shape)]
    things = [replace(t, colour=colours[0]) if t in after else t for t in edit.target.things]
    return replace(edit.target, things=tuple(things))


def one_short(edit: Edit, rng: random.Random) -> Scene | None:
    after = group_of(edit.target, edit.after or ("", ""))
    things = tuple(thing for thing in edit.target.things if thing != after[0])
    return replace(edit.target, things=things) if len(after) > 1 and not edit.place else None


ASKED: dict[str, tuple[tuple[str, ...], Fault, bool | None]] = {
    "another change": (("recolour", "reshape", "fill", "ground"), another_change, True),
    "in part": (("recolour", "reshape", "fill"), in_part, True),
    "the wrong one removed": (("remove",), the_wrong_one, False),
    "left behind": (("remove",), left_behind, True),
    "remnant": (("remove",), remnant, True),
    "elsewhere": (("move", "add"), elsewhere, True),
    "of another colour": (("add",), of_another_colour, True),
    "one short": (("add",), one_short, True),
}
"""Kinds, a wrong result, and whether everything else is still as it was."""


@pytest.mark.parametrize(("name", "kind"), [(n, kind) for n, (kinds, *_) in ASKED.items() for kind in kinds])
def test_what_was_not_done_is_caught(name: str, kind: str) -> None:
    _, fault, kept = ASKED[name]
    cases = planted(kind, fault)
    for number in range(3):
        edit, wrong = next(cases)
        report = scored(edit, wrong, noise=np.random.default_rng(3) if number % 2 else None)
        assert report.undone, wrong
        assert report.kept == kept, report.lost


def test_a_moved_thing_must_not_stay_as_well_or_be_lost() -> None:
    rng = random.Random(3)
    for _ in range(CASES):
        edit = draw_edit(rng, kind="move")
        twice = replace(
            edit.target, things=(*edit.target.things, group_of(edit.source, edit.before or ("", ""))[0])
        )
        if len(twice.things) <= MAX_THINGS:
            assert scored(edit, twice).lost
        gone = tuple(thing for thing in edit.target.things if pair_of(thing) != edit.after)
        report = scored(edit, replace(edit.target, things=gone))
        assert report.undone and report.lost


# The pixels that should not have been touched.


def noisy(picture: NDArray[np.uint8], where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    noise = np.random.default_rng(1).normal(0, 12, picture.shape) * where[..., None]
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_untouched_pixels_are_those_away_from_the_change(kind: str) -> None:
    cases = edits(kind, seed=2)
    measured = 0
    for _ in range(CASES):
        edit = next(cases)
        before, after = drawn([edit.source, edit.target])
        region = untouched_region(edit, 256)
        np.testing.assert_array_equal(before[region], after[region])
        if region.sum() < 200:
            continue
        measured += 1
        inside, outside = (
            untouched_psnr(edit, before, noisy(after, region)),
            untouched_psnr(edit, before, noisy(after, ~region)),
        )
        assert inside is not None and 24 < inside < 32, (
            "noise of 12 in 255 is 26.5 dB, less where it is clipped"
        )
        assert outside == math.inf
        changed = (before != after).any(-1)
        assert not (region & changed).any()
        assert kind == "ground" or region.sum() > 0.3 * (~changed).sum()
    assert measured


def test_nothing_is_measured_where_hardly_anything_is_untouched() -> None:
    cases = edits("ground")
    for _ in range(60):
        edit = next(cases)
        if all(thing.shape == "line" and thing.size == "small" for thing in edit.source.things):
            break
    else:
        things = tuple(replace(t, shape="line", radius=0.07, size="small") for t in edit.source.things)
        edit = replace(
            edit, source=replace(edit.source, things=things), target=replace(edit.target, things=things)
        )
    before, after = drawn([edit.source, edit.target])
    assert untouched_psnr(edit, before, after) is None


def test_pictures_of_two_sizes_are_refused() -> None:
    edit = next(edits("recolour"))
    before, after = drawn([edit.source], 64)[0], drawn([edit.target], 128)[0]
    with pytest.raises(ValueError, match="alike"):
        score_edit(edit, before, after)
