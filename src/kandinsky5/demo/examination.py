"""A checkpoint answers the withheld sets: every picture is drawn, scored, and what is wrong is kept to be looked at.

Comes in: a loaded pipeline, the name of a set, how many of it, how to draw; or pictures that were drawn elsewhere. Goes
out: an `Examined`. The order of things only: `withheld` asks, `sampling` draws, the scorers judge, `tables` counts.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kandinsky5.demo.edit_scorer import score_edit
from kandinsky5.demo.failures import edit_faults, failing_cells, failing_edit_cells, faults
from kandinsky5.demo.renderer import pack, render
from kandinsky5.demo.sampling import (
    OnStep,
    Picture,
    Pipeline,
    Sampling,
    as_bytes,
    can_edit,
    draw_edits,
    draw_prompts,
    side_of,
)
from kandinsky5.demo.scorer import score
from kandinsky5.demo.sheets import Cell
from kandinsky5.demo.tables import Table, mean_untouched, tabulate, tabulate_edits
from kandinsky5.demo.withheld import (
    COMPOSITIONS,
    EDITS,
    EditQuestion,
    Question,
    compositions,
    foreign_sentences,
    withheld_edits,
)
from kandinsky5.demo.world import Scene

SETS: Mapping[str, str] = {
    "compositions": "compositions with pairs or relations that training never drew",
    "foreign": "sentences in phrasings that training never said",
    "edits": "edits with pairs that training never drew",
}

ALL = "all"

_R = TypeVar("_R")


@dataclass(frozen=True, kw_only=True, eq=False)
class Examined:
    """What became of a set.

    `tables` are by part of the set, `ALL` first; `figures` are means by name; `wrong` says of each picture that is not
    wholly right its number, text, part and faults; `failing` are their pictures.
    """

    name: str
    cases: int
    tables: Mapping[str, Table]
    wrong: Sequence[Mapping[str, Any]]
    failing: Sequence[Cell]
    figures: Mapping[str, float | None] = field(default_factory=dict)


def sets_for(pipeline: Pipeline) -> tuple[str, ...]:
    """The sets that a checkpoint can be asked."""
    return tuple(name for name in SETS if name != "edits" or can_edit(pipeline))


def examine(
    pipeline: Pipeline,
    name: str,
    count: int | None = None,
    sampling: Sampling | None = None,
    on_step: OnStep | None = None,
) -> Examined:
    """Draw and score the first `count`, or all, of one of `SETS`. Raises what `draw_set` does."""
    return judge(name, draw_set(pipeline, name, count, sampling, on_step))


def draw_set(
    pipeline: Pipeline,
    name: str,
    count: int | None = None,
    sampling: Sampling | None = None,
    on_step: OnStep | None = None,
) -> list[Picture]:
    """A checkpoint's answers to the first `count`, or all, of one of `SETS`.

    Raises:
        KeyError: a set that does not exist.
        RequestError: edits of a network that takes no source picture.
    """
    sampling = sampling or Sampling()
    if name != "edits":
        return list(draw_prompts(pipeline, texts_of(name, count), sampling, on_step))
    sources = _sources(_edits(count), side_of(pipeline))
    return list(draw_edits(pipeline, sources, texts_of(name, count), sampling, on_step))


def texts_of(name: str, count: int | None = None) -> list[str]:
    """The first `count`, or all, prompts or instructions of one of `SETS`; KeyError for others."""
    if name == "edits":
        return [question.text for question in _edits(count)]
    return [question.text for question in _questions(name, count)]


def judge(name: str, pictures: Sequence[Picture]) -> Examined:
    """Score answers to the first so many of one of `SETS`; KeyError for others."""
    if name == "edits":
        return _judge_edits(pictures)
    questions = _questions(name, len(pictures))
    texts = [question.text for question in questions]
    reports = [score(picture, q.claims) for picture, q in zip(pictures, questions, strict=True)]
    return Examined(
        name=name,
        cases=len(questions),
        tables=_by_part([question.part for question in questions], reports, tabulate),
        wrong=[
            {"number": number, "text": question.text, "part": question.part, "faults": faults(report)}
            for number, (question, report) in enumerate(zip(questions, reports, strict=True))
            if not report.whole
        ],
        failing=failing_cells(pictures, reports, texts),
    )


def true_picture(scene: Scene, size: int) -> Picture:
    """A scene as the renderer draws it, (size, size, 3) uint8."""
    return as_bytes((render(pack([scene]), size) + 1) / 2)[0]


def _questions(name: str, count: int | None) -> list[Question]:
    ask: Callable[[], list[Question]] = {
        "compositions": lambda: compositions(COMPOSITIONS if count is None else count),
        "foreign": lambda: foreign_sentences(count),
    }[name]
    return ask()


def _edits(count: int | None) -> list[EditQuestion]:
    return withheld_edits(EDITS if count is None else count)


def _sources(questions: Sequence[EditQuestion], side: int) -> list[Picture]:
    return [true_picture(question.edit.source, side) for question in questions]


def _judge_edits(results: Sequence[Picture]) -> Examined:
    questions = _edits(len(results))
    texts = [question.text for question in questions]
    sources = _sources(questions, len(results[0]) if results else 0)
    reports = [
        score_edit(question.edit, source, result)
        for question, source, result in zip(questions, sources, results, strict=True)
    ]
    return Examined(
        name="edits",
        cases=len(questions),
        tables=_by_part([question.part for question in questions], reports, tabulate_edits),
        wrong=[
            {
                "number": number,
                "text": question.text,
                "part": question.part,
                "faults": edit_faults(report),
            }
            for number, (question, report) in enumerate(zip(questions, reports, strict=True))
            if not report.whole
        ],
        failing=failing_edit_cells(sources, results, reports, texts),
        figures={"untouched dB": mean_untouched(reports)},
    )


def _by_part(
    parts: Sequence[str], reports: Sequence[_R], tabulated: Callable[[Sequence[_R]], Table]
) -> dict[str, Table]:
    """A table of all reports, and one of each part where there are several."""
    shares: dict[str, list[_R]] = defaultdict(list)
    for part, report in zip(parts, reports, strict=True):
        shares[part].append(report)
    tables = {ALL: tabulated(reports)}
    return tables | ({part: tabulated(share) for part, share in shares.items()} if len(shares) > 1 else {})
