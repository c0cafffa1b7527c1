"""The withheld sets: what the embedded model is asked that training never drew or said.

Comes in: how many. Goes out: compositions with their captions, sentences that people would type, edits with their
instructions, each with its meaning as values. The sets are written down, so that they are the same for each checkpoint,
whatever the grammar has become. Knows nothing of models or pixels.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kandinsky5.demo.claims import Claims, Group
from kandinsky5.demo.edits import Edit
from kandinsky5.demo.stored_questions import Stored, read_claims, read_edit, read_scene
from kandinsky5.demo.world import Scene

COMPOSITIONS = 500
EDITS = 300
"""How many of each the issue's figures are of."""

COMPOSED, EDITED = "withheld_compositions.json", "withheld_edits.json"
"""Beside this file. Drawn once (`withheld_drawing`), with the grammar of that day."""

SENTENCES = "foreign_sentences.json"
"""Beside this file. Written before anybody looked at the grammar; what it turned out to contain, also when it was
widened, and what the world does not have, was taken out again."""

_SIZES = {"tiny": "small", "small": "small", "large": "large", "huge": "large", None: None}
_RELATIONS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A text to draw, what it claims, which part of its set it belongs to, and a scene if it was made of one."""

    text: str
    claims: Claims
    part: str
    scene: Scene | None = None


@dataclass(frozen=True, kw_only=True)
class EditQuestion:
    """An edit and the instruction for it; its kind is the part of the set it belongs to."""

    text: str
    edit: Edit

    @property
    def part(self) -> str:
        """The kind of edit."""
        return self.edit.kind


def compositions(count: int = COMPOSITIONS) -> list[Question]:
    """The first `count` withheld compositions, at most all.

    pairs: two groups or more, all of colour-shape pairs never drawn in training. relations: groups of which the caption
    says a relation that shapes of that kind never stood in. counts: one group of a withheld pair, one to five things.
    """
    return [_composition(stored) for stored in _listed(COMPOSED)[:count]]


def foreign_sentences(count: int | None = None) -> list[Question]:
    """All sentences written without looking at the grammar, or `count` of them, evenly spread over the list."""
    listed = _listed(SENTENCES)
    wanted = min(count or len(listed), len(listed))
    return [
        Question(text=entry["text"], claims=_claims(entry), part="sentences")
        for entry in (listed[index * len(listed) // wanted] for index in range(wanted))
    ]


def withheld_edits(count: int = EDITS) -> list[EditQuestion]:
    """The first `count` withheld edits, the kinds in turn; at most all."""
    return [EditQuestion(text=stored["text"], edit=read_edit(stored)) for stored in _listed(EDITED)[:count]]


def _listed(name: str) -> list[Stored]:
    return json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))


def _composition(stored: Stored) -> Question:
    scene = read_scene(stored["scene"])
    return Question(text=stored["text"], claims=read_claims(stored, scene), part=stored["part"], scene=scene)


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
