"""Captions are complete, true of their scenes, and come in many words."""

import random
import re
import time
from dataclasses import replace

import pytest

from kandinsky5.demo import openings, place_words
from kandinsky5.demo import vocabulary as words
from kandinsky5.demo.captions import WORD_LIMIT, Caption, Claims, describe, examples, names_a_shape, plain
from kandinsky5.demo.palette import Ground
from kandinsky5.demo.phrasing import USUAL
from kandinsky5.demo.world import (
    COLOURS,
    FILLS,
    GROUNDS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    draw_scene,
)

CAPTIONS = 30_000
GROUNDS_ARE = "|".join(set(words.GROUND_NOUNS))


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rng = random.Random(11)
    return [draw_scene(rng, split="withheld" if index % 4 == 0 else "train") for index in range(CAPTIONS)]


@pytest.fixture(scope="module")
def captions(scenes: list[Scene]) -> list[Caption]:
    rng = random.Random(12)
    return [describe(scene, rng) for scene in scenes]


def middle(group: tuple[Thing, ...]) -> tuple[float, float]:
    return sum(t.x for t in group) / len(group), sum(t.y for t in group) / len(group)


def check_true(claims: Claims, scene: Scene) -> None:
    """Every claim holds of the things' geometry; nothing here goes through the package's own predicates."""
    assert claims.ground == scene.ground.name
    groups = scene.groups()
    assert len(claims.groups) == len(groups), "complete"
    for said, group in zip(claims.groups, groups, strict=True):
        thing = group[0]
        assert (said.count, said.shape) == (len(group), thing.shape)
        assert said.colour in (thing.colour, None)
        assert said.size in (thing.size, None)
        assert said.fill == thing.fill or (said.fill is None and thing.fill == "solid")
        if said.position:
            x, y = middle(group)
            assert ("left" in said.position) == (x < 0.36)
            assert ("right" in said.position) == (x > 0.64)
            assert ("top" in said.position) == (y < 0.36)
            assert ("bottom" in said.position) == (y > 0.64)
    for a, name, b in claims.relations:
        (ax, ay), (bx, by) = middle(groups[a]), middle(groups[b])
        along = {"left of": bx - ax, "right of": ax - bx, "above": by - ay, "below": ay - by}[name]
        across = abs(by - ay) if name in ("left of", "right of") else abs(bx - ax)
        assert along > 0.17
        assert along > 1.9 * across


def test_every_claim_is_true(scenes: list[Scene], captions: list[Caption]) -> None:
    for scene, caption in zip(scenes, captions, strict=True):
        check_true(caption.claims, scene)
        check_true(plain(scene).claims, scene)


def holds_one_of(text: str, phrases: tuple[str, ...]) -> bool:
    return any(re.search(rf"(?<![\w-]){re.escape(phrase.lower())}(?![\w-])", text) for phrase in phrases)


def relation_phrases(name: str) -> tuple[str, ...]:
    near = place_words.RELATION_TO_IT[name]
    pronouns = tuple(p.format(it=it, its=its) for p in near for it, its in (("it", "its"), ("them", "their")))
    return place_words.RELATION_WORDS[name] + pronouns


def side_phrases(name: str) -> tuple[str, ...]:
    first, _ = place_words.SIDE_WORDS[name]
    return f"the {first} one is", f"the {first} shape is", f"the {first} thing is"


def test_the_text_says_what_is_claimed(captions: list[Caption]) -> None:
    for caption in captions:
        text = caption.text.lower()
        for group in caption.claims.groups:
            forms = words.SHAPE_WORDS[group.shape].items()
            assert holds_one_of(text, tuple(one if group.count == 1 else many for one, many in forms))
            assert group.count == 1 or holds_one_of(text, words.COUNT_WORDS[group.count])
            assert group.colour is None or holds_one_of(text, words.COLOUR_WORDS[group.colour])
            assert group.size is None or holds_one_of(text, words.SIZE_WORDS[group.size])
            if group.fill:
                assert holds_one_of(
                    text, (*words.FILL_WORDS[group.fill], "outline", "stripes", "with a striped pattern")
                )
            if group.position:
                assert holds_one_of(text, (*place_words.POSITION_WORDS[group.position], group.position))
        for _, name, _ in caption.claims.relations:
            said = relation_phrases(name) + place_words.ORDER_WORDS[name] + side_phrases(name)
            assert holds_one_of(text, said), text
        if caption.claims.ground:
            assert holds_one_of(text, words.GROUND_WORDS[caption.claims.ground])
        else:
            assert not re.search(rf"\b(on|against|in front of|use) an? [a-z -]*({GROUNDS_ARE})\b", text)
            assert not re.search(r"\bbackground\b", text), text


def red_circle_and_blue_square(*, sideways: bool) -> Scene:
    def at(shape: str, colour: str, place: float) -> Thing:
        x, y = (place, 0.5) if sideways else (0.5, place)
        return Thing(
            shape=shape, colour=colour, size="medium", fill="solid", x=x, y=y, radius=0.11, angle=0.0
        )

    things = (at("circle", "red", 0.25), at("square", "blue", 0.75))
    return Scene(things=things, ground=Ground(name="white", rgb=(255, 255, 255)))


NAMES = ("circle", "square")


def read_relation(text: str) -> tuple[int, str, int]:
    """A reader of its own for captions of the two-group scenes: (a, relation, b), 0 the circle and 1 the square."""
    nouns = [
        (match.start(), number)
        for number, shape in enumerate(NAMES)
        for match in re.finditer(rf"\b(?:{'|'.join(words.SHAPE_WORDS[shape])})\b", text)
    ]
    order = [number for _, number in sorted(nouns)]
    rows = {phrase: name for name in RELATIONS for phrase in place_words.ORDER_WORDS[name]}
    for phrase in sorted(rows, key=len, reverse=True):
        if phrase in text:
            return order[0], rows[phrase], order[1]
    for name in RELATIONS:
        first, second = place_words.SIDE_WORDS[name]
        if re.search(rf"\bthe {first} (?:one|shape|thing) is\b.*\bthe {second} (?:one|thing)\b", text):
            return order[0], name, order[1]
    phrases = {p.lower(): name for name in RELATIONS for p in relation_phrases(name)}
    pattern = "|".join(map(re.escape, sorted(phrases, key=len, reverse=True)))
    found = re.search(rf"\b(?:{pattern})\b", text)
    assert found, text
    phrase = found.group()
    ordinal = re.search(r"\bthe (second|latter|first|former)\b.*", text[: found.start()])
    if ordinal and re.match(r" the (second|latter|first|former)\b", text[found.end() :]):
        a, b = order[:2] if ordinal.group(1) in ("first", "former") else order[1::-1]
        return a, phrases[phrase], b
    before = [number for start, number in sorted(nouns) if start < found.start()]
    after = [number for start, number in sorted(nouns) if start > found.start()]
    if re.search(r"\b(it|its)\b", phrase):
        b = before[0]
        return 1 - b, phrases[phrase], b
    if not before:
        return 1 - after[0], phrases[phrase], after[0]
    return before[-1], phrases[phrase], after[0]


@pytest.mark.parametrize("sideways", [True, False])
def test_relations_read_the_right_way_round(sideways: bool) -> None:
    scene, rng = red_circle_and_blue_square(sideways=sideways), random.Random(13)
    forward, backward = ("left of", "right of") if sideways else ("above", "below")
    seen = {(0, forward, 1): 0, (1, backward, 0): 0}
    for _ in range(4000):
        caption = describe(scene, rng)
        if caption.claims.relations:
            assert read_relation(caption.text.lower()) == caption.claims.relations[0], caption.text
            seen[caption.claims.relations[0]] += 1
    total = sum(seen.values())
    assert total > 2500
    assert all(0.45 * total < n < 0.55 * total for n in seen.values()), "both directions equally often"


def test_the_plainest_sentence() -> None:
    scene = red_circle_and_blue_square(sideways=True)
    assert plain(scene).text == "a red circle to the left of a blue square on a white background"
    assert plain(scene).claims.relations == ((0, "left of", 1),)


def test_everything_the_world_has_is_said(captions: list[Caption]) -> None:
    groups = [group for caption in captions for group in caption.claims.groups]
    assert {g.shape for g in groups} == set(SHAPES)
    assert {g.colour for g in groups} == {*COLOURS, None}
    assert {g.size for g in groups} == {*SIZES, None}
    assert {g.fill for g in groups} == {*FILLS, None}
    assert {g.position for g in groups} == {*POSITIONS, None}
    assert {g.count for g in groups} == {1, 2, 3, 4, 5}
    assert {c.claims.ground for c in captions} == {*GROUNDS, None}
    assert {name for c in captions for _, name, _ in c.claims.relations} == set(RELATIONS)


def test_the_vocabulary_has_words_for_the_world_and_all_of_them_are_used(captions: list[Caption]) -> None:
    tables = {
        "colours": (words.COLOUR_WORDS, COLOURS),
        "sizes": (words.SIZE_WORDS, SIZES),
        "fills": (words.FILL_WORDS, FILLS),
        "grounds": (words.GROUND_WORDS, GROUNDS),
        "relations": (place_words.RELATION_WORDS, RELATIONS),
        "positions": (place_words.POSITION_WORDS, POSITIONS),
        "shapes": (words.SHAPE_WORDS, SHAPES),
    }
    everything = "\n".join(caption.text.lower() for caption in captions)
    for table, world in tables.values():
        assert set(table) == set(world)
        for phrases in table.values():
            for phrase in phrases:
                assert phrase.lower() in everything, phrase
    for opening in (*openings.OPENINGS, *openings.CLOSINGS):
        assert opening.lower() in everything, opening
    for frame in (*openings.FRAMES, *openings.CLAUSE_FRAMES, *openings.PHRASE_FRAMES):
        before, after = frame.lower().split("{text}")
        assert re.search(rf"^{re.escape(before)}.*{re.escape(after)}", everything, re.MULTILINE), frame
    for phrases in place_words.ORDER_WORDS.values():
        assert any(phrase in everything for phrase in phrases)


def test_what_stands_around_a_description_says_nothing_of_it() -> None:
    said = (
        openings.OPENINGS
        + openings.CLOSINGS
        + openings.FRAMES
        + openings.CLAUSE_FRAMES
        + openings.PHRASE_FRAMES
    )
    tables = (
        *words.COLOUR_WORDS.values(),
        *words.SIZE_WORDS.values(),
        *words.FILL_WORDS.values(),
        *place_words.RELATION_WORDS.values(),
        *place_words.POSITION_WORDS.values(),
        *(table for count, table in words.COUNT_WORDS.items() if count > 1),
    )
    for text in said:
        assert not names_a_shape(text), text
        assert not any(holds_one_of(text.lower(), table) for table in tables), text
    assert len(set(openings.OPENINGS)) == len(openings.OPENINGS) >= 90
    assert len(set(openings.CLOSINGS)) == len(openings.CLOSINGS) >= 50


def test_no_word_means_two_things() -> None:
    """Of colours of things, shapes, sizes, fills, counts and relations, each word stands in one row of one table."""
    rows = [
        *words.COLOUR_WORDS.values(),
        *(tuple(name for pair in forms.items() for name in pair) for forms in words.SHAPE_WORDS.values()),
        *words.SIZE_WORDS.values(),
        *words.FILL_WORDS.values(),
        *words.COUNT_WORDS.values(),
        *place_words.RELATION_WORDS.values(),
        *place_words.POSITION_WORDS.values(),
    ]
    every = [phrase for row in rows for phrase in row]
    assert len(set(every)) == len(every)
    grounds = [phrase for row in words.GROUND_WORDS.values() for phrase in row]
    assert len(set(grounds)) == len(grounds)
    for name, forms in words.COLOUR_WORDS.items():
        for form in set(forms) & set(grounds):
            assert form in words.GROUND_WORDS[name], "a colour that things and grounds share"


def test_half_of_the_captions_are_in_usual_words() -> None:
    """Words beyond the first few of their rows are heard in every second caption, and not in the others."""
    rare = re.compile(
        "|".join(
            rf"(?<![\w-]){re.escape(phrase.lower())}(?![\w-])"
            for table in (words.COLOUR_WORDS, words.SIZE_WORDS, place_words.RELATION_WORDS)
            for row in table.values()
            for phrase in row[USUAL:]
        )
    )
    rng = random.Random(15)
    scenes = [draw_scene(rng) for _ in range(1500)]
    usual = sum(not rare.search(describe(scene, rng).text.lower()) for scene in scenes) / len(scenes)
    assert 0.6 < usual < 0.85, "most of the usual half, and those of the others that do without"


def test_capitals_and_titles_have_their_shares(captions: list[Caption]) -> None:
    capitals = sum(caption.text.isupper() for caption in captions)
    titles = sum(
        all(not word[0].islower() for word in caption.text.split()) and not caption.text.isupper()
        for caption in captions
    )
    assert 0.04 < capitals / len(captions) < 0.06
    assert 0.02 < titles / len(captions) < 0.04


def test_a_colour_that_all_share_may_be_said_once() -> None:
    scene = red_circle_and_blue_square(sideways=True)
    alike = replace(scene, things=tuple(replace(thing, colour="red") for thing in scene.things))
    rng = random.Random(14)
    captions = [describe(alike, rng) for _ in range(600)]
    once = [caption for caption in captions if holds_one_of(caption.text.lower(), both_in("red"))]
    assert 60 < len(once) < 300
    for caption in once:
        assert [group.colour for group in caption.claims.groups] == ["red", "red"]
    assert not any(
        holds_one_of(describe(scene, rng).text.lower(), both_in("red") + both_in("blue")) for _ in range(300)
    )


def both_in(colour: str) -> tuple[str, ...]:
    return tuple(f"both {word}" for word in words.COLOUR_WORDS[colour])


def test_questions_end_as_questions(captions: list[Caption]) -> None:
    asked = [c.text for c in captions if c.text.lower().startswith(openings.QUESTIONS)]
    marked = sum(text.endswith("?") for text in asked) / len(asked)
    assert len(asked) > 100 and 0.3 < marked < 0.9
    assert not any(re.search(r"[?!.][.!?]$", caption.text) for caption in captions)


def test_captions_vary_and_stay_short(captions: list[Caption]) -> None:
    assert len({caption.text for caption in captions[:2000]}) > 0.95 * 2000
    lengths = sorted(len(caption.text.split()) for caption in captions)
    assert lengths[-1] <= WORD_LIMIT
    assert lengths[len(lengths) // 20] >= 5
    assert lengths[len(lengths) * 19 // 20] <= 38
    assert not any("  " in caption.text or " ," in caption.text for caption in captions)
    assert not any(re.search(r"\b(no|not|without|never)\b", caption.text.lower()) for caption in captions)


def test_shares_of_what_is_said(scenes: list[Scene], captions: list[Caption]) -> None:
    def share(values: list[bool]) -> float:
        return sum(values) / len(values)

    several = [c for s, c in zip(scenes, captions, strict=True) if len(s.groups()) > 1]
    assert 0.65 < share([bool(c.claims.relations) for c in several]) < 0.8
    assert all(len(c.claims.relations) <= 2 for c in several)
    assert 0.22 < share([any(g.position for g in c.claims.groups) for c in captions]) < 0.38
    pairs = [
        (said, g[0])
        for s, c in zip(scenes, captions, strict=True)
        for said, g in zip(c.claims.groups, s.groups(), strict=True)
    ]
    assert 0.02 < share([said.colour is None for said, _ in pairs]) < 0.06
    assert 0.86 < share([said.size is not None for said, t in pairs if t.size != "medium"]) < 0.94
    assert 0.07 < share([said.size is not None for said, t in pairs if t.size == "medium"]) < 0.13


def test_the_same_seed_says_the_same(scenes: list[Scene]) -> None:
    first, second = ([describe(s, random.Random(seed)) for s in scenes[:50]] for seed in (1, 1))
    assert first == second
    assert first != [describe(s, random.Random(2)) for s in scenes[:50]]


def test_examples_are_within_the_world_and_of_a_seed() -> None:
    shown = examples(6, 3)
    assert len(set(shown)) == 6
    assert shown == examples(6, 3)
    assert shown != examples(6, 4)
    assert all(names_a_shape(prompt) for prompt in shown)


@pytest.mark.parametrize(
    ("prompt", "within"),
    [
        ("a red circle", True),
        ("SEVEN BOXES in a row", True),
        ("a half circle", True),
        ("a cat on a skateboard", False),
        ("a starling, outlined", False),
        ("", False),
    ],
)
def test_a_prompt_outside_the_world_is_recognised(prompt: str, within: bool) -> None:
    assert names_a_shape(prompt) is within


def test_captioning_keeps_up_with_training(scenes: list[Scene]) -> None:
    rng = random.Random(0)
    start = time.process_time()
    for scene in scenes[:500]:
        describe(scene, rng)
    assert (time.process_time() - start) / 500 < 0.5e-3
