"""What can be said of a scene: complete captions in many phrasings, and the claims each of them makes.

Comes in: a scene, and a random generator for the choice of words. Goes out: a sentence, and its meaning as values,
every part of which is true of the scene. Nothing is ever negated. Decides what is said; `phrasing`, `weaving` and
`frames` decide how, `vocabulary` and `place_words` hold the words, and what counts as left of or in a corner is
`layout`'s to say. Knows nothing of pixels or torch.
"""

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kandinsky5.demo import place_words
from kandinsky5.demo import vocabulary as words
from kandinsky5.demo.claims import Claims, Group, Related, true_relations
from kandinsky5.demo.frames import finished
from kandinsky5.demo.layout import position_of
from kandinsky5.demo.phrasing import (
    Chooser,
    Mention,
    Usual,
    is_wide,
    listed,
    mention,
    plain_mention,
    with_article,
)
from kandinsky5.demo.weaving import woven
from kandinsky5.demo.world import FILLS, Scene, Thing, draw_scene

__all__ = ["WORD_LIMIT", "Caption", "Claims", "Group", "describe", "examples", "names_a_shape", "plain"]

WORD_LIMIT = 60
"""Longer captions are drawn again."""

USUALLY = 0.55
"""The share of captions in usual words and forms alone."""

EXAMPLE_WORDS = 16
"""The most words of an example."""


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A sentence and its meaning."""

    text: str
    claims: Claims


def describe(scene: Scene, rng: random.Random) -> Caption:
    """Caption a scene as `draw_scene` draws them. The same state of `rng` gives the same caption."""
    while True:
        caption = _describe(scene, Usual(rng) if rng.random() < USUALLY else rng, rng)
        if len(caption.text.split()) <= WORD_LIMIT:
            return caption


def plain(scene: Scene) -> Caption:
    """The plainest full sentence: every group, up to two relations that hold, and the ground if it has a name."""
    groups = scene.groups()
    said = [
        _said(things, colour=things[0].colour, size=_unless(things[0].size, "medium")) for things in groups
    ]
    mentions = [plain_mention(group) for group in said]
    available = sorted(true_relations(groups), key=lambda related: (related[0] + related[2], related[0]))
    relations = available[:1]
    reached = {a for related in relations for a in (related[0], related[2])} or {0}
    parts = [_related(relations[0], mentions, first=True) if relations else mentions[0].first]
    for index in range(len(groups)):
        if index in reached:
            continue
        link = next((related for related in available if related[0] == index and related[2] in reached), None)
        if link and len(relations) < 2:
            relations.append(link)
            parts.append(_related(link, mentions, first=False))
        else:
            parts.append(mentions[index].first)
        reached.add(index)
    comma = "," if relations or len(parts) > 2 else ""
    text = ", ".join(parts[:-1]) + f"{comma} and {parts[-1]}" if len(parts) > 1 else parts[0]
    if scene.ground.name:
        text += f" on {with_article(scene.ground.name)} background"
    claims = Claims(groups=tuple(said), relations=tuple(relations), ground=scene.ground.name)
    return Caption(text=text, claims=claims)


def examples(n: int, seed: int = 0) -> tuple[str, ...]:
    """`n` different prompts that the embedded model was made for, short and plain, to show to people."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < n:
        text = plain(draw_scene(rng)).text
        if len(text.split()) <= EXAMPLE_WORDS:
            found[text] = None
    return tuple(found)


def names_a_shape(prompt: str) -> bool:
    """Whether a prompt holds a word for one of the shapes: the least it needs to be about this world."""
    return _shape_pattern().search(prompt.lower()) is not None


@functools.cache
def _shape_pattern() -> re.Pattern[str]:
    names = [name for forms in words.SHAPE_WORDS.values() for pair in forms.items() for name in pair]
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, names))})\b")


def _describe(scene: Scene, voice: Chooser, rng: random.Random) -> Caption:
    groups = scene.groups()
    terse = rng.random() < 0.17
    relations = _choose_relations(groups, rng)
    chance = 0.14 if relations else 0.65
    places = _choose_positions(groups, rng) if rng.random() < chance else [None] * len(groups)
    mentions = _mentions(groups, places, voice, terse=terse)
    shared = _shared_colour(mentions) if is_wide(voice) and rng.random() < 0.6 else ""
    if shared:
        mentions = [_without_colour(m, voice, terse=terse) for m in mentions]
    if any(places) or not relations or not _chained(relations) or rng.random() < 0.22:
        body = listed(mentions, relations, voice, side_by_side=_side_by_side(groups), terse=terse)
    else:
        body = woven(mentions, relations, voice, terse=terse)
    if shared:
        every = "both" if sum(len(things) for things in groups) == 2 else "all"
        body = replace(body, text=f"{body.text}, {every} {shared}")
    claims = Claims(
        groups=tuple(m.said for m in mentions), relations=tuple(relations), ground=scene.ground.name
    )
    return Caption(text=finished(body, scene.ground.name, voice, terse=terse), claims=claims)


def _choose_relations(groups: Sequence[Sequence[Thing]], rng: random.Random) -> list[Related]:
    """None, one or two (of three groups and more), each in either direction."""
    if len(groups) == 1 or rng.random() > 0.86:
        return []
    pairs: dict[tuple[int, int], list[Related]] = {}
    for related in true_relations(groups):
        a, _, b = related
        pairs.setdefault((min(a, b), max(a, b)), []).append(related)
    wanted = 2 if len(groups) > 2 and rng.random() < 0.5 else 1
    chosen = rng.sample(list(pairs.values()), min(wanted, len(pairs)))
    return [rng.choice(both) for both in chosen]


def _choose_positions(groups: Sequence[Sequence[Thing]], rng: random.Random) -> list[str | None]:
    places = [position_of([(thing.x, thing.y) for thing in things]) for things in groups]
    return [place if rng.random() < 0.9 else None for place in places]


def _chained(relations: Sequence[Related]) -> bool:
    """Whether each relation after the first ties exactly one new group to one already named."""
    named = {relations[0][0], relations[0][2]}
    for a, _, b in relations[1:]:
        if (a in named) == (b in named):
            return False
        named |= {a, b}
    return True


def _side_by_side(groups: Sequence[Sequence[Thing]]) -> bool:
    """Whether there are two groups, one plainly left of the other."""
    return len(groups) == 2 and any(name == "left of" for _, name, _ in true_relations(groups))


def _mentions(
    groups: Sequence[Sequence[Thing]], places: Sequence[str | None], rng: Chooser, *, terse: bool
) -> list[Mention]:
    shapes = [things[0].shape for things in groups]
    mentions = []
    for things, place, shape in zip(groups, places, shapes, strict=True):
        only = shapes.count(shape) == 1
        thing = things[0]
        colour = None if only and rng.random() < 0.045 else thing.colour
        size = thing.size if rng.random() < (0.1 if thing.size == "medium" else 0.9) else None
        # That a thing is solid goes without saying, but may be said where it could be otherwise.
        stressed = thing.fill == "solid" and shape in FILLS["outlined"][0] and rng.random() < 0.04
        said = _said(things, colour=colour, size=size, fill="solid" if stressed else None, position=place)
        mentions.append(mention(said, only, rng, terse=terse))
    return mentions


def _shared_colour(mentions: Sequence[Mention]) -> str:
    """The colour that two groups or more all have, where each of them is said to have it."""
    colours = {m.said.colour for m in mentions}
    return (colours.pop() or "") if len(mentions) > 1 and len(colours) == 1 else ""


def _without_colour(of: Mention, rng: Chooser, *, terse: bool) -> Mention:
    return replace(mention(replace(of.said, colour=None), True, rng, terse=terse), said=of.said)


def _said(
    things: Sequence[Thing],
    *,
    colour: str | None,
    size: str | None,
    fill: str | None = None,
    position: str | None = None,
) -> Group:
    """A claim about a group; a fill that is not solid is always part of it."""
    thing = things[0]
    return Group(
        count=len(things),
        colour=colour,
        shape=thing.shape,
        size=size,
        fill=_unless(thing.fill, "solid") or fill,
        position=position,
    )


def _unless(value: str, default: str) -> str | None:
    return None if value == default else value


def _related(related: Related, mentions: Sequence[Mention], *, first: bool) -> str:
    a, name, b = related
    other = mentions[b].first if first else mentions[b].again
    return f"{mentions[a].first} {place_words.RELATION_WORDS[name][0]} {other}"
