"""`python -m kandinsky5.demo.score FILE`: how much of what captions claim is in the pictures, as one table.

Comes in: pictures with the claims of their captions, from memory or as `preview.save_withheld` leaves them. Goes out:
a table as text or as JSON, and a sheet of the pictures that are not wholly right with what is wrong in each. Counts
what `scorer` decides, and decides nothing itself.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kandinsky5.demo.claims import Claims, Group
from kandinsky5.demo.failures import failing_cells, failure_sheet, faults
from kandinsky5.demo.scorer import Report, score
from kandinsky5.demo.tables import as_json, as_text, tabulate


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One picture to score, uint8 (S, S, 3), its caption and what that claims."""

    image: NDArray[np.uint8]
    caption: str
    claims: Claims


def score_all(images: Iterable[NDArray[np.uint8]], claims: Iterable[Claims]) -> list[Report]:
    """Score pictures (S, S, 3) uint8, or one array (N, S, S, 3), against their claims. ValueError: not as many."""
    return [score(image, said) for image, said in zip(images, claims, strict=True)]


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
        cells = failing_cells([entry.image for entry in entries], reports, captions)
        failure_sheet(cells).save(options.failures)


if __name__ == "__main__":
    main()
