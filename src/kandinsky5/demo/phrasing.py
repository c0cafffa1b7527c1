"""From what is to be said to how: the grammar of the captions.

Comes in: claims about groups, relations, a ground, and a random generator for the choice of words. Goes out: a text.
`mention` finds words for a group, `woven` and `listed` make a body of several, `finished` adds ground, opening and
closing. A `terse` text does without articles and verbs. Knows nothing of geometry or pixels.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from kandinsky5.demo import vocabulary as words
from kandinsky5.demo.claims import Group, Related

_T = TypeVar("_T")


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
        return words.VERBS[singular] if self.several else singular


@dataclass(frozen=True, kw_only=True, slots=True)
class Body:
    """A caption without its ground, opening and closing.

    A `phrase` is a noun phrase: "draw ..." may precede it. `several` is the number of what it begins with.
    """

    text: str
    phrase: bool
    several: bool


# --- one group ----------------------------------------------------------------------------------------------------


def mention(said: Group, only_one_of_its_shape: bool, rng: random.Random, *, terse: bool) -> Mention:
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


def _noun_phrase(said: Group, noun: str, colour: str, rng: random.Random, *, terse: bool) -> str:
    size = mostly_first(rng, words.SIZE_WORDS[said.size], 0.6) if said.size else ""
    fill = mostly_first(rng, words.FILL_WORDS[said.fill], 0.6) if said.fill else ""
    draw = rng.random()
    if said.fill == "outlined" and said.count == 1 and draw < 0.12:
        inner = _joined(size, colour, noun)
        return f"outline of {inner}" if terse else f"the outline of {with_article(inner)}"
    if said.fill == "striped" and draw < 0.12:
        return f"{_counted(said.count, _joined(size, colour, noun), rng, terse=terse)} with stripes"
    if colour and 0.12 <= draw < 0.17 and not terse:
        return f"{_counted(said.count, _joined(size, fill, noun), rng, terse=terse)} in {colour}"
    order = (
        (size, fill, colour) if draw < 0.75 else (fill, size, colour) if draw < 0.87 else (size, colour, fill)
    )
    return _counted(said.count, _joined(*order, noun), rng, terse=terse)


def _counted(count: int, phrase: str, rng: random.Random, *, terse: bool) -> str:
    if count > 1:
        return f"{mostly_first(rng, words.COUNT_WORDS[count], 0.6)} {phrase}"
    if terse:
        return phrase
    return with_article(phrase) if rng.random() < 0.92 else f"{one_of(rng, words.COUNT_WORDS[1])} {phrase}"


# --- several groups -----------------------------------------------------------------------------------------------


def woven(
    mentions: Sequence[Mention], relations: Sequence[Related], rng: random.Random, *, terse: bool
) -> Body:
    """The first relation brings in two groups; a second ties on another; the rest is added before or after."""
    a, relation, b = relations[0]
    body = _pair(mentions[a], relation, mentions[b], rng, terse=terse)
    text, several = body.text, body.several
    named = {a, b}
    for c, name, d in relations[1:]:
        text += _tied_on(mentions[c], name, mentions[d], c in named, rng, terse=terse)
        named |= {c, d}
    rest = [extra for index, extra in enumerate(mentions) if index not in named]
    rng.shuffle(rest)
    for extra in rest:
        if body.phrase and len(relations) == 1 and rng.random() < 0.35:
            text = extra.first + (", " if terse else one_of(rng, (", ", ", and ", ", with "))) + text
            several = extra.several
        elif terse:
            text += f", {extra.first}"
        else:
            joints = (", and ", ", plus ", ", ", f". There {extra.verb('is')} also ", ", and also ")
            text += one_of(rng, joints) + extra.first
    return Body(text=text, phrase=body.phrase, several=several)


_WITH_IT = ("{b} with {a} {beside}", "{b} and {a} {beside}", "{b} and, {beside}, {a}", "{b}, {beside} {a}")
_THEN_RELATED = (" and {b}, {x} {rel} {y}", " and {b}, with {x} {rel} {y}", " and {b}; {x} {verb} {rel} {y}")
_INVERTED = ("{rel} {b} {verb} {a}", "{rel} {b} there {is_} {a}", "{rel} {b}, {a}")
_TIED_KNOWN = (". {left} {verb} {rel} {right}", "; {left} {verb} {rel} {right}", ", {left} {rel} {right}")
_TIED_NEW = (", with {left} {rel} {right}", ", and {left} {rel} {right}", ". {rel} {right} {verb} {left}")


def _pair(a: Mention, relation: str, b: Mention, rng: random.Random, *, terse: bool) -> Body:
    """Two groups brought in by "a <relation> b", in one of many forms."""
    between = mostly_first(rng, words.RELATION_WORDS[relation], 0.5)
    draw = rng.random()
    if terse or draw < 0.4:
        return Body(text=f"{a.first} {between} {b.first}", phrase=True, several=a.several)
    if draw < 0.64:
        beside = b.it(one_of(rng, words.RELATION_TO_IT[relation]))
        text = one_of(rng, _WITH_IT).format(a=a.first, b=b.first, beside=beside)
        return Body(text=text, phrase=True, several=b.several)
    verb = a.verb(one_of(rng, tuple(words.VERBS)))
    if draw < 0.72:
        rest = one_of(rng, _THEN_RELATED).format(b=b.first, x=a.again, y=b.again, rel=between, verb=verb)
        return Body(text=a.first + rest, phrase=True, several=a.several)
    if draw < 0.86:
        return Body(text=f"{a.first} {verb} {between} {b.first}", phrase=False, several=a.several)
    text = one_of(rng, _INVERTED).format(a=a.first, b=b.first, rel=between, verb=verb, is_=a.verb("is"))
    return Body(text=text, phrase=False, several=a.several)


def _tied_on(
    a: Mention, relation: str, b: Mention, a_is_known: bool, rng: random.Random, *, terse: bool
) -> str:
    """A clause "a <relation> b" of which one side has been named before."""
    between = mostly_first(rng, words.RELATION_WORDS[relation], 0.5)
    left, right = (a.again, b.first) if a_is_known else (a.first, b.again)
    if terse:
        return f", {left} {between} {right}"
    verb = a.verb(one_of(rng, tuple(words.VERBS)))
    forms = _TIED_KNOWN if a_is_known else _TIED_KNOWN + _TIED_NEW
    return one_of(rng, forms).format(left=left, right=right, rel=between, verb=verb)


def listed(
    mentions: Sequence[Mention],
    relations: Sequence[Related],
    rng: random.Random,
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
    if len(parts) == 1:
        text = parts[0]
    elif side_by_side and not relations and not placed and rng.random() < 0.3:
        text = parts[0] + one_of(rng, (" next to ", " beside ")) + parts[1]
    elif terse or rng.random() < 0.2:
        text = ", ".join(parts)
    elif len(parts) == 2 and not relations and not in_front:
        text = one_of(rng, (" and ", " and ", " with ", " plus ", " together with ")).join(parts)
    else:
        text = ", ".join(parts[:-1]) + one_of(rng, (" and ", ", and ")) + parts[-1]
    for a, relation, b in relations:
        between = mostly_first(rng, words.RELATION_WORDS[relation], 0.5)
        joint = ", " if terse else one_of(rng, (". ", "; ", ", "))
        verb = " " if joint == ", " else f" {mentions[a].verb(one_of(rng, tuple(words.VERBS)))} "
        text += joint + mentions[a].again + verb + between + " " + mentions[b].again
    return Body(text=text, phrase=not in_front, several=order[0].several)


def _placed(group: Mention, rng: random.Random, *, in_front: bool, terse: bool) -> str:
    """A group and, where the caption says it, its place."""
    place = group.said.position
    if place is None:
        return group.first
    if terse and rng.random() < 0.5:
        return f"{group.first} {place}"
    where = mostly_first(rng, words.POSITION_WORDS[place], 0.4)
    if not in_front:
        return f"{group.first} {where}"
    return _joined(where, one_of(rng, ("", group.verb("is"), f"there {group.verb('is')}")), group.first)


# --- the whole caption --------------------------------------------------------------------------------------------

_GROUND_FIRST = ("on {a}, {text}", "on {a}, {text}", "against {a}, {text}", "on {colour}: {text}")
_GROUND_AROUND = ("{a} with {text}", "{surface}: {text}")
_GROUND_LAST = (
    "{text} on {a}",
    "{text} on {a}",
    "{text} on {a}",
    "{text} on {colour}",
    "{text} against {a}",
    "{text}, on {a}",
    "{text}, {surface}",
    "{text}. The background is {colour}",
    "{text}; {a}",
    "{text}, all on {a}",
)


def finished(body: Body, ground: str | None, rng: random.Random, *, terse: bool) -> str:
    """Add the ground if there is one to name, perhaps an opening and a closing, and settle case and full stop."""
    text = body.text
    in_front = ground is not None and rng.random() < 0.25
    chance = 0.12 if terse else 0.08 if in_front else 0.42
    opened = body.phrase and rng.random() < chance
    if opened:
        there = f"there {'are' if body.several else 'is'}"
        text = f"{there if rng.random() < 0.3 else one_of(rng, words.OPENINGS)} {text}"
    if ground is not None:
        colour = mostly_first(rng, words.GROUND_WORDS[ground], 0.65)
        surface = f"{colour} {one_of(rng, words.GROUND_NOUNS)}"
        if terse and rng.random() < 0.8:
            text = f"{surface}, {text}" if in_front else f"{text}, {surface}"
        else:
            around = _GROUND_FIRST + _GROUND_AROUND if body.phrase and not opened else _GROUND_FIRST
            form = one_of(rng, around if in_front else _GROUND_LAST)
            text = form.format(text=text, a=with_article(surface), colour=colour, surface=surface)
    if rng.random() < 0.07:
        text += f", {one_of(rng, words.CLOSINGS)}"
    draw = rng.random()
    if draw < 0.5:
        text = ". ".join(part[0].upper() + part[1:] for part in text.split(". "))
    elif draw < 0.9:
        text = text.lower()
    return text + "." if rng.random() < (0.75 if ". " in text else 0.35) else text


def with_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _joined(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def one_of(rng: random.Random, options: Sequence[_T]) -> _T:
    """Any of the options."""
    return options[int(rng.random() * len(options))]


def mostly_first(rng: random.Random, options: Sequence[_T], chance: float) -> _T:
    """The first option with `chance`, otherwise any of the others."""
    if len(options) == 1 or rng.random() < chance:
        return options[0]
    return options[1 + int(rng.random() * (len(options) - 1))]
