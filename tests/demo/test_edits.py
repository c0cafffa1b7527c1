"""Edits change what they say and nothing else, hold nothing withheld in training, and are said without ambiguity."""

import random
import re
from collections import Counter

import pytest

from kandinsky5.demo import instruction_words as asked
from kandinsky5.demo import place_words
from kandinsky5.demo import vocabulary as words
from kandinsky5.demo.edits import KINDS, Edit, draw_edit, group_of, pair_of
from kandinsky5.demo.instructions import instruct, plain_instruction
from kandinsky5.demo.layout import RELATIONS, position_of
from kandinsky5.demo.palette import COLOURS, MIN_CONTRAST, lab_distance
from kandinsky5.demo.standing import stands, stands_at
from kandinsky5.demo.world import MAX_THINGS, WITHHELD, Scene, Thing, fills_of, is_withheld

from .test_world import centres_apart

EDITS = 1400


def drawn(split: str, seed: int, n: int = EDITS) -> list[Edit]:
    rng = random.Random(seed)
    return [draw_edit(rng, split=split) for _ in range(n)]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def train() -> list[Edit]:
    return drawn("train", 21)


@pytest.fixture(scope="module")
def withheld() -> list[Edit]:
    return drawn("withheld", 22)


@pytest.fixture(scope="module", params=["train", "withheld"])
def edits(request: pytest.FixtureRequest) -> list[Edit]:
    return request.getfixturevalue(request.param)


def changed_fields(before: Thing, after: Thing) -> set[str]:
    return {name for name in Thing.__dataclass_fields__ if getattr(before, name) != getattr(after, name)}


CHANGES = {"recolour": {"colour"}, "reshape": {"shape", "angle"}, "move": {"x", "y"}, "fill": {"fill"}}


def test_only_what_is_asked_changes(edits: list[Edit]) -> None:
    for edit in edits:
        source, target = edit.source, edit.target
        assert (source.ground != target.ground) == (edit.kind == "ground")
        if edit.kind == "ground":
            assert source.things == target.things
        elif edit.kind == "remove":
            gone = group_of(source, edit.before or ("", ""))
            assert gone
            assert target.things == tuple(thing for thing in source.things if thing not in gone)
        elif edit.kind == "add":
            assert target.things[: len(source.things)] == source.things
            assert {pair_of(thing) for thing in target.things[len(source.things) :]} == {edit.after}
        else:
            changed = [pair for pair in zip(source.things, target.things, strict=True) if pair[0] != pair[1]]
            assert [before for before, _ in changed] == list(group_of(source, edit.before or ("", "")))
            assert [after for _, after in changed] == list(group_of(target, edit.after or ("", "")))
            for before, after in changed:
                assert changed_fields(before, after) <= CHANGES[edit.kind]


def test_targets_are_scenes_of_the_world(edits: list[Edit]) -> None:
    for edit in edits:
        scene = edit.target
        assert 1 <= len(scene.things) <= MAX_THINGS
        assert len(scene.groups()) <= 4
        centres_apart(scene)
        for group in scene.groups():
            assert len({(t.size, t.fill, t.radius, t.angle) for t in group}) == 1, "pairs stay apart"
            assert group[0].fill in fills_of(group[0].shape, group[0].size)
            assert lab_distance(COLOURS[group[0].colour], scene.ground.rgb) >= MIN_CONTRAST


def middle_of(scene: Scene, pair: tuple[str, str] | None) -> list[tuple[float, float]]:
    return [(thing.x, thing.y) for thing in group_of(scene, pair or ("", ""))]


def test_places_and_relations_hold_afterwards_and_did_not_before(edits: list[Edit]) -> None:
    for edit in edits:
        there = middle_of(edit.target, edit.after)
        if edit.place:
            assert position_of(there) == edit.place
            assert stands_at(there, edit.place)
        if edit.relation:
            name, other = edit.relation
            assert other != edit.after
            assert RELATIONS[name].holds(there, middle_of(edit.target, other))
        if edit.kind == "move":
            here = middle_of(edit.source, edit.before)
            assert (edit.place is None) != (edit.relation is None)
            assert not (edit.place and stands_at(here, edit.place))
            if edit.relation:
                assert not stands(here, edit.relation[0], middle_of(edit.source, edit.relation[1]))


def test_training_edits_hold_nothing_withheld(train: list[Edit]) -> None:
    assert not any(is_withheld(edit.source) or is_withheld(edit.target) for edit in train)


def test_withheld_edits_change_withheld_pairs(withheld: list[Edit]) -> None:
    for edit in withheld:
        concerned = edit.after or edit.before
        if concerned is not None:
            assert concerned in WITHHELD
        assert is_withheld(edit.target if edit.kind in ("recolour", "reshape", "add") else edit.source)


def test_every_kind_is_drawn_as_often_as_it_says(train: list[Edit]) -> None:
    counts, whole = Counter(edit.kind for edit in train), sum(KINDS.values())
    for kind, weight in KINDS.items():
        assert counts[kind] / len(train) == pytest.approx(weight / whole, abs=0.04)
    assert {edit.place for edit in train} >= set(place_words.POSITION_WORDS)
    assert {edit.relation[0] for edit in train if edit.relation} == set(RELATIONS)


def test_a_kind_or_split_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="paint"):
        draw_edit(random.Random(0), kind="paint")
    with pytest.raises(ValueError, match="test"):
        draw_edit(random.Random(0), split="test")  # type: ignore[arg-type]


def test_the_same_seed_draws_and_says_the_same() -> None:
    assert drawn("train", 5, 20) == drawn("train", 5, 20)
    assert drawn("train", 5, 20) != drawn("train", 6, 20)
    edits = drawn("train", 5, 20)
    said = [[instruct(edit, random.Random(seed)) for edit in edits] for seed in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


# --- instructions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said(train: list[Edit]) -> list[tuple[Edit, str]]:
    rng = random.Random(23)
    return [(edit, instruct(edit, rng)) for edit in train]


def names(text: str, phrases: tuple[str, ...]) -> bool:
    return any(
        re.search(rf"(?<![\w-]){re.escape(phrase.lower())}(?![\w-])", text.lower()) for phrase in phrases
    )


def shape_words(shape: str) -> tuple[str, ...]:
    return tuple(word for pair in words.SHAPE_WORDS[shape].items() for word in pair)


def test_an_instruction_says_all_that_the_edit_needs(said: list[tuple[Edit, str]]) -> None:
    for edit, text in said:
        if edit.kind in ("recolour", "add"):
            assert names(text, words.COLOUR_WORDS[(edit.after or ("", ""))[0]]), text
        if edit.kind in ("reshape", "add"):
            assert names(text, shape_words((edit.after or ("", ""))[1])), text
        if edit.kind == "ground":
            assert names(text, words.GROUND_WORDS[str(edit.target.ground.name)]), text
        if edit.kind == "fill":
            fill = group_of(edit.target, edit.after or ("", ""))[0].fill
            also = {"outlined": ("outline", "outlines"), "striped": ("stripes",), "solid": ("fill",)}[fill]
            assert names(text, words.FILL_WORDS[fill] + also), text
        if edit.place:
            assert names(
                text, place_words.POSITION_WORDS[edit.place] + asked.TO_POSITION_WORDS[edit.place]
            ), text
        if edit.relation:
            assert names(text, place_words.RELATION_WORDS[edit.relation[0]]), text
        if edit.kind == "add":
            new = group_of(edit.target, edit.after or ("", ""))
            assert len(new) == 1 or names(text, words.COUNT_WORDS[len(new)])
            assert new[0].size == "medium" or names(text, words.SIZE_WORDS[new[0].size]), text


def test_the_changed_group_is_named_by_words_that_fit_no_other(said: list[tuple[Edit, str]]) -> None:
    for edit, text in said:
        for pair in filter(None, (edit.before, edit.relation[1] if edit.relation else None)):
            others = {pair_of(thing) for thing in edit.source.things} - {pair}
            colour = names(text, words.COLOUR_WORDS[pair[0]])
            shape = names(text, shape_words(pair[1]))
            assert colour or shape, text
            assert colour or pair[1] not in {shape for _, shape in others}, text
            assert shape or pair[0] not in {colour for colour, _ in others}, text


def test_every_form_is_used_and_filled_in(said: list[tuple[Edit, str]]) -> None:
    texts = [text.lower() for _, text in said]
    for forms in asked.EDITS.values():
        for form in forms:
            pattern = ".+".join(re.escape(part.lower()) for part in re.split(r"\{\w+\}", form))
            assert any(re.search(pattern, text) for text in texts), form
    for phrase in (*asked.EDIT_OPENINGS, *asked.EDIT_CLOSINGS):
        assert any(phrase.lower() in text for text in texts), phrase
    assert not any(re.search(r"[{}]|  | ,", text) for text in texts)
    assert len(set(texts)) > 0.9 * len(texts)


@pytest.mark.parametrize("opening", asked.EDIT_OPENINGS)
def test_only_imperatives_are_opened(opening: str, said: list[tuple[Edit, str]]) -> None:
    """After "could you" comes a verb."""
    verbs = {form.split()[0] for forms in asked.EDITS.values() for form in forms} - {
        *("{it}", "I", "there", "the", "{ground}")
    }
    after = [text[len(opening) + 1 :] for _, text in said if text.lower().startswith(f"{opening.lower()} ")]
    assert after
    assert all(rest.split()[0].lower() in verbs for rest in after)


def test_the_plainest_instruction(train: list[Edit]) -> None:
    first = {
        edit.kind: plain_instruction(edit)
        for edit in reversed(train)
        if edit.kind not in ("move", "add") or edit.place
    }
    assert re.fullmatch(r"make the \w+ [a-z-]+ \w+", first["recolour"])
    assert re.fullmatch(r"turn the \w+ [a-z-]+ into (an? )?[a-z-]+", first["reshape"])
    assert re.fullmatch(r"move the \w+ [a-z-]+ to the [a-z ]+", first["move"])
    assert re.fullmatch(r"remove the \w+ [a-z-]+", first["remove"])
    assert re.match(r"add (an?|two|three) ", first["add"])
    assert re.fullmatch(r"make the background [a-z ]+", first["ground"])
    assert re.fullmatch(r"make the \w+ [a-z-]+ (solid|outlined|striped)", first["fill"])
