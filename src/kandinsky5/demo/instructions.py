"""What is said to have a scene edited: instructions in many phrasings, each of them enough to carry the edit out.

Comes in: an edit, and a random generator for the choice of words. Goes out: a sentence, whose meaning is the edit. A
group is named so that the source has no other of that name. `vocabulary`, `place_words` and `instruction_words` hold
the words and the forms. Knows nothing of pixels, or of how edits are drawn.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from kandinsky5.demo import instruction_words as asked
from kandinsky5.demo import place_words
from kandinsky5.demo import vocabulary as words
from kandinsky5.demo.claims import Group
from kandinsky5.demo.edits import Edit, Pair, group_of
from kandinsky5.demo.phrasing import mention, mostly_first, one_of, plain_mention, with_article
from kandinsky5.demo.world import Scene, Thing

__all__ = ["instruct", "plain_instruction"]

_T = TypeVar("_T")

_SHAPES = {
    shape: tuple(pair for pair in forms.items() if pair[0] != "stripe")
    for shape, forms in words.SHAPE_WORDS.items()
}
"""Names of shapes, singular and plural; turning circles into stripes might mean their fill."""

_NOT_IMPERATIVE = ("{it} ", "I ", "there ", "the ", "{ground} ")
"""How forms begin before which "please" or "could you" cannot stand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Named:
    """A group of the source in words, with its article: "the red circles"."""

    text: str
    several: bool


def instruct(edit: Edit, rng: random.Random) -> str:
    """An instruction for an edit. The same state of `rng` gives the same one."""
    form = mostly_first(rng, asked.EDITS[_form_of(edit)], 0.25)
    text = form.format(**_gaps(edit, rng))
    if not form.startswith(_NOT_IMPERATIVE) and rng.random() < 0.25:
        text = f"{one_of(rng, asked.EDIT_OPENINGS)} {text}"
    if rng.random() < 0.15:
        text += f", {one_of(rng, asked.EDIT_CLOSINGS)}"
    draw = rng.random()
    if draw < 0.5:
        text = text[0].upper() + text[1:]
    elif draw < 0.9:
        text = text.lower()
    return text + "." if rng.random() < 0.3 else text


def plain_instruction(edit: Edit) -> str:
    """The plainest instruction: the first of all words."""
    return asked.EDITS[_form_of(edit)][0].format(**_gaps(edit, None))


def _form_of(edit: Edit) -> str:
    if edit.kind == "move":
        return "move to" if edit.place else "move beside"
    if edit.kind == "fill":
        return _changed(edit)[0].fill
    return edit.kind


def _changed(edit: Edit) -> tuple[Thing, ...]:
    """The changed things as they are afterwards."""
    return group_of(edit.target, edit.after) if edit.after else ()


def _gaps(edit: Edit, rng: random.Random | None) -> dict[str, str]:
    """What the forms of an edit may need; without a random generator in the plainest words."""
    gaps: dict[str, str] = {}
    if edit.kind == "ground":
        ground = _pick(words.GROUND_WORDS[str(edit.target.ground.name)], 0.65, rng)
        surface = words.GROUND_NOUNS[0] if rng is None else one_of(rng, words.GROUND_NOUNS)
        return {"ground": ground, "a_ground": with_article(ground), "surface": surface}
    if edit.before:
        named = _named(edit.source, edit.before, rng)
        gaps["it"] = named.text
        gaps["they"], gaps["are"] = ("they", "are") if named.several else ("it", "is")
    if edit.place:
        gaps["to"] = _pick(asked.TO_POSITION_WORDS[edit.place], 0.5, rng)
        gaps["place"] = _pick(place_words.POSITION_WORDS[edit.place], 0.4, rng)
    if edit.relation:
        name, other = edit.relation
        beside = _pick(place_words.RELATION_WORDS[name], 0.5, rng)
        gaps["beside"] = f"{beside} {_named(edit.source, other, rng).text}"
    things = _changed(edit)
    if things:
        gaps |= _afterwards(edit, things, rng)
    return gaps


def _afterwards(edit: Edit, things: Sequence[Thing], rng: random.Random | None) -> dict[str, str]:
    """What is to become of the group, or the group that is to be added."""
    thing, several = things[0], len(things) > 1
    singular, plural = _pick(_SHAPES[thing.shape], 0.72, rng)
    colour = _pick(words.COLOUR_WORDS[thing.colour], 0.8, rng)
    coloured = rng is not None and rng.random() < 0.25
    noun = (f"{colour} " if coloured else "") + (plural if several else singular)
    gaps = {
        "colour": colour,
        "the_same": f"{colour} ones" if several else f"{with_article(colour)} one",
        "what": noun if several else with_article(noun),
        "fill": _pick(words.FILL_WORDS[thing.fill], 0.6, rng),
        "outline": "outlines" if several else "outline",
        "an_outline": "outlines" if several else "an outline",
    }
    if edit.kind == "add":
        gaps["new"] = " ".join(part for part in (_new(edit, things, rng), _where(edit, rng)) if part)
    return gaps


def _new(edit: Edit, things: Sequence[Thing], rng: random.Random | None) -> str:
    """The words for an added group; small, large, and fills that are not solid are always said."""
    thing = things[0]
    said = Group(
        count=len(things),
        colour=thing.colour,
        shape=thing.shape,
        size=None if thing.size == "medium" else thing.size,
        fill=None if thing.fill == "solid" else thing.fill,
        position=None,
    )
    return (plain_mention(said) if rng is None else mention(said, True, rng, terse=False)).first


def _where(edit: Edit, rng: random.Random | None) -> str:
    """Where an added group is to stand, if that is asked."""
    if edit.place:
        return _pick(place_words.POSITION_WORDS[edit.place], 0.4, rng)
    if edit.relation:
        name, other = edit.relation
        return f"{_pick(place_words.RELATION_WORDS[name], 0.5, rng)} {_named(edit.source, other, rng).text}"
    return ""


def _named(scene: Scene, pair: Pair, rng: random.Random | None) -> _Named:
    """A group of a scene in words that fit no other of its groups."""
    things, groups = group_of(scene, pair), scene.groups()
    thing, several = things[0], len(things) > 1
    singular, plural = _pick(_SHAPES[thing.shape], 0.72, rng)
    noun = plural if several else singular
    colour = _pick(words.COLOUR_WORDS[thing.colour], 0.8, rng)
    if rng is None:
        return _Named(text=f"the {colour} {noun}", several=several)
    only_shape = sum(group[0].shape == thing.shape for group in groups) == 1
    only_colour = sum(group[0].colour == thing.colour for group in groups) == 1
    draw = rng.random()
    if only_shape and draw < 0.25:
        phrase = noun
    elif only_colour and draw > 0.93:
        phrase = f"{colour} {'ones' if several else 'one'}"
    else:
        phrase = f"{colour} {noun}"
    if thing.size != "medium" and rng.random() < 0.2:
        phrase = f"{mostly_first(rng, words.SIZE_WORDS[thing.size], 0.6)} {phrase}"
    return _Named(text=f"{_determiner(len(things), rng)} {phrase}", several=several)


def _determiner(count: int, rng: random.Random) -> str:
    draw = rng.random()
    if count == 1 or draw < 0.6:
        return "the"
    if draw < 0.75:
        return f"the {words.COUNT_WORDS[count][0]}"
    if draw < 0.9:
        return "all the"
    return "both" if count == 2 else f"all {words.COUNT_WORDS[count][0]}"


def _pick(options: Sequence[_T], chance: float, rng: random.Random | None) -> _T:
    """The first option, or by chance one of the others."""
    return options[0] if rng is None else mostly_first(rng, options, chance)
