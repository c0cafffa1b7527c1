"""A folder that is written whole or not at all.

Comes in: where a folder should be. Goes out: an empty one to write into, on the same file system; when the writer is
done it takes the place, and when the writer or the move fails nothing of it stays, and what was there is there again.
Files that are mapped while they are replaced (a pipeline saved over its own source) stay whole, since they are moved
aside and not overwritten. It refuses to know what is in the files.
"""

import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator
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
        CheckpointError: it cannot be written (disk full, no permission, a file where a folder goes).
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
    """Move the files over, all of them or none; what is left of earlier weights goes, since a library might read it."""
    if not target.exists():
        stage.rename(target)
        return
    new = [file.relative_to(stage) for file in stage.rglob("*") if file.is_file()]
    for name in new:
        _check_place(target, name)
    aside = stage.with_name(f"{stage.name}-before")
    moves = _Moves()
    try:
        for name in [*new, *_left_over(target, new)]:
            if os.path.lexists(target / name):
                moves.move(target / name, aside / name)
        for name in new:
            moves.move(stage / name, target / name)
    except BaseException:
        moves.undo()
        raise
    finally:
        if not moves.undoing:  # else what was there is aside still
            shutil.rmtree(aside, ignore_errors=True)


class _Moves:
    """Files that were moved and folders that were made for them, to be taken back."""

    def __init__(self) -> None:
        self.undoing = False
        self._moved: list[tuple[Path, Path]] = []
        self._made: list[Path] = []

    def move(self, source: Path, destination: Path) -> None:
        for folder in reversed([parent for parent in destination.parents if not parent.exists()]):
            folder.mkdir()
            self._made.append(folder)
        source.rename(destination)
        self._moved.append((source, destination))

    def undo(self) -> None:
        self.undoing = True
        for source, destination in reversed(self._moved):
            destination.rename(source)
        for folder in reversed(self._made):
            folder.rmdir()
        self.undoing = False


def _check_place(target: Path, name: Path) -> None:
    """Refuse a file that cannot be put into a folder, before any is."""
    place = target / name
    if place.is_dir():
        raise CheckpointError(f"{place} is a folder, where a file is to be written.")
    folder = place.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is a file, where a folder is to be written.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(f"{folder} cannot be written; give it another mode, or save elsewhere.")


def _left_over(target: Path, new: Collection[Path]) -> list[Path]:
    """Files of earlier weights that are not replaced, by their names below the folder."""
    weights = {(name.parent, _weights(name.name)) for name in new if _weights(name.name)}
    return [
        name
        for folder, which in weights
        if (target / folder).is_dir()
        for old in (target / folder).iterdir()
        if _weights(old.name) == which and (name := old.relative_to(target)) not in new
    ]


def _weights(name: str) -> tuple[str, str | None] | None:
    """Which weights a file is of: stem and variant; None if it is another kind of file."""
    match = WEIGHTS.fullmatch(name) if ".safetensors" in name else None
    return (match["stem"], match["variant"]) if match else None
