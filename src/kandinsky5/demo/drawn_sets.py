"""Answers to the withheld sets, drawn on one machine and judged on another: a sheet a set, and one list.

Comes in: pictures by set, and who drew them how. Goes out: a folder of `SET.png` and `withheld.json`; and back. What
was asked is in the list as text, so that pictures are never held to other questions than theirs. It decides nothing
about the pictures.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from kandinsky5.demo.examination import SETS, texts_of
from kandinsky5.demo.sampling import Picture
from kandinsky5.demo.scorecard import write_whole
from kandinsky5.demo.sheets import tiled, untiled
from kandinsky5.errors import CheckpointError, RequestError

RECORD = "withheld.json"
COLUMNS = 20
UNREADABLE = (
    *(OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, RecursionError),
    *(SyntaxError, Image.DecompressionBombError),
)
"""What json and Pillow raise of damaged files, and Python of a list that holds other things."""


@dataclass(frozen=True, kw_only=True, eq=False)
class DrawnSets:
    """`pictures` are answers to the first so many of each set; `facts` say who drew them, and how."""

    pictures: Mapping[str, Sequence[Picture]]
    facts: Mapping[str, Any]


def save_drawn(drawn: DrawnSets, folder: Path) -> list[Path]:
    """Write the sheets and the list, over what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        write_whole(folder / f"{name}.png", tiled(pictures, columns=COLUMNS).save)
        for name, pictures in drawn.pictures.items()
    ]
    asked = {name: texts_of(name, len(pictures)) for name, pictures in drawn.pictures.items()}
    record = json.dumps({**drawn.facts, "columns": COLUMNS, "sets": asked}, indent=1)
    paths.append(write_whole(folder / RECORD, lambda path: path.write_text(record + "\n", encoding="utf-8")))
    return paths


def load_drawn(folder: Path) -> DrawnSets:
    """Read what `save_drawn` wrote.

    Raises:
        RequestError: no such list, or one that asks something else than this version does.
        CheckpointError: a list or a sheet that cannot be read.
    """
    if not (folder / RECORD).is_file():
        raise RequestError(f"{folder} has no {RECORD}; name a folder that the recipe's stage withheld wrote.")
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        columns, sets = record.pop("columns"), record.pop("sets")
        pictures = {}
        for name, texts in sets.items():
            if name not in SETS or texts != texts_of(name, len(texts)):
                raise RequestError(
                    f"{folder} answers {name} that this version does not ask; score it with the version that drew it."
                )
            with Image.open(folder / f"{name}.png") as sheet:
                pictures[name] = untiled(sheet, columns=columns, count=len(texts))
    except UNREADABLE as error:
        if isinstance(error, RequestError):
            raise
        raise CheckpointError(f"{folder} cannot be read as drawn sets: {error}") from error
    if not pictures:
        raise CheckpointError(f"{folder} holds answers to no set.")
    return DrawnSets(pictures=pictures, facts=record)
