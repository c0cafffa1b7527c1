"""A fetched file's names in the client's cache: its place in a snapshot, and the branch or tag that led to it.

In: a blob that is right, and where it belongs. Out: what huggingface_hub would have made of it, in the layout that it
documents. Refuses to know: the hub. The client asks it once more for every file before it makes a link, and sleeps
unheard for as long as a hub that is overloaded says; the plan has said all of it already.
"""

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from huggingface_hub.file_download import are_symlinks_supported

logger = logging.getLogger(__name__)

_TAG: Final = "Signature: 8a477f597d28d172789f06886806bc55\n"
"""The first line of a CACHEDIR.TAG, by which programs that make backups know a cache (bford.info/cachedir)."""


def place_in_snapshot(blob: Path, place: Path, cache: Path) -> None:
    """Have a file at its place: a link to its blob, or the blob itself where the file system of the cache has no links.

    What is at the place already stays, where it leads to a file.
    """
    if place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if not are_symlinks_supported(cache):
        blob.replace(place)
        return
    place.unlink(missing_ok=True)  # a link to nothing
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except FileExistsError:  # another process was first
        if not place.exists():
            raise


def name_revision(repository: Path, revision: str, commit: str) -> None:
    """Write down which commit a branch, a tag or a shortened hash stands for, for who asks the cache only.

    A cache that is whole and cannot be written still serves who asks the hub, so that is only a warning.
    """
    ref = repository / "refs" / revision
    if revision == commit or (ref.is_file() and ref.read_text(encoding="ascii") == commit):
        return
    written = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")  # nobody reads half of a hash
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(commit, encoding="ascii")
        written.replace(ref)
    except OSError as error:
        logger.warning("The cache will not know %s without the hub: %s", revision, error)


def tag_cache(cache: Path) -> None:
    """Mark the folder as a cache, as the client does; where it cannot be written, leave it."""
    tag = cache / "CACHEDIR.TAG"
    with suppress(OSError):
        if not tag.exists():
            tag.write_text(_TAG, encoding="ascii")
