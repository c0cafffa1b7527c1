"""From a hub id to a folder in the cache that is whole and has the hub's hashes.

In: what is needed of a repository. Out: the folder, or an error and no file in it that is not right. Files are fetched
by `hub.blob` and named by `hub.links`, in the client's cache and as it names them. Refuses to know: tensors and
pipelines.
"""

import logging
import shutil
import threading
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from huggingface_hub import hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, validate_repo_id

from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.hub.access import HubAccess, absence, may_use_cache, refusal
from kandinsky5.hub.bars import Counted, FetchedBytes, Watch, bars
from kandinsky5.hub.blob import Blob, fetch_blob
from kandinsky5.hub.cache import missing_files, stored_folder
from kandinsky5.hub.links import name_revision, place_in_snapshot, tag_cache
from kandinsky5.hub.lock import locked
from kandinsky5.hub.need import Need
from kandinsky5.hub.selection import Plan, PlannedFile, plan

logger = logging.getLogger(__name__)

STREAMS: Final = 4
"""Files fetched at a time: enough to fill a line, and few enough for the hub's limits."""


def fetch(
    repo_id: str,
    need: Need | None = None,
    *,
    revision: str | None = None,
    access: HubAccess | None = None,
    force: bool = False,
    check_all: bool = False,
    watch: Watch = bars,
) -> Path:
    """The folder of a repository's revision in the cache, fetched as far as it is not there.

    Every file that is fetched is checked against the hub's SHA-256 (small ones: git's hash); with `check_all` also
    those that were there. A file that fails is removed, and fetched again if it was there before. A fetch that was
    interrupted or killed goes on from the bytes it had. When the hub cannot be reached, a whole copy in the cache is
    used, with a warning.

    Args:
        repo_id, need, revision, access: as `plan` takes them.
        force: fetch everything again.
        check_all: read and check all files again (29 GB take about a minute from a fast disk).
        watch: shows progress; `hub.unseen` shows none.

    Raises:
        CheckpointError: the hub refuses or is out of reach, or a file is not what the hub says it is.
        CapacityError: the disk has no room; asked before the first byte of a large file.
        RequestError: `force` while the hub must not be asked.
    """
    access, need = access or HubAccess(), need or Need()
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise refusal(error, access, repo_id, revision) from error
    if access.is_offline:
        if force:
            raise RequestError(
                f"{repo_id} cannot be fetched again (force_download) while the hub must not be asked; leave out "
                "local_files_only and HF_HUB_OFFLINE, or force_download."
            )
        return _from_cache(repo_id, need, revision, access)
    try:
        wanted = plan(repo_id, need, revision=revision, access=access)
    except CheckpointError as error:
        folder = stored_folder(repo_id, need, revision, access.cache_folder)
        if force or error.__cause__ is None or not may_use_cache(error.__cause__) or folder is None:
            raise
        if missing_files(folder, need):
            raise
        logger.warning("The hub cannot be asked about %s; using the copy in %s. (%s)", repo_id, folder, error)
        return folder
    return fetch_planned(wanted, access, force=force, check_all=check_all, watch=watch)


def fetch_planned(
    wanted: Plan, access: HubAccess, *, force: bool = False, check_all: bool = False, watch: Watch = bars
) -> Path:
    """The folder of a plan's commit, as `fetch` makes it."""
    to_fetch = check_room(wanted, access, force=force)
    folder = _snapshot(wanted, access)
    with watch(to_fetch, wanted.size if check_all else to_fetch) as on_bytes:
        run = _Run(wanted, access, force, check_all, on_bytes)
        try:
            run.fetch_files(wanted.files[:1])
            tag_cache(access.cache_folder)
            # The branch or tag is known to the cache from here on, so that it is found there without a network.
            name_revision(_repository(wanted, access), wanted.revision or "main", wanted.commit)
            # Small files next: what an index names and nobody has is known before the gigabytes.
            run.fetch_files(file for file in wanted.files[1:] if file.sha256 is None)
            _check_lacks(wanted, folder, {file.path for file in wanted.files})
            run.fetch_files(file for file in wanted.files[1:] if file.sha256 is not None)
        except CapacityError:
            raise
        except Exception as error:
            raise refusal(error, access, wanted.repo_id, wanted.revision) from error
    _check_lacks(wanted, folder)
    return folder


def check_room(wanted: Plan, access: HubAccess, *, force: bool = False) -> int:
    """The bytes still to fetch. Raises CapacityError when the disk of the cache has less room than that."""
    needed = sum(_left(wanted, file, access, force) for file in wanted.files)
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


def _check_lacks(wanted: Plan, folder: Path, coming: Collection[str] = ()) -> None:
    """Refuse a repository whose own indexes name more than it has."""
    missing = missing_files(folder, wanted.need, coming)
    if missing:
        raise CheckpointError(f"{wanted.repo_id} lacks {missing[0]}, which its own index names.")


def _left(wanted: Plan, file: PlannedFile, access: HubAccess, force: bool) -> int:
    """The bytes of a file that are still to fetch."""
    if force:
        return file.size
    if is_stored(wanted, file, access):
        return 0
    kept = _blob(wanted, file, access).kept()
    return file.size - kept if kept <= file.size else file.size


def is_stored(wanted: Plan, file: PlannedFile, access: HubAccess) -> bool:
    """Whether a file of this size is in the cache, under this revision or another."""
    place = stored_place(wanted, file, access)
    return place is not None and _size_of(place) == file.size


def stored_place(wanted: Plan, file: PlannedFile, access: HubAccess) -> Path | None:
    """Where the cache holds a file, right or not; None when it does not."""
    blob = _repository(wanted, access) / "blobs" / file.etag
    if blob.is_file():
        return blob
    path = try_to_load_from_cache(
        wanted.repo_id, file.path, cache_dir=access.cache_folder, revision=wanted.commit
    )
    return Path(path) if isinstance(path, str) else None


def _size_of(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process is replacing it
        return None


def _repository(wanted: Plan, access: HubAccess) -> Path:
    """The folder of a repository in the cache."""
    return access.cache_folder / repo_folder_name(repo_id=wanted.repo_id, repo_type="model")


def _snapshot(wanted: Plan, access: HubAccess) -> Path:
    """The folder of the plan's commit, which may not exist yet."""
    return _repository(wanted, access) / "snapshots" / wanted.commit


def _blob(wanted: Plan, file: PlannedFile, access: HubAccess) -> Blob:
    repository = _repository(wanted, access)
    return Blob(
        path=repository / "blobs" / file.etag,
        lock=access.cache_folder / ".locks" / repository.name / f"{file.etag}.lock",
        size=file.size,
        digest=file.etag,
        name=f"{wanted.repo_id}/{file.path}",
    )


class _Stopped(Exception):  # noqa: N818 - not an error: another thread's is
    """Another file failed, or the run was interrupted."""


class _Run:
    """One fetch: its plan, and the flag that ends all its threads."""

    def __init__(
        self, wanted: Plan, access: HubAccess, force: bool, check_all: bool, on_bytes: FetchedBytes
    ) -> None:
        self._wanted = wanted
        self._access = access
        self._force = force
        self._check_all = check_all
        self._on_bytes = on_bytes
        self._ended = threading.Event()

    def fetch_files(self, files: Iterable[PlannedFile]) -> None:
        """Several files at a time, each at its place in the snapshot once it is right.

        The first error ends the others at their next bytes.
        """
        with ThreadPoolExecutor(STREAMS, thread_name_prefix="fetch") as pool:
            tasks = {pool.submit(self._bring, file): file for file in files}
            try:
                for task in as_completed(tasks):
                    task.result()
                    self._link(tasks[task])
            except BaseException:
                self._ended.set()
                raise
            finally:
                for task in tasks:
                    task.cancel()

    def _bring(self, file: PlannedFile) -> None:
        """Have a file's bytes in the cache. What is damaged is dropped by the one process that has the lock."""
        self._go_on()
        blob = _blob(self._wanted, file, self._access)
        place = None if self._force else stored_place(self._wanted, file, self._access)
        if place is not None and self._holds(blob, place):
            return
        if place is not None and self._check_all:
            logger.warning("%s in the cache is damaged; fetching it again.", file.path)
        with locked(blob.lock, go_on=self._go_on, waiting=lambda count: self._tell("waiting", count)):
            place = stored_place(self._wanted, file, self._access)
            if not self._force and place is not None and self._holds(blob, place):
                return  # another process, or another file with the same bytes, was first
            if place is not None and not self._force:
                _discard(place)
            fetch_blob(
                blob,
                hf_hub_url(
                    self._wanted.repo_id,
                    file.path,
                    revision=self._wanted.commit,
                    endpoint=self._access.address,
                ),
                build_hf_headers(token=self._access.token),
                force=self._force,
                on_fetched=self._on_fetched,
                on_checked=self._on_checked,
            )
            if self._force and place is not None and place != blob.path:  # a copy, where there are no links
                place.unlink(missing_ok=True)

    def _holds(self, blob: Blob, place: Path) -> bool:
        """Whether what is there is the file: by its size, and where it is asked for by its hash."""
        if self._check_all:
            return blob.is_right(place, self._on_checked)
        return _size_of(place) == blob.size

    def _link(self, file: PlannedFile) -> None:
        """Have a file at its place in the snapshot."""
        blob = _blob(self._wanted, file, self._access)
        place = _snapshot(self._wanted, self._access) / file.path
        if not (blob.path.exists() or place.exists()):
            self._bring(file)  # without links, another file with the same bytes took them
        place_in_snapshot(blob.path, place, self._access.cache_folder)

    def _on_fetched(self, count: int) -> None:
        self._go_on()
        self._tell("fetched", count)

    def _on_checked(self, count: int) -> None:
        self._tell("checked", count)

    def _go_on(self) -> None:
        if self._ended.is_set():
            raise _Stopped

    def _tell(self, what: Counted, count: int) -> None:
        if count:
            self._on_bytes(what, count)


def _from_cache(repo_id: str, need: Need, revision: str | None, access: HubAccess) -> Path:
    """The folder of a revision, without asking the hub. Raises CheckpointError when it is not whole."""
    folder = stored_folder(repo_id, need, revision, access.cache_folder)
    if folder is None:
        raise CheckpointError(absence(access, repo_id, revision))
    missing = missing_files(folder, need)
    if missing:
        raise CheckpointError(
            f"The copy of {repo_id} in {folder} is not whole: it lacks {missing[0]}, and the hub must not be asked "
            f"(local_files_only, or HF_HUB_OFFLINE is set); kandinsky5 pull {repo_id} completes it where there is a "
            "network."
        )
    return folder


def _discard(path: Path) -> None:
    """Remove a file from the snapshot together with the bytes it points to."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
