"""`python -m kandinsky5.demo.score FILE`: how much of what captions claim is in the pictures, as one table.

Comes in: pictures with the claims of their captions, from memory or as `preview.save_withheld` leaves them. Goes out:
a table as text or as JSON, and a sheet of the pictures that are not wholly right with what is wrong in each. Counts
what `scorer` decides, and decides nothing itself.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kandinsky5.demo.claims import Claims, Group
from kandinsky5.demo.failures import failure_grid, faults
from kandinsky5.demo.scorer import Report, score


@dataclass(frozen=True, kw_only=True)
class Tally:
    """`right` of `cases`."""

    right: int = 0
    cases: int = 0

    @property
    def share(self) -> float | None:
        """In [0, 1]; None without cases."""
        return self.right / self.cases if self.cases else None


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture to score, uint8 (S, S, 3), its caption and what that claims."""

    image: NDArray[np.uint8]
    caption: str
    claims: Claims


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


def score_all(images: Iterable[NDArray[np.uint8]], claims: Iterable[Claims]) -> list[Report]:
    """Score pictures (S, S, 3) uint8, or one array (N, S, S, 3), against their claims. ValueError: not as many."""
    return [score(image, said) for image, said in zip(images, claims, strict=True)]


def tabulate(reports: Sequence[Report]) -> dict[str, Tally]:
    """Tallies over all pictures, by the keys of `MEASURES`."""
    outcomes: dict[str, list[bool]] = {name: [] for name in MEASURES}
    for report in reports:
        for name, right in _outcomes(report):
            outcomes[name].append(right)
    return {name: Tally(right=sum(rights), cases=len(rights)) for name, rights in outcomes.items()}


def as_text(table: Mapping[str, Tally]) -> str:
    """The table for people, a line a measure."""
    lines = [
        f"{name:<20}{'-' if tally.share is None else f'{tally.share:.1%}':>7}"
        f"  {tally.right:>5} of {tally.cases:<5}  {MEASURES[name]}"
        for name, tally in table.items()
    ]
    return "\n".join(lines)


def as_json(table: Mapping[str, Tally]) -> dict[str, dict[str, float | int | None]]:
    """The table for programs."""
    return {
        name: {"right": tally.right, "cases": tally.cases, "share": tally.share}
        for name, tally in table.items()
    }


def claims_to_json(claims: Claims) -> dict[str, Any]:
    """Claims as plain lists and dicts; `claims_from_json` reads them back."""
    return asdict(claims)


def claims_from_json(data: Mapping[str, Any]) -> Claims:
    """Claims from what `claims_to_json` wrote."""
    return Claims(
        groups=tuple(Group(**group) for group in data["groups"]),
        relations=tuple((a, name, b) for a, name, b in data["relations"]),
        ground=data["ground"],
    )


def read_entries(file: Path) -> Iterator[Entry]:
    """The pictures that `preview.save_withheld` laid out on sheets beside its list of claims, `file`."""
    listed = json.loads(file.read_text(encoding="utf-8"))
    for number in sorted({entry["sheet"] for entry in listed}):
        here = [entry for entry in listed if entry["sheet"] == number]
        sheet = np.asarray(Image.open(file.with_name(f"{file.stem}-{number}.png")).convert("RGB"))
        size = sheet.shape[0] // (1 + max(entry["row"] for entry in here))
        for entry in here:
            top, left = entry["row"] * size, entry["column"] * size
            yield Entry(
                image=sheet[top : top + size, left : left + size],
                caption=entry["prompt"],
                claims=claims_from_json(entry["claims"]),
            )


def main(arguments: list[str] | None = None) -> None:
    """Score the pictures that the command line names and print the table."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky5.demo.score", description=__doc__)
    parser.add_argument(
        "files", nargs="+", type=Path, help="lists of claims beside their sheets: withheld.json"
    )
    parser.add_argument("--json", type=Path, help="write the table, and what is wrong in each picture, here")
    parser.add_argument("--failures", type=Path, help="draw the pictures that are not wholly right here")
    options = parser.parse_args(arguments)
    missing = [str(file) for file in options.files if not file.is_file()]
    if missing:
        parser.error(f"there is no file {', '.join(missing)}; name the withheld.json of a run")
    entries = [entry for file in options.files for entry in read_entries(file)]
    reports = score_all((entry.image for entry in entries), (entry.claims for entry in entries))
    table = tabulate(reports)
    sys.stdout.write(as_text(table) + "\n")
    if options.json:
        wrong = [
            {"caption": entry.caption, "faults": faults(report)}
            for entry, report in zip(entries, reports, strict=True)
            if not report.whole
        ]
        options.json.write_text(
            json.dumps({"table": as_json(table), "wrong": wrong}, indent=1), encoding="utf-8"
        )
    if options.failures:
        captions = [entry.caption for entry in entries]
        failure_grid([entry.image for entry in entries], reports, captions).save(options.failures)


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


if __name__ == "__main__":
    main()
