"""What can be asked of a caption: a kind of thing, or two, and what the caption says of them.

Comes in: the claims of a caption, and a random generator. Goes out: questions and answers as rows of small integers.
Kinds that the caption does not speak of are asked after too, made of a colour and a shape that it does speak of: who
hears both words but not which belongs to which answers wrongly. Knows nothing of words, pixels or networks.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kandinsky5.demo.claims import Claims, Group
from kandinsky5.demo.layout import POSITIONS, RELATIONS
from kandinsky5.demo.palette import COLOURS, GROUNDS
from kandinsky5.demo.world import FILLS, MAX_THINGS, SHAPES, SIZES

UNASKED = -100
"""An answer that a question does not have; PyTorch's cross-entropy passes over it."""

NOTHING = None
"""An answer: the caption does not say."""

ANSWERS: Mapping[str, tuple[object, ...]] = {
    "count": tuple(range(MAX_THINGS + 1)),
    "size": (NOTHING, *SIZES),
    "fill": (NOTHING, *FILLS),
    "place": (NOTHING, *POSITIONS),
    "relation": tuple(RELATIONS),
    "ground": (NOTHING, *GROUNDS),
}
"""Answers to each attribute, by their index. `relation` is how the first kind stands to the second."""

KIND_OPTIONS: tuple[tuple[str | None, ...], ...] = ((None, *COLOURS), (None, *SHAPES))
"""A kind is a colour and a shape, by their indices here; no colour is one that the caption does not name."""

QUESTION_WIDTH = 2 * len(KIND_OPTIONS)
"""Indices of a question: colour and shape of the kind asked after, and of the one it stands to. Kind (None, None) asks
after the picture as a whole."""

QUESTIONS = 12
"""Rows a caption; unused ones ask nothing."""

NEGATIVES = 3

Kind = tuple[str | None, str | None]
NOBODY: Kind = (None, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """After a kind, or how it stands to another; the answers that there are, by attribute."""

    kind: Kind
    other: Kind = NOBODY
    answers: Mapping[str, object]

    def row(self) -> list[int]:
        """(QUESTION_WIDTH,)"""
        pairs = (*zip(KIND_OPTIONS, self.kind, strict=True), *zip(KIND_OPTIONS, self.other, strict=True))
        return [options.index(value) for options, value in pairs]

    def answer_row(self) -> list[int]:
        """(len(ANSWERS),): indices of the answers, `UNASKED` where there is none."""
        return [
            options.index(self.answers[name]) if name in self.answers else UNASKED
            for name, options in ANSWERS.items()
        ]


def ask(claims: Claims, rng: random.Random) -> list[Question]:
    """At most `QUESTIONS` questions that these claims answer.

    Of a kind that two groups share (only their sizes or fills differ) only the presence of its things could be said;
    such groups are not asked after.
    """
    kinds: list[Kind] = [(group.colour, group.shape) for group in claims.groups]
    asked = [Question(kind=NOBODY, answers={"ground": claims.ground})]
    for kind, group in zip(kinds, claims.groups, strict=True):
        if kinds.count(kind) == 1:
            asked.append(Question(kind=kind, answers=_said_of(group)))
    for a, name, b in claims.relations:
        if kinds.count(kinds[a]) == kinds.count(kinds[b]) == 1:
            asked.append(Question(kind=kinds[a], other=kinds[b], answers={"relation": name}))
    for _ in range(NEGATIVES):
        kind = _mixed(claims.groups, rng)
        if kind not in kinds and None not in kind:
            asked.append(Question(kind=kind, answers={"count": 0}))
    return asked[:QUESTIONS]


def question_rows(asked: Sequence[Question]) -> tuple[list[list[int]], list[list[int]]]:
    """`QUESTIONS` rows of questions and of answers."""
    nothing = Question(kind=NOBODY, answers={})
    full = [*asked, *[nothing] * (QUESTIONS - len(asked))]
    return [question.row() for question in full], [question.answer_row() for question in full]


def _said_of(group: Group) -> dict[str, object]:
    return {"count": group.count, "size": group.size, "fill": group.fill, "place": group.position}


def _mixed(groups: Sequence[Group], rng: random.Random) -> Kind:
    """A colour or a shape of the caption, or one of each, in a pair that may or may not be in it."""
    colour, shape = rng.choice(groups).colour, rng.choice(groups).shape
    chance = rng.random()
    if chance < 0.25:
        return rng.choice(list(COLOURS)), shape
    if chance < 0.5:
        return colour, rng.choice(list(SHAPES))
    return colour, shape
