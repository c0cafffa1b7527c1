"""How much of what was asked for is in the pictures: tallies of what the scorers found, and tables of them.

Comes in: reports of `scorer` or `edit_scorer`. Goes out: a tally a measure, as text, as Markdown or as JSON. Decides
nothing itself.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from kandinsky5.demo.edit_scorer import EditReport
from kandinsky5.demo.scorer import Report


@dataclass(frozen=True, kw_only=True)
class Tally:
    """`right` of `cases`."""

    right: int = 0
    cases: int = 0

    @property
    def share(self) -> float | None:
        """In [0, 1]; None without cases."""
        return self.right / self.cases if self.cases else None


Table = Mapping[str, Tally]

MEASURES: dict[str, str] = {
    "objects": "claimed things with everything claimed of them",
    "counts": "groups with exactly as many of that colour and shape",
    "relations": "relations between what was drawn for the groups",
    "positions": "named places",
    "ground": "grounds, named or neutral",
    "whole": "pictures with all of it and nothing else",
    "found": "claimed things with the right colour or shape",
    "colours": "colours of things found",
    "shapes": "shapes of things found",
    "fills": "fills of things found",
    "sizes": "named sizes of things found",
    "counts of several": "counts of two and more",
    "relations, strictly": "relations between groups of right colour and shape",
    "named grounds": "grounds that the caption names",
    "nothing extra": "pictures without things that nobody claimed",
}
"""The rows of the table: the scores first, then what helps to see why."""

LEAST_UNTOUCHED_DB = 28.0
"""PSNR from which what an edit has no business with looks untouched."""

EDIT_MEASURES: dict[str, str] = {
    "done": "edits with the asked change",
    "kept": "edits with everything else as it was",
    "edited": "both",
    "untouched": f"edits whose other pixels are within {LEAST_UNTOUCHED_DB:.0f} dB of the source's",
}
"""The rows of the table of edits."""


def tabulate(reports: Iterable[Report]) -> dict[str, Tally]:
    """Tallies over all pictures, by the keys of `MEASURES`."""
    return _tallies(MEASURES, (outcome for report in reports for outcome in _outcomes(report)))


def tabulate_edits(reports: Iterable[EditReport]) -> dict[str, Tally]:
    """Tallies over all edits, by the keys of `EDIT_MEASURES`."""
    return _tallies(EDIT_MEASURES, (outcome for report in reports for outcome in _edit_outcomes(report)))


def mean_untouched(reports: Iterable[EditReport]) -> float | None:
    """Mean PSNR in dB of what edits had no business with, None without a finite one."""
    values = [r.untouched for r in reports if r.untouched is not None and math.isfinite(r.untouched)]
    return sum(values) / len(values) if values else None


def as_text(table: Table) -> str:
    """A table for people, a line a measure."""
    return "\n".join(
        f"{name:<20}{percent(tally):>7}  {tally.right:>5} of {tally.cases:<5}  {_meaning(name)}"
        for name, tally in table.items()
    )


def as_markdown(tables: Mapping[str, Table], measures: Sequence[str]) -> str:
    """Several tables side by side, a column each, with these measures as rows."""
    rows = [["", *tables], ["---"] * (len(tables) + 1)]
    rows += [
        [_meaning(name), *(percent(table.get(name, Tally())) for table in tables.values())]
        for name in measures
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def as_json(table: Table) -> dict[str, dict[str, float | int | None]]:
    """A table for programs."""
    return {
        name: {"right": tally.right, "cases": tally.cases, "share": tally.share}
        for name, tally in table.items()
    }


def percent(tally: Tally) -> str:
    """The share as text, "-" without cases."""
    return "-" if tally.share is None else f"{tally.share:.1%}"


def _meaning(name: str) -> str:
    return (MEASURES | EDIT_MEASURES)[name]


def _tallies(measures: Iterable[str], outcomes: Iterable[tuple[str, bool]]) -> dict[str, Tally]:
    found: dict[str, list[bool]] = {name: [] for name in measures}
    for name, right in outcomes:
        found[name].append(right)
    return {name: Tally(right=sum(rights), cases=len(rights)) for name, rights in found.items()}


def _outcomes(report: Report) -> Iterator[tuple[str, bool]]:
    """Every judgement in a report, by the measure it belongs to."""
    for check in report.objects:
        group = report.claims.groups[check.group]
        yield "objects", check.right
        yield "found", check.found is not None
        if check.found is not None:
            yield "shapes", check.shape
            yield "fills", check.fill
            if group.colour is not None:
                yield "colours", check.colour
            if group.size is not None:
                yield "sizes", check.size
    for group, (right, _) in zip(report.claims.groups, report.counts, strict=True):
        yield "counts", right
        if group.count > 1:
            yield "counts of several", right
    for relation in report.relations:
        yield "relations", relation.right
        yield "relations, strictly", relation.right and relation.sure
    for _, right in report.positions:
        yield "positions", right
    yield "ground", report.ground
    if report.claims.ground is not None:
        yield "named grounds", report.ground
    yield "nothing extra", not report.extra
    yield "whole", report.whole


def _edit_outcomes(report: EditReport) -> Iterator[tuple[str, bool]]:
    yield "done", report.done
    yield "kept", report.kept
    yield "edited", report.whole
    if report.untouched is not None:
        yield "untouched", report.untouched >= LEAST_UNTOUCHED_DB
