"""`kandinsky5 pull ID`: a checkpoint from the hub into the cache, whole and checked.

In: a name or hub id. Out: the folder, on standard output; the bar goes to standard error. Refuses to know: the hub's
protocol and which files a checkpoint needs.
"""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kandinsky5.errors import RequestError
from kandinsky5.variants import VARIANTS, resolve_model

if TYPE_CHECKING:
    from kandinsky5.hub import HubAccess, Need, Watch

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

    Only what a pipeline reads is fetched, and only if the disk has room. When it is interrupted or killed, the same
    command goes on from the bytes it had.
    """
    source = resolve_model(model)
    if source.hub_id is None:
        raise RequestError(f"{source.name} is in {source.folder} already; there is nothing to fetch.")
    from kandinsky5.hub import HubAccess, bars, fetch, need, unseen

    quieten_client()
    access = HubAccess(token=_token(token_file), cache_dir=cache_dir)
    wanted = need.pipeline(source.variant.task if source.variant is not None else "text-to-image")
    if access.is_offline:
        facts = _facts_of(source.hub_id, fetch(source.hub_id, wanted, revision=revision, access=access))
    else:
        facts = _fetched(source.hub_id, wanted, revision, access, unseen if quiet else bars)
    typer.echo(json.dumps(facts) if as_json else facts["folder"])


def _fetched(
    hub_id: str, need: "Need", revision: str | None, access: "HubAccess", watch: "Watch"
) -> dict[str, Any]:
    """What is told of a fetch, once it is done."""
    from kandinsky5.hub import check_room, fetch_planned, plan

    wanted = plan(hub_id, need, revision=revision, access=access)
    to_fetch = check_room(wanted, access)
    try:
        folder = fetch_planned(wanted, access, check_all=True, watch=watch)
    except KeyboardInterrupt:
        typer.echo("kandinsky5: what came is kept; the same command goes on from there.", err=True)
        raise
    return {
        "hub_id": wanted.repo_id,
        "revision": wanted.commit,
        "folder": str(folder),
        "files": len(wanted.files),
        "bytes": wanted.size,
        "fetched_bytes": to_fetch,
    }


def _facts_of(hub_id: str, folder: Path) -> dict[str, Any]:
    """What is told of a whole copy, while the hub must not be asked (HF_HUB_OFFLINE)."""
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    return {
        "hub_id": hub_id,
        "revision": folder.name,
        "folder": str(folder),
        "files": len(sizes),
        "bytes": sum(sizes),
        "fetched_bytes": 0,
    }


def quieten_client(*, bars: bool = False) -> None:
    """Stop the client's own bars and remarks, unless --debug asks for them; its errors reach us as errors.

    Args:
        bars: also ours of what is fetched, for --quiet.
    """
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as client_logging

    if bars:
        disable_progress_bars()
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
