"""`kandinsky5 verify MODEL`: whether a checkpoint works, check by check.

In: a name, folder or hub id that is on this machine. Out: a table on standard output; CheckpointError when a check
failed, CapacityError when one found no room. Refuses to know: what is checked.
"""

import json
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from kandinsky5.cli import options
from kandinsky5.cli.imports import collecting_later, quieten_libraries
from kandinsky5.cli.models import WIDTH_OF_FILES
from kandinsky5.cli.progress import waiting
from kandinsky5.cli.pull import CacheDir, quieten_client
from kandinsky5.errors import CapacityError, CheckpointError
from kandinsky5.variants import ModelSource, resolve_model

if TYPE_CHECKING:
    from kandinsky5.verification import Finding

STYLES = {"ok": "green", "failed": "bold red", "no room": "bold yellow", "skipped": "yellow"}


def verify(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME|ID|FOLDER", help="A checkpoint on this machine.", show_default=False),
    ],
    files: Annotated[bool, typer.Option("--files", help="Look at the files only; load nothing.")] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = options.Precision.auto,
    cache_dir: CacheDir = None,
    quiet: options.Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a checkpoint: files, config, tensors, tokens of the templates, values, a forward pass and a picture.

    The forward pass is compared with diffusers' class. Ends with 3 when a check failed, and with 4 when this machine
    has no room to run the model, which is known before it is loaded.
    """
    source = resolve_model(model)
    folder = folder_of(source, cache_dir)
    findings = _findings(source, folder, device, dtype.value, files_only=files, quiet=quiet)
    failed = [finding for finding in findings if finding.outcome == "failed"]
    if as_json:
        complete = all(finding.outcome != "no room" for finding in findings)
        facts = {"model": source.name, "folder": str(folder), "ok": not failed and complete}
        typer.echo(json.dumps({**facts, "findings": [asdict(finding) for finding in findings]}))
    else:
        console = Console()
        console = console if console.is_terminal else Console(width=WIDTH_OF_FILES)
        console.print(_table(findings))
    if failed:
        checks = ", ".join(finding.check for finding in failed)
        raise CheckpointError(f"{source.name} does not pass: {checks}.")
    for finding in findings:
        if finding.outcome == "no room":
            raise CapacityError(
                f"{source.name}: no check failed, but {finding.check} has no room: {finding.figure}"
            )


def folder_of(source: ModelSource, cache_dir: Path | None) -> Path:
    """Where the checkpoint is; nothing is fetched for a look."""
    if source.folder is not None:
        return source.folder
    from kandinsky5.hub import HubAccess, fetch

    access = HubAccess(cache_dir=cache_dir, local_files_only=True)
    return fetch(str(source.hub_id), access=access)


def _findings(
    source: ModelSource, folder: Path, device: str, dtype: str, *, files_only: bool, quiet: bool
) -> list["Finding"]:
    """All findings, with a spinner on standard error that names the check under way."""
    with collecting_later():
        from kandinsky5.verification import verify as check_folder

    quieten_client()
    quieten_libraries()
    console = Console(stderr=True)
    with ExitStack() as shown:

        def on_check(check: str) -> None:
            shown.close()
            shown.enter_context(waiting(console, f"Checking {check}", shown=not quiet))

        return list(
            check_folder(
                folder, source.variant, device=device, dtype=dtype, files_only=files_only, on_check=on_check
            )
        )


def _table(findings: list["Finding"]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("check", "outcome", "figure"):
        table.add_column(column, no_wrap=column != "figure")
    for finding in findings:
        style = STYLES[finding.outcome]
        table.add_row(finding.check, f"[{style}]{finding.outcome}[/]", _escaped(finding.figure))
    return table


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)
