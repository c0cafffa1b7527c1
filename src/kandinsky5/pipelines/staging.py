"""A folder that is written whole or not at all.

Comes in: where a folder should be. Goes out: an empty one to write into, on the same file system; when the writer is
done it takes the place, and when the writer fails nothing of it stays. Files that are mapped while they are replaced
(a pipeline saved over its own source) stay whole, since they are unlinked and not overwritten. It refuses to know what
is in the files.
"""

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from kandinsky5.checkpoint.document import reason
from kandinsky5.errors import CheckpointError, RequestError

WEIGHTS = re.compile(
    r"(?P<stem>\w+)(\.safetensors\.index)?(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.(safetensors|json)"
)
"""Names of weight files and their indices: one file, shards, with or without a variant."""


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A folder whose content is `target`'s once the block ends.

    A folder that exists keeps its other files, as when the libraries write into it; weights of components that were
    written are replaced.

    Raises:
        RequestError: `target` is a file.
        CheckpointError: it cannot be written (disk full, no permission).
    """
    if target.exists() and not target.is_dir():
        raise RequestError(f"{target} is a file; a pipeline is saved in a folder.")
    place = target if target.is_dir() else target.parent
    stage = place / f".saving-{secrets.token_hex(4)}"
    try:
        stage.mkdir(parents=True)
        yield stage
        _settle(stage, target)
    except (OSError, SafetensorError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{target} cannot be written: {reason(error)}") from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _settle(stage: Path, target: Path) -> None:
    if not target.exists():
        stage.rename(target)
        return
    """Move the files over; what is left of earlier weights goes, since a library might read it instead."""
    new = [file.relative_to(stage) for file in stage.rglob("*") if file.is_file()]
    for name in new:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).replace(target / name)
    weights = {(name.parent, _weights(name.name)) for name in new if _weights(name.name)}
    for folder, which in weights:
        for old in (target / folder).iterdir():
            if _weights(old.name) == which and old.relative_to(target) not in new:
                old.unlink()


def _weights(name: str) -> tuple[str, str | None] | None:
    """Which weights a file is of: stem and variant; None if it is another kind of file."""
    match = WEIGHTS.fullmatch(name) if ".safetensors" in name else None
    return (match["stem"], match["variant"]) if match else None
