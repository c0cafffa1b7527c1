"""From what is to be said to how: the grammar of the captions.

Comes in: claims about groups, relations, a ground, and a random generator for the choice of words. Goes out: a text.
`mention` finds words for a group, `listed` makes a body of several, one after another; `weaving` makes one around a
relation, and what stands around a body is for `frames` to add. A `terse` text does without articles and verbs. Knows
nothing of geometry or pixels.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from kandinsky5.demo import place_words
from kandinsky5.demo import vocabulary as words
from kandinsky5.demo.claims import Group, Related

_T = TypeVar("_T")

_SINGULARS = tuple(place_words.VERBS)


USUAL = 3
"""So many words of a row are the usual ones."""


class Usual:
    """A random generator with which only usual words and forms are chosen."""

    __slots__ = ("random", "shuffle")

    def __init__(self, rng: random.Random):
        self.random = rng.random
        self.shuffle = rng.shuffle


Chooser = random.Random | Usual


@dataclass(frozen=True, kw_only=True, slots=True)
class Mention:
    """The words for one group: `first` brings it in, `again` points back at it."""

    said: Group
    first: str
    again: str

    @property
    def several(self) -> bool:
        """Whether verbs and pronouns take the plural."""
        return self.said.count > 1

    def it(self, phrase: str) -> str:
        """`phrase` with its pronouns filled in for this group."""
        return phrase.format(it="them", its="their") if self.several else phrase.format(it="it", its="its")

    def verb(self, singular: str) -> str:
        """One of `VERBS` in the form that agrees with this group."""
        return place_words.VERBS[singular] if self.several else singular

    def some_verb(self, rng: Chooser) -> str:
        """A verb that agrees with this group."""
        return self.verb(either(rng, _SINGULARS[:5], _SINGULARS))


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A caption without its ground, opening and closing.

    A `phrase` is a noun phrase: "draw ..." may precede it. A `clause` has a verb of its own: "an image where ..." may.
    `several` is the number of what it begins with.
    """

    text: str
    phrase: bool
    several: bool
    clause: bool = False


# --- one group ----------------------------------------------------------------------------------------------------


def mention(said: Group, only_one_of_its_shape: bool, rng: Chooser, *, terse: bool) -> Mention:
    """Choose words for a group; where another group has its shape, pointing back takes the colour too."""
    singular, plural = mostly_first(rng, tuple(words.SHAPE_WORDS[said.shape].items()), 0.72)
    noun = singular if said.count == 1 else plural
    colour = mostly_first(rng, words.COLOUR_WORDS[said.colour], 0.8) if said.colour else ""
    again = noun if only_one_of_its_shape and rng.random() < 0.65 else _joined(colour, noun)
    first = _noun_phrase(said, noun, colour, rng, terse=terse)
    return Mention(said=said, first=first, again=again if terse else f"the {again}")


def plain_mention(said: Group) -> Mention:
    """A group of a named colour in the first of all words."""
    singular, plural = next(iter(words.SHAPE_WORDS[said.shape].items()))
    noun = singular if said.count == 1 else plural
    phrase = " ".join(part for part in (said.size, said.fill, said.colour, noun) if part)
    first = with_article(phrase) if said.count == 1 else f"{words.COUNT_WORDS[said.count][0]} {phrase}"
    return Mention(said=said, first=first, again=f"the {said.colour} {noun}")


_STRIPES = ("with stripes", "with a striped pattern", "filled with stripes")
_IN_COLOUR = ("{} of {} colour", "{} painted {}")


def _noun_phrase(said: Group, noun: str, colour: str, rng: Chooser, *, terse: bool) -> str:
    size = mostly_first(rng, words.SIZE_WORDS[said.size], 0.6) if said.size else ""
    fill = mostly_first(rng, words.FILL_WORDS[said.fill], 0.6) if said.fill else ""
    draw = rng.random()
    if said.fill == "outlined" and said.count == 1 and draw < 0.12:
        inner = _joined(size, colour, noun)
        return f"outline of {inner}" if terse else f"the outline of {with_article(inner)}"
    if said.fill == "striped" and draw < 0.12:
        unfilled = _counted(said.count, _joined(size, colour, noun), rng, terse=terse)
        return f"{unfilled} {either(rng, _STRIPES[:1], _STRIPES)}"
    if colour and 0.12 <= draw < 0.17 and not terse:
        plainer = _counted(said.count, _joined(size, fill, noun), rng, terse=terse)
        return either(rng, ("{} in {}",), _IN_COLOUR).format(plainer, colour)
    if colour and 0.17 <= draw < 0.19 and is_wide(rng):
        colour += one_of(rng, (" coloured", " colored"))
    order = (
        (size, fill, colour) if draw < 0.75 else (fill, size, colour) if draw < 0.87 else (size, colour, fill)
    )
    return _counted(said.count, _joined(*order, noun), rng, terse=terse)


def _counted(count: int, phrase: str, rng: Chooser, *, terse: bool) -> str:
    if count > 1:
        return f"{mostly_first(rng, words.COUNT_WORDS[count], 0.6)} {phrase}"
    if terse:
        return phrase
    return (
        with_article(phrase)
        if rng.random() < 0.92
        else f"{either(rng, words.COUNT_WORDS[1][:3], words.COUNT_WORDS[1])} {phrase}"
    )


# --- several groups -----------------------------------------------------------------------------------------------


def listed(
    mentions: Sequence[Mention],
    relations: Sequence[Related],
    rng: Chooser,
    *,
    side_by_side: bool,
    terse: bool,
) -> Body:
    """All groups one after another, with their positions; relations follow in clauses of their own."""
    order = list(mentions)
    rng.shuffle(order)
    placed = any(m.said.position for m in mentions)
    in_front = not terse and all(m.said.position for m in mentions) and rng.random() < 0.35
    parts = [_placed(m, rng, in_front=in_front, terse=terse) for m in order]
    phrase, clause = not in_front, in_front
    if len(parts) == 1:
        text = parts[0]
    elif side_by_side and not relations and not placed and rng.random() < 0.3:
        text = parts[0] + one_of(rng, (" next to ", " beside ")) + parts[1]
    elif is_wide(rng) and rng.random() < 0.2:
        text, phrase, clause = _enumerated(parts, rng), False, False
    elif terse or rng.random() < 0.24:
        text = either(rng, _COMMAS[:1], _COMMAS).join(parts)
    elif len(parts) == 2 and not relations and not in_front:
        text = either(rng, _ANDS, _MORE_ANDS).join(parts)
    else:
        text = ", ".join(parts[:-1]) + either(rng, _LAST[:2], _LAST) + parts[-1]
    for a, relation, b in relations:
        between = mostly_first(rng, place_words.RELATION_WORDS[relation], 0.5)
        joint = ", " if terse else either(rng, _JOINTS[:3], _JOINTS)
        verb = " " if joint == ", " else f" {mentions[a].some_verb(rng)} "
        text += joint + mentions[a].again + verb + between + " " + mentions[b].again
    return Body(text=text, phrase=phrase, several=order[0].several, clause=clause)


_COMMAS = (", ", "; ", " + ", " & ", " / ", ". ")
_ANDS = (" and ", " and ", " with ", " plus ", " together with ")
_MORE_ANDS = (" & ", " + ", " as well as ", " and also ", " and then ")
_JOINTS = (". ", "; ", ", ", " - ", ", where ", ". And ")
_LAST = (" and ", ", and ", ", plus ", " & ", ", and finally ", ", and also ", ", as well as ")
_HEADINGS = (
    "",
    "",
    "",
    "shapes: ",
    "things to draw: ",
    "what I want: ",
    "contents: ",
    "please draw all of this: ",
)


def _enumerated(parts: Sequence[str], rng: Chooser) -> str:
    """A list as such: with numbers, letters, dashes or "first" and "then"."""
    draw = rng.random()
    if draw < 0.35:
        return ", ".join(
            f"{'first' if not i else one_of(rng, ('then', 'next'))} {p}" for i, p in enumerate(parts)
        )
    heading = one_of(rng, _HEADINGS)
    if draw < 0.55 and not any(part[0].isdigit() for part in parts):
        return heading + " ".join(f"{index}) {part}" for index, part in enumerate(parts, 1))
    if draw < 0.7:
        return heading + " ".join(f"({'abcd'[index]}) {part}" for index, part in enumerate(parts))
    if draw < 0.85:
        return heading + " ".join(f"- {part}" for part in parts)
    return (heading or "shapes: ") + "; ".join(parts)


def _placed(group: Mention, rng: Chooser, *, in_front: bool, terse: bool) -> str:
    """A group and, where the caption says it, its place."""
    place = group.said.position
    if place is None:
        return group.first
    if terse and rng.random() < 0.5:
        return f"{group.first} {place}"
    draw = rng.random()
    if draw < 0.2 and is_wide(rng):
        return f"{place}: {group.first}" if in_front else f"{group.first} ({place})"
    where = mostly_first(rng, place_words.POSITION_WORDS[place], 0.4)
    if not in_front:
        return (
            f"{group.first} {one_of(rng, _STANDING)} {where}"
            if draw < 0.35 and is_wide(rng)
            else f"{group.first} {where}"
        )
    return _joined(where, one_of(rng, ("", group.verb("is"), f"there {group.verb('is')}")), group.first)


_STANDING = ("placed", "positioned", "somewhere", "located", "painted", "drawn")


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def one_of(rng: Chooser, options: Sequence[_T]) -> _T:
    """Any of the options."""
    return options[int(rng.random() * len(options))]


def is_wide(rng: Chooser) -> bool:
    """Whether unusual words and forms may be chosen."""
    return not isinstance(rng, Usual)


def either(rng: Chooser, usual: Sequence[_T], wide: Sequence[_T]) -> _T:
    """One of the usual options, or of the wide ones, more often where they may be chosen at all."""
    return one_of(rng, usual if isinstance(rng, Usual) or rng.random() < 0.25 else wide)


def mostly_first(rng: Chooser, options: Sequence[_T], chance: float) -> _T:
    """The first option with `chance`, otherwise any of the others."""
    if len(options) == 1 or rng.random() < chance:
        return options[0]
    others = len(options) - 1
    if isinstance(rng, Usual):
        others = min(others, USUAL - 1)
    return options[1 + int(rng.random() * others)]
