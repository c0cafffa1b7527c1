"""`kandinsky5 pull ID`: a checkpoint from the hub into the cache, whole and checked.

In: a name or hub id. Out: the folder, on standard output; the bar goes to standard error. Refuses to know: the hub's
protocol and which files a checkpoint needs.
"""

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.progress import TimeRemainingColumn as EstimateColumn

from kandinsky5.errors import RequestError
from kandinsky5.variants import VARIANTS, resolve_model

if TYPE_CHECKING:
    from kandinsky5.hub import FetchedBytes

CacheDir = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="The cache. Default: HF_HUB_CACHE, or the client's.")
]


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME|ID",
            help=f"One of {', '.join(v.name for v in VARIANTS if v.hub_id)}, or a hub id.",
            show_default=False,
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="Branch, tag or commit. Default: main.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A file that holds a token. Default: HF_TOKEN, or that of hf auth login."
        ),
    ] = None,
    cache_dir: CacheDir = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No bar.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fetch a checkpoint, check it against the hub's hashes, and print its folder.

    Only what a pipeline reads is fetched, and only if the disk has room. Whole files are kept when it is interrupted.
    """
    source = resolve_model(model)
    if source.hub_id is None:
        raise RequestError(f"{source.name} is in {source.folder} already; there is nothing to fetch.")
    from kandinsky5.hub import HubAccess, check_room, fetch_planned, plan

    quieten_client()
    access = HubAccess(token=_token(token_file), cache_dir=cache_dir)
    task = source.variant.task if source.variant is not None else "text-to-image"
    wanted = plan(source.hub_id, task=task, revision=revision, access=access)
    to_fetch = check_room(wanted, access)
    with _bars(to_fetch, wanted.size, shown=not quiet) as on_bytes:
        folder = fetch_planned(wanted, access, check_all=True, on_bytes=on_bytes)
    facts = {
        "hub_id": wanted.repo_id,
        "revision": wanted.commit,
        "folder": str(folder),
        "files": len(wanted.files),
        "bytes": wanted.size,
        "fetched_bytes": to_fetch,
    }
    typer.echo(json.dumps(facts) if as_json else facts["folder"])


def quieten_client() -> None:
    """Stop the client's own bars and remarks, unless --debug asks for them; its errors reach us as errors."""
    from huggingface_hub.utils import logging as client_logging

    if not logging.getLogger("kandinsky5").isEnabledFor(logging.DEBUG):
        client_logging.set_verbosity_error()


def _token(file: Path | None) -> str | None:
    """The token in a file, None without one. Its text is never shown."""
    if file is None:
        return None
    try:
        token = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"Token file {file} cannot be read: {getattr(error, 'strerror', 'not ASCII text')}."
        ) from error
    if not token or any(character.isspace() for character in token):
        raise RequestError(f"Token file {file} must hold one token and nothing else.")
    return token


@contextmanager
def _bars(to_fetch: int, to_check: int, *, shown: bool) -> Iterator["FetchedBytes"]:
    """Two bars on standard error: bytes fetched and bytes checked."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        EstimateColumn(),
    )
    lock = threading.Lock()
    with Progress(
        *columns, console=console, transient=True, disable=not (shown and console.is_terminal)
    ) as bar:
        tasks = {
            "fetched": bar.add_task("fetching", total=to_fetch, visible=to_fetch > 0),
            "checked": bar.add_task("checking", total=to_check),
        }

        def on_bytes(what: Literal["fetched", "checked"], count: int) -> None:
            with lock:
                bar.advance(tasks[what], count)

        yield on_bytes
