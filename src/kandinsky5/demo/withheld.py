"""The withheld sets: what the embedded model is asked that training never drew or said.

Comes in: how many. Goes out: compositions with their captions, sentences that people would type, edits with their
instructions, each with its meaning as values. Compositions and edits withhold what is drawn and are said in usual
words; the sentences withhold how it is said. The sets are fixed: so many of a set are always the same. Knows nothing of
models or pixels.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky5.demo.captions import Caption, describe
from kandinsky5.demo.claims import Claims, Group
from kandinsky5.demo.edits import KINDS, Edit, draw_edit
from kandinsky5.demo.instructions import instruct
from kandinsky5.demo.phrasing import Usual
from kandinsky5.demo.world import WITHHELD_SIDES, Scene, draw_scene

COMPOSITIONS = 500
EDITS = 300
"""How many of each the issue's figures are of."""

SENTENCES = "foreign_sentences.json"
"""Beside this file. Written before anybody looked at the grammar; what it turned out to contain, and what the world
does not have, was taken out again."""

_PARTS = ("pairs", "relations", "pairs", "relations", "counts")
"""What of a composition is withheld, in turn."""

_SIZES = {"tiny": "small", "small": "small", "large": "large", "huge": "large", None: None}
_RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A text to draw, what it claims, and which part of its set it belongs to."""

    text: str
    claims: Claims
    part: str


@dataclass(frozen=True, kw_only=True)
class EditQuestion:
    """An edit and the instruction for it; its kind is the part of the set it belongs to."""

    text: str
    edit: Edit

    @property
    def part(self) -> str:
        """The kind of edit."""
        return self.edit.kind


def composed_scenes() -> Iterator[tuple[str, Scene, Caption]]:
    """Withheld compositions without end: the part of the set, the scene, its caption.

    pairs: two groups or more, all of colour-shape pairs never drawn in training. relations: groups of which the caption
    says a relation that shapes of that kind never stood in. counts: one group of a withheld pair, one to five things.
    """
    rng = random.Random("withheld compositions")
    counts = itertools.cycle((1, 2, 3, 4, 5))
    for part in itertools.cycle(_PARTS):
        if part == "relations":
            yield part, *_withheld_relation(rng)
            continue
        scene = _one_group(rng, next(counts)) if part == "counts" else draw_scene(rng, split="withheld")
        yield part, scene, describe(scene, rng, usual=True)


def compositions(count: int = COMPOSITIONS) -> list[Question]:
    """The first `count` withheld compositions."""
    return [
        Question(text=caption.text, claims=caption.claims, part=part)
        for part, _, caption in itertools.islice(composed_scenes(), count)
    ]


def foreign_sentences(count: int | None = None) -> list[Question]:
    """All sentences written without looking at the grammar, or `count` of them, evenly spread over the list."""
    listed = json.loads(Path(__file__).with_name(SENTENCES).read_text(encoding="utf-8"))
    wanted = min(count or len(listed), len(listed))
    return [
        Question(text=entry["text"], claims=_claims(entry), part="sentences")
        for entry in (listed[index * len(listed) // wanted] for index in range(wanted))
    ]


def withheld_edits(count: int = EDITS) -> list[EditQuestion]:
    """The first `count` withheld edits, the kinds in turn."""
    rng = random.Random("withheld edits")
    edits = (draw_edit(rng, split="withheld", kind=kind) for kind in itertools.cycle(KINDS))
    return [
        EditQuestion(text=instruct(edit, Usual(rng)), edit=edit) for edit in itertools.islice(edits, count)
    ]


def _withheld_relation(rng: random.Random) -> tuple[Scene, Caption]:
    """A scene with a withheld relation, and a caption that says it."""
    while True:
        scene = draw_scene(rng, split="related")
        shapes = [things[0].shape for things in scene.groups()]
        for _ in range(8):
            caption = describe(scene, rng, usual=True)
            if any((shapes[a], name, shapes[b]) in WITHHELD_SIDES for a, name, b in caption.claims.relations):
                return scene, caption


def _one_group(rng: random.Random, count: int) -> Scene:
    """A scene of one group of a withheld pair, taken out of a larger one."""
    while True:
        scene = draw_scene(rng, split="withheld")
        for things in scene.groups():
            if len(things) == count:
                return Scene(things=things, ground=scene.ground)


def _claims(entry: dict[str, Any]) -> Claims:
    """What a sentence of the file says, in the world's names."""
    places = dict(entry.get("places", ()))
    return Claims(
        groups=tuple(_group(thing, places.get(index)) for index, thing in enumerate(entry["things"])),
        relations=tuple((a, _RELATIONS[name], b) for a, name, b in entry.get("relations", ())),
        ground=entry.get("ground"),
    )


def _group(thing: dict[str, Any], position: str | None) -> Group:
    shape, fill = thing["shape"], thing.get("fill")
    if (shape, fill) == ("circle", "outlined"):
        shape, fill = "ring", None  # the world has one name for them
    return Group(
        count=thing["count"],
        colour=thing["colour"],
        shape=shape,
        size=_SIZES[thing.get("size")],
        fill=fill,
        position=position,
    )
