"""`kandinsky5 models`: the checkpoints known by name, and those in the cache.

In: a cache. Out: a table on standard output. Refuses to know: how a cache is laid out.
"""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from kandinsky5.cli.pull import CacheDir
from kandinsky5.variants import VARIANTS, Variant, embedded_folder

if TYPE_CHECKING:
    from kandinsky5.hub import CachedModel

WIDTH_OF_FILES = 160
"""Columns of the table where standard output is no terminal."""


def models(
    cache_dir: CacheDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.")] = False,
) -> None:
    """List known checkpoints, and others of Kandinsky 5 in the cache, with their sizes."""
    rows = describe(cache_dir)
    if as_json:
        typer.echo(json.dumps(rows))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_OF_FILES)
    console.print(_table(rows))


def describe(cache_dir: CacheDir = None) -> list[dict[str, Any]]:
    """A row for each known checkpoint and each cached revision; asks nobody, downloads nothing."""
    from kandinsky5.hub import cached

    found: dict[str, list[CachedModel]] = {}
    for entry in cached(cache_dir):
        found.setdefault(entry.repo_id, []).append(entry)
    rows = []
    for variant in VARIANTS:
        if variant.hub_id is None:
            rows.append(_embedded(variant))
            continue
        known: dict[str, Any] = {"name": variant.name, "task": variant.task, "summary": variant.summary}
        entries = found.pop(variant.hub_id, [])
        rows += [known | _stored(entry, variant.approximate_bytes) for entry in entries]
        if not entries:
            rows.append(known | _row(variant.hub_id, "to fetch", approximate_bytes=variant.approximate_bytes))
    for entries in found.values():
        rows += [{"name": None, "task": _task(entry), "summary": None, **_stored(entry)} for entry in entries]
    return rows


def _embedded(variant: Variant) -> dict[str, Any]:
    folder = embedded_folder()
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    state = "here" if (folder / "model_index.json").is_file() else "incomplete"
    return {
        "name": variant.name,
        "task": variant.task,
        "summary": variant.summary,
        **_row(None, state, size=size, folder=str(folder)),
    }


def _stored(entry: "CachedModel", approximate_bytes: int | None = None) -> dict[str, Any]:
    state = "incomplete" if entry.missing else "here"
    return _row(
        entry.repo_id,
        state,
        size=entry.size,
        partial=entry.partial,
        approximate_bytes=approximate_bytes,
        revision=entry.commit,
        refs=list(entry.refs),
        folder=str(entry.folder),
        missing=list(entry.missing),
    )


def _row(hub_id: str | None, state: str, **facts: Any) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "size": None,
        "partial": 0,
        "approximate_bytes": None,
        "revision": None,
        "refs": [],
        "folder": None,
        "missing": [],
    }
    return {"hub_id": hub_id, "state": state, **empty, **facts}


def _task(entry: "CachedModel") -> str | None:
    """The task, by the pipeline class that the folder names."""
    name = entry.pipeline_class or ""
    return "text-to-image" if "T2I" in name else "editing" if "I2I" in name else None


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "task", "state", "size", "revision"):
        table.add_column(column, no_wrap=True, justify="right" if column == "size" else "left")
    table.add_column("hub id", overflow="fold")
    for row in rows:
        revision = (row["revision"] or "")[:10] + (f" ({', '.join(row['refs'])})" if row["refs"] else "")
        cells = (
            row["name"] or "",
            row["task"] or "",
            row["state"],
            _size(row),
            revision,
            row["hub_id"] or "",
        )
        table.add_row(*cells)
    return table


def _size(row: dict[str, Any]) -> str:
    """What is here, what there is, or both for a checkpoint that was begun."""
    whole = f"~{_gigabytes(row['approximate_bytes'])}" if row["approximate_bytes"] is not None else ""
    if row["size"] is None:
        return whole
    here = _gigabytes(row["size"] + (row["partial"] if row["state"] == "incomplete" else 0))
    return f"{here} of {whole}" if row["state"] == "incomplete" and whole else here


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
