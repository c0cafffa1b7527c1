"""The scores of one checkpoint, written down: for people, for programs, and for a page.

Comes in: what `examination` found. Goes out: text, Markdown, a JSON object; and a folder of `score.json`, `score.md`
and a sheet of failures a set. Decides and counts nothing.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from kandinsky5.demo.examination import ALL, SETS, Examined
from kandinsky5.demo.failures import failure_sheet
from kandinsky5.demo.tables import EDIT_MEASURES, as_json, as_markdown, as_text, percent

HEADLINES = ("objects", "counts", "relations", "whole")
"""The measures of compositions and sentences that are aimed at."""


def headlines(examined: Examined) -> tuple[str, ...]:
    """The measures to show side by side."""
    return tuple(EDIT_MEASURES) if examined.name == "edits" else HEADLINES


def score_text(cards: Sequence[Examined]) -> str:
    """All tables for a terminal: everything measured over the whole set, then the headlines of its parts."""
    blocks = []
    for card in cards:
        lines = [f"{card.name}: {card.cases} {SETS[card.name]}", as_text(card.tables[ALL])]
        lines += [f"{name:<20}{_figure(value):>7}" for name, value in card.figures.items()]
        parts = {part: table for part, table in card.tables.items() if part != ALL}
        if parts:
            names = headlines(card)
            lines.append(f"{'':<20}" + "".join(f"{name:>11}" for name in names))
            lines += [
                f"{part:<20}" + "".join(f"{percent(table[name]):>11}" for name in names)
                for part, table in parts.items()
            ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def score_markdown(cards: Sequence[Examined]) -> str:
    """The headlines of every set, a table a set, with a column a part."""
    blocks = []
    for card in cards:
        block = f"{card.cases} {SETS[card.name]}:\n\n{as_markdown(card.tables, headlines(card))}"
        figures = [f"{name}: {_figure(value)}" for name, value in card.figures.items()]
        blocks.append("\n\n".join([block, *figures]))
    return "\n\n".join(blocks)


def score_record(cards: Sequence[Examined], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Everything as one JSON object; `facts` are what was examined, and how."""
    return {
        **facts,
        "sets": {
            card.name: {
                "cases": card.cases,
                "tables": {part: as_json(table) for part, table in card.tables.items()},
                "figures": dict(card.figures),
                "wrong": list(card.wrong),
            }
            for card in cards
        },
    }


def save_scores(cards: Sequence[Examined], facts: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `score.json`, `score.md` and `failures-SET.png`, each whole or not at all, over what is there."""
    folder.mkdir(parents=True, exist_ok=True)
    record = json.dumps(score_record(cards, facts), indent=1) + "\n"
    writers: dict[str, Callable[[Path], Any]] = {
        "score.json": lambda path: path.write_text(record, encoding="utf-8"),
        "score.md": lambda path: path.write_text(score_markdown(cards) + "\n", encoding="utf-8"),
    }
    for card in cards:
        writers[f"failures-{card.name}.png"] = partial(_save_failures, card)
    return [write_whole(folder / name, write) for name, write in writers.items()]


def write_whole(path: Path, write: Callable[[Path], Any]) -> Path:
    """Have a file written under another name of the same suffix, then give it its own."""
    unfinished = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(unfinished)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def _save_failures(card: Examined, path: Path) -> None:
    failure_sheet(card.failing).save(path)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
