"""The withheld sets are what they say: nothing of them was drawn or said in training, and all of it can be drawn."""

import itertools
import random
import re
from collections import Counter
from dataclasses import astuple
from pathlib import Path

import pytest

from kandinsky5.demo import withheld, withheld_drawing
from kandinsky5.demo.captions import describe
from kandinsky5.demo.claims import Claims
from kandinsky5.demo.edits import KINDS
from kandinsky5.demo.layout import arrange, position_of
from kandinsky5.demo.palette import COLOURS, GROUNDS, MIN_CONTRAST, Ground, lab_distance, neutral
from kandinsky5.demo.withheld import (
    COMPOSITIONS,
    EDITS,
    Question,
    compositions,
    foreign_sentences,
    withheld_edits,
)
from kandinsky5.demo.world import (
    POSITIONS,
    RELATIONS,
    SIZES,
    WITHHELD,
    WITHHELD_SIDES,
    Scene,
    Thing,
    draw_scene,
    fills_of,
    is_withheld,
)

from .test_captions import check_true


def plainly(text: str) -> str:
    return re.sub(r"[.!?]+$", "", text.lower())


# --- compositions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return compositions()


def test_there_are_as_many_as_the_figures_are_of_and_no_two_alike(questions: list[Question]) -> None:
    assert len(questions) == COMPOSITIONS == 500
    assert len({question.text for question in questions}) == COMPOSITIONS
    assert Counter(question.part for question in questions) == {"pairs": 200, "relations": 200, "counts": 100}
    assert compositions(7) == questions[:7]


def check_withheld(part: str, scene: Scene, claims: Claims) -> None:
    check_true(claims, scene)
    assert is_withheld(scene)
    pairs = {(thing.colour, thing.shape) for thing in scene.things}
    if part == "relations":
        assert not pairs & WITHHELD
        shapes = [group.shape for group in claims.groups]
        said = {(shapes[a], name, shapes[b]) for a, name, b in claims.relations}
        assert said & WITHHELD_SIDES
    else:
        assert pairs <= WITHHELD
        assert (len(scene.groups()) == 1) == (part == "counts")


def test_compositions_are_withheld_and_their_claims_true(questions: list[Question]) -> None:
    for question in questions:
        assert question.scene
        check_withheld(question.part, question.scene, question.claims)


def test_other_compositions_and_edits_can_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command that drew these; what is read again is what was drawn, but for a millionth of the canvas."""
    withheld_drawing.main([str(tmp_path)])
    drawn = list(itertools.islice(withheld_drawing.drawn_compositions(), COMPOSITIONS))
    monkeypatch.setattr(withheld, "__file__", str(tmp_path / "withheld.py"))
    others = compositions()
    assert [(q.part, q.text, q.claims) for q in others] == [(part, c.text, c.claims) for part, _, c in drawn]
    for question, (part, scene, caption) in zip(others, drawn, strict=True):
        assert question.scene
        check_withheld(part, question.scene, caption.claims)
        for thing, exact in zip(question.scene.things, scene.things, strict=True):
            assert astuple(thing) == tuple(pytest.approx(v, abs=1e-6) for v in astuple(exact))
    edits = list(itertools.islice(withheld_drawing.drawn_edits(), EDITS))
    for question, (text, edit) in zip(withheld_edits(), edits, strict=True):
        found = question.edit
        assert question.text == text
        assert (found.kind, found.before, found.after, found.place, found.relation) == (
            *(edit.kind, edit.before, edit.after, edit.place, edit.relation),
        )
        for seen, exact in ((found.source, edit.source), (found.target, edit.target)):
            assert [astuple(thing)[:4] for thing in seen.things] == [astuple(t)[:4] for t in exact.things]


def test_compositions_have_up_to_four_kinds_and_counts_up_to_five(questions: list[Question]) -> None:
    assert {len(question.claims.groups) for question in questions} == {1, 2, 3, 4}
    assert {group.count for question in questions for group in question.claims.groups} == {1, 2, 3, 4, 5}
    alone = Counter(q.claims.groups[0].count for q in questions if q.part == "counts")
    assert alone == dict.fromkeys((1, 2, 3, 4, 5), 20)
    asked = Counter(name for q in questions for _, name, _ in q.claims.relations)
    assert min(asked[name] for name in RELATIONS) > 50


def test_training_never_says_a_withheld_composition(questions: list[Question]) -> None:
    rng = random.Random(1)
    said = {plainly(describe(draw_scene(rng), rng).text) for _ in range(4000)}
    assert not said & {plainly(question.text) for question in questions}


# --- sentences --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentences() -> list[Question]:
    return foreign_sentences()


def test_there_are_enough_sentences_and_none_twice(sentences: list[Question]) -> None:
    assert len(sentences) >= 100
    assert len({plainly(sentence.text) for sentence in sentences}) == len(sentences)


def test_some_sentences_are_spread_over_all(sentences: list[Question]) -> None:
    few = foreign_sentences(5)
    assert [sentences.index(one) for one in few] == [index * len(sentences) // 5 for index in range(5)]
    assert foreign_sentences(10_000) == sentences


def test_sentences_ask_for_what_the_world_has(sentences: list[Question]) -> None:
    for sentence in sentences:
        claims = sentence.claims
        assert 1 <= len(claims.groups) <= 4
        assert 1 <= sum(group.count for group in claims.groups) <= 5
        assert len({(group.colour, group.shape) for group in claims.groups}) == len(claims.groups)
        assert claims.ground in (None, *GROUNDS)
        for group in claims.groups:
            assert group.colour in COLOURS
            assert (group.fill or "solid") in fills_of(group.shape, group.size or "medium"), sentence.text
            assert group.position in (None, *POSITIONS)
            if claims.ground:
                assert lab_distance(COLOURS[group.colour], GROUNDS[claims.ground]) >= MIN_CONTRAST
        for a, name, b in claims.relations:
            assert a != b and max(a, b) < len(claims.groups)
            assert name in RELATIONS


def test_sentences_ask_for_everything(sentences: list[Question]) -> None:
    groups = [group for sentence in sentences for group in sentence.claims.groups]
    assert {group.colour for group in groups} == set(COLOURS)
    assert len({group.shape for group in groups}) == 8
    assert {group.size for group in groups} == {None, "small", "large"}
    assert {group.fill for group in groups} >= {None, "striped", "outlined"}
    assert {group.count for group in groups} == {1, 2, 3, 4, 5}
    assert {name for sentence in sentences for _, name, _ in sentence.claims.relations} == set(RELATIONS)
    assert sum(bool(sentence.claims.relations) for sentence in sentences) > 25
    assert sum(sentence.claims.ground is not None for sentence in sentences) > 10


def scene_of(claims: Claims, rng: random.Random) -> Scene:
    """A scene that a sentence is true of."""
    radii = [rng.uniform(*SIZES[group.size or "medium"]) for group in claims.groups]
    for _ in range(20_000):
        places = arrange(rng, [(group.count, r) for group, r in zip(claims.groups, radii, strict=True)])
        if places is None or not all(
            RELATIONS[n].holds(places[a], places[b]) for a, n, b in claims.relations
        ):
            continue
        if all(g.position in (None, position_of(p)) for g, p in zip(claims.groups, places, strict=True)):
            break
    else:
        raise AssertionError(f"nothing can be drawn for {claims}")
    things = tuple(
        Thing(
            shape=group.shape,
            colour=group.colour or "black",
            size=group.size or "medium",
            fill=group.fill or "solid",
            x=x,
            y=y,
            radius=radius,
            angle=0.0,
        )
        for group, radius, centres in zip(claims.groups, radii, places, strict=True)
        for x, y in centres
    )
    ground = neutral(0.5) if claims.ground is None else Ground(name=claims.ground, rgb=GROUNDS[claims.ground])
    return Scene(things=things, ground=ground)


def test_the_grammar_does_not_say_them(sentences: list[Question]) -> None:
    """Asked for captions of exactly such scenes. Of 30,000 a sentence, those that were one were taken out."""
    rng = random.Random(8)
    for sentence in sentences:
        scene = scene_of(sentence.claims, rng)
        captions = {plainly(describe(scene, rng).text) for _ in range(100)}
        assert plainly(sentence.text) not in captions


# --- edits ------------------------------------------------------------------------------------------------------------


def test_withheld_edits_are_withheld_and_of_every_kind() -> None:
    questions = withheld_edits()
    assert len(questions) == EDITS == 300
    counts = Counter(question.part for question in questions)
    assert set(counts) == set(KINDS)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert all(is_withheld(q.edit.source) or is_withheld(q.edit.target) for q in questions)
    assert withheld_edits(7) == questions[:7]
    assert len({question.text for question in questions}) > 0.9 * EDITS
