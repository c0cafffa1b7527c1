"""From a hub id to a folder in the cache that is whole and has the hub's hashes.

In: what `plan` found. Out: the folder, or an error and no file in it that is not right. The client downloads, takes up
a connection that broke, and links files into its cache; room, hashes and words are ours. Refuses to know: tensors and
pipelines, and how progress is shown.
"""

import hashlib
import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final, Literal

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import tqdm as client_bar

from kandinsky5.errors import CapacityError, CheckpointError
from kandinsky5.hub.access import HubAccess, absence, may_use_cache, refusal
from kandinsky5.hub.cache import missing_files, stored_folder
from kandinsky5.hub.selection import Plan, PlannedFile, plan
from kandinsky5.prompts import Task

logger = logging.getLogger(__name__)

FetchedBytes = Callable[[Literal["fetched", "checked"], int], None]
"""Called from several threads with the bytes that were fetched or checked since the last call (negative: again)."""

STREAMS: Final = 4
"""Files fetched at a time: enough to fill a line, and few enough for the hub's limits."""

_HASH_CHUNK: Final = 1 << 22


def fetch(
    repo_id: str,
    *,
    task: Task = "text-to-image",
    revision: str | None = None,
    precision: str | None = None,
    access: HubAccess | None = None,
    check_all: bool = False,
    on_bytes: FetchedBytes | None = None,
) -> Path:
    """The folder of a repository's revision in the cache, fetched as far as it is not there.

    Every file that is fetched is checked against the hub's SHA-256 (small ones: git's hash); with `check_all` also
    those that were there. A file that fails is removed, and fetched again if it was there before. When the hub cannot
    be reached, a whole copy in the cache is used, with a warning.

    Args:
        repo_id, task, revision, precision, access: as `plan` takes them.
        check_all: read and check all files again (29 GB take about a minute from a fast disk).
        on_bytes: told of progress. What it raises ends the run.

    Raises:
        CheckpointError: the hub refuses or is out of reach, or a file is not what the hub says it is.
        CapacityError: the disk has no room.
    """
    access = access or HubAccess()
    if access.is_offline:
        return _from_cache(repo_id, revision, access)
    try:
        wanted = plan(repo_id, task=task, revision=revision, precision=precision, access=access)
    except CheckpointError as error:
        folder = stored_folder(repo_id, revision, access.cache_folder)
        if error.__cause__ is None or not may_use_cache(error.__cause__) or folder is None:
            raise
        if missing_files(folder):
            raise
        logger.warning("The hub cannot be asked about %s; using the copy in %s. (%s)", repo_id, folder, error)
        return folder
    return fetch_planned(wanted, access, check_all=check_all, on_bytes=on_bytes)


def fetch_planned(
    wanted: Plan, access: HubAccess, *, check_all: bool = False, on_bytes: FetchedBytes | None = None
) -> Path:
    """The folder of a plan's commit, as `fetch` makes it."""
    check_room(wanted, access)
    run = _Run(wanted, access, check_all, on_bytes)
    try:
        # The first file makes the branch or tag known to the cache, so that it is found there without a network.
        index = run.fetch_file(wanted.files[0], wanted.revision or "main")
        if index.parent.name != wanted.commit:
            raise CheckpointError(f"{wanted.repo_id} was changed while it was fetched; try again.")
        run.fetch_files(wanted.files[1:])
    except CapacityError:
        raise
    except Exception as error:
        raise refusal(error, access, wanted.repo_id, wanted.revision) from error
    missing = missing_files(index.parent)
    if missing:
        raise CheckpointError(f"{wanted.repo_id} lacks {missing[0]}, which its own index names.")
    return index.parent


def check_room(wanted: Plan, access: HubAccess) -> int:
    """The bytes still to fetch. Raises CapacityError when the disk of the cache has less room than that."""
    needed = sum(file.size for file in wanted.files if not is_stored(wanted, file, access))
    place = access.cache_folder
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if needed > free:
        raise CapacityError(
            f"{wanted.repo_id} needs {needed / 1e9:.2f} GB more in {access.cache_folder}, where {free / 1e9:.2f} GB "
            "are free; free some room, or name another cache (--cache-dir, HF_HUB_CACHE)."
        )
    return needed


def is_stored(wanted: Plan, file: PlannedFile, access: HubAccess) -> bool:
    """Whether a file of this size is in the cache, under this revision or another."""
    folder = access.cache_folder / repo_folder_name(repo_id=wanted.repo_id, repo_type="model")
    blob = folder / "blobs" / file.etag
    if blob.is_file():
        return blob.stat().st_size == file.size
    path = try_to_load_from_cache(
        wanted.repo_id, file.path, cache_dir=access.cache_folder, revision=wanted.commit
    )
    return isinstance(path, str) and Path(path).stat().st_size == file.size


class _Stopped(Exception):  # noqa: N818 - not an error: another thread's is
    """Another file failed, or the run was interrupted."""


class _Run:
    """One fetch: its plan, and the flag that ends all its threads."""

    def __init__(
        self, wanted: Plan, access: HubAccess, check_all: bool, on_bytes: FetchedBytes | None
    ) -> None:
        self._wanted = wanted
        self._access = access
        self._check_all = check_all
        self._on_bytes = on_bytes
        self._ended = threading.Event()
        self._bar = _bar_class(self._on_fetched)

    def fetch_files(self, files: tuple[PlannedFile, ...]) -> None:
        """Several files at a time. The first error ends the others at their next bytes."""
        with ThreadPoolExecutor(STREAMS, thread_name_prefix="fetch") as pool:
            tasks = [pool.submit(self.fetch_file, file, self._wanted.commit) for file in files]
            try:
                wait(tasks, return_when=FIRST_EXCEPTION)
            finally:  # also for Ctrl-C, which arrives in the thread that waits
                self._ended.set()
                for task in tasks:
                    task.cancel()
        errors = [error for task in tasks if not task.cancelled() and (error := task.exception())]
        for error in sorted(errors, key=lambda error: isinstance(error, _Stopped)):
            raise error

    def fetch_file(self, file: PlannedFile, revision: str) -> Path:
        """Where a file is in the snapshot, once it is there and right."""
        was_here = is_stored(self._wanted, file, self._access)
        path = self._download(file, revision)
        if was_here:
            self._go_on()
            if not self._check_all or self._is_right(file, path):
                return path
            logger.warning("%s in the cache is damaged; fetching it again.", file.path)
            _discard(path)
            path = self._download(file, revision)
        if not self._is_right(file, path):
            _discard(path)
            raise CheckpointError(
                f"{self._wanted.repo_id}/{file.path} arrived damaged: it has not the hash that the hub gives. It was "
                "removed; try again, and if that does not help, suspect a proxy or this machine's memory and disk."
            )
        return path

    def _download(self, file: PlannedFile, revision: str) -> Path:
        self._go_on()
        stale = try_to_load_from_cache(
            self._wanted.repo_id, file.path, cache_dir=self._access.cache_folder, revision=self._wanted.commit
        )
        if isinstance(stale, str) and Path(stale).stat().st_size != file.size:
            _discard(Path(stale))
        return Path(
            hf_hub_download(
                self._wanted.repo_id,
                file.path,
                revision=revision,
                cache_dir=self._access.cache_folder,
                endpoint=self._access.endpoint,
                token=self._access.token,
                tqdm_class=self._bar,
            )
        )

    def _is_right(self, file: PlannedFile, path: Path) -> bool:
        """Whether the bytes are those the hub describes; goes on when the run ends, so that nothing stays unchecked."""
        if path.stat().st_size != file.size:
            return False
        digest = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode())
        with path.open("rb") as data:
            while chunk := data.read(_HASH_CHUNK):
                digest.update(chunk)
                self._tell("checked", len(chunk))
        return digest.hexdigest() == file.etag

    def _on_fetched(self, count: int) -> None:
        self._go_on()
        self._tell("fetched", count)

    def _go_on(self) -> None:
        if self._ended.is_set():
            raise _Stopped

    def _tell(self, what: Literal["fetched", "checked"], count: int) -> None:
        if self._on_bytes is not None and count:
            self._on_bytes(what, count)


def _from_cache(repo_id: str, revision: str | None, access: HubAccess) -> Path:
    """The folder of a revision, without asking the hub. Raises CheckpointError when it is not whole."""
    folder = stored_folder(repo_id, revision, access.cache_folder)
    if folder is None:
        raise CheckpointError(absence(access, repo_id, revision))
    missing = missing_files(folder)
    if missing:
        raise CheckpointError(
            f"The copy of {repo_id} in {folder} is not whole: it lacks {missing[0]}; kandinsky5 pull {repo_id} "
            "completes it."
        )
    return folder


def _discard(path: Path) -> None:
    """Remove a file from the snapshot together with the bytes it points to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _bar_class(report: Callable[[int], None]) -> type[Any]:
    """A progress bar for the client that shows nothing and reports what would have been shown."""

    class Reporting(client_bar):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            report(int(n or 0))
            return None

    return Reporting
