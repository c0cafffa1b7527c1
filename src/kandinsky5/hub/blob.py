"""One file's bytes in the client's cache: fetched, taken up where they stopped, and right before they are named.

In: an address, and the size and hash the hub gives. Out: `blobs/<hash>`, where the client looks for it. Refuses to
know: repositories, plans, links, locks and bars.

huggingface_hub does not serve here: since it writes to a temporary name of each process's own and removes it (1.33 and
2.4 do; 1.5 did not), a fetch that was killed begins again at zero, and so does a transfer by xet. A shard of 5 GB is
worth its bytes, so this file asks for the rest of it over plain HTTP, which the hub serves for every file up to 50 GB.
The client also sleeps as long as a hub that is overloaded says, an hour if need be, and cannot be woken; here a wait is
short, and ends when the fetch does.
"""

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff

from kandinsky5.errors import CheckpointError
from kandinsky5.hub.access import TRANSPORT_ERROR, seconds_asked
from kandinsky5.hub.lock import pause

logger = logging.getLogger(__name__)

RETRIES: Final = 5
"""Attempts in a row that may bring no byte before a fetch gives up."""

RETRY_SECONDS: Final = 1.0

LONGEST_UNTOLD: Final = 8
"""Seconds of a wait that nobody is told of."""

LONGEST_WAIT: Final = 60
"""Seconds that a hub may ask to be left alone for; more is for the person to decide."""

_BUSY: Final = (408, 429, 500, 502, 503, 504)
_NOT_SATISFIABLE: Final = 416
_PARTIAL: Final = 206
_HASH_CHUNK: Final = 1 << 22

Count = Callable[[int], None]
"""Told of bytes since the last call; negative: those come again."""


@dataclass(frozen=True, kw_only=True)
class Blob:
    """Where a file's bytes are.

    Attributes:
        path: of the whole file.
        lock: to be held by the one process that fetches it (`hub.lock`). Where a file system has no locks, two
            processes may spoil each other's bytes, which the hash shows.
        digest: its SHA-256, or git's SHA-1 of a small file; the hub's ETag.
        name: what to call it in a message.
    """

    path: Path
    lock: Path
    size: int
    digest: str
    name: str

    @property
    def partial(self) -> Path:
        """The bytes so far. Named by the hash of the whole, so a file that changed on the hub starts anew."""
        return self.path.with_name(f"{self.digest}.incomplete")

    @property
    def source(self) -> Path:
        """Which ETag the server gave with the bytes so far."""
        return self.path.with_name(f"{self.digest}.incomplete.etag")

    def kept(self) -> int:
        """Bytes of an earlier fetch that the next one goes on from."""
        try:
            return self.partial.stat().st_size
        except FileNotFoundError:
            return 0

    def is_right(self, path: Path, on_checked: Count) -> bool:
        """Whether a file has this size and hash."""
        try:
            if path.stat().st_size != self.size:
                return False
            return _hash_of(path, self._hasher(), on_checked) == self.digest
        except FileNotFoundError:
            return False

    def _hasher(self) -> Any:
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode())  # git's name of a file's content

    def drop_partial(self) -> None:
        """Forget the bytes so far."""
        self.source.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)


def fetch_blob(
    blob: Blob,
    url: str,
    headers: Mapping[str, str],
    *,
    force: bool = False,
    on_fetched: Count,
    on_checked: Count,
) -> None:
    """Bring a blob into place, going on from what an earlier process left. Its lock must be held.

    Bytes kept are asked for no more (`Range`); they are dropped when the server's file has another ETag (`If-Range`),
    when the server does not do ranges, and when the whole has another hash.

    Args:
        blob: what is wanted.
        url, headers: where it is; the token goes to that host only.
        force: take nothing from before.
        on_fetched, on_checked: told of bytes as they pass. What they raise ends the fetch and keeps the bytes so far.

    Raises:
        CheckpointError: the server sends something else.
        Exception: the client's, its HTTP library's and the system's, for `hub.access.refusal`.
    """
    blob.path.parent.mkdir(parents=True, exist_ok=True)
    if force or blob.kept() > blob.size:
        blob.drop_partial()
    continued = blob.kept()
    _fill(blob, url, headers, on_fetched)
    if not blob.is_right(blob.partial, on_checked):
        blob.drop_partial()
        if not continued:
            raise CheckpointError(damage(blob.name))
        logger.warning("What was kept of %s does not fit the rest; fetching all of it.", blob.name)
        on_fetched(-blob.size)
        on_checked(-blob.size)
        _fill(blob, url, headers, on_fetched)
        if not blob.is_right(blob.partial, on_checked):
            blob.drop_partial()
            raise CheckpointError(damage(blob.name))
    blob.partial.replace(blob.path)
    blob.source.unlink(missing_ok=True)


def damage(name: str) -> str:
    """What to say of a file that is not what the hub describes."""
    return (
        f"{name} arrived damaged: it has not the hash that the hub gives. It was removed; try again, and if that does "
        "not help, suspect a proxy or this machine's memory and disk."
    )


def _fill(blob: Blob, url: str, headers: Mapping[str, str], on_fetched: Count) -> None:
    """Make the partial file as long as the whole one, over as many connections as that takes."""
    failures = 0
    while (before := blob.kept()) < blob.size:
        broke: Exception | None = None
        try:
            _receive(blob, url, headers, on_fetched)
        except (TRANSPORT_ERROR, ConnectionError, TimeoutError) as error:
            broke = error
        failures = 0 if blob.kept() > before else failures + 1
        seconds = _seconds_to_wait(broke, failures)
        if failures > RETRIES or seconds is None:
            raise broke or CheckpointError(f"{blob.name}: the hub sends none of its {blob.size} bytes.")
        if broke is not None:
            logger.info("%s broke off (%s); going on from byte %d.", blob.name, broke, blob.kept())
            if seconds > LONGEST_UNTOLD:
                logger.warning(
                    "The hub asks to be left alone for %d seconds; waiting (%s).", seconds, blob.name
                )
            pause(seconds, lambda: on_fetched(0))
    if not blob.size:
        blob.partial.touch()


def _seconds_to_wait(broke: Exception | None, failures: int) -> float | None:
    """How long to wait after what went wrong; None when another attempt would be of no use, or too far off."""
    if not isinstance(broke, HfHubHTTPError):
        return RETRY_SECONDS
    if broke.response.status_code not in _BUSY:
        return None
    asked = seconds_asked(broke.response.headers)
    if asked is None:
        return RETRY_SECONDS * min(2 ** max(failures - 1, 0), 8)
    return asked if asked <= LONGEST_WAIT else None


def _receive(blob: Blob, url: str, headers: Mapping[str, str], on_fetched: Count) -> None:
    """One request's bytes, added to the partial file as they come."""
    on_fetched(0)  # whoever counts may have ended the fetch
    start = blob.kept()
    asked = {**headers, "Accept-Encoding": "identity"}
    if start:
        asked["Range"] = f"bytes={start}-"
        if blob.source.is_file():
            asked["If-Range"] = blob.source.read_text(encoding="ascii")
    with http_stream_backoff(
        "GET",
        url,
        headers=asked,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        max_retries=0,
        retry_on_exceptions=(),
        retry_on_status_codes=(),
    ) as response:
        if start and not _goes_on(response, start, blob.size):
            blob.drop_partial()
            on_fetched(-start)
            start = 0
            if response.status_code in (_PARTIAL, _NOT_SATISFIABLE):
                return  # another part than was asked for; the next request asks for all of it
        hf_raise_for_status(response)
        is_plain = response.headers.get("Content-Encoding", "identity").lower() == "identity"
        length = response.headers.get("Content-Length") if is_plain else None
        if length is not None and length != str(blob.size - start):
            raise CheckpointError(
                f"{blob.name}: the hub sends {length} bytes where {blob.size - start} are to come; try again later."
            )
        if not start:
            _remember_source(blob, response)
        with blob.partial.open("ab") as out:
            for chunk in response.iter_bytes(constants.DOWNLOAD_CHUNK_SIZE):
                out.write(chunk)
                on_fetched(len(chunk))
                start += len(chunk)
                if start > blob.size:
                    break  # too long without saying so: the check finds it


def _goes_on(response: Any, start: int, size: int) -> bool:
    """Whether an answer may be added to the bytes kept. Refusals count as yes: they are no bytes and drop none."""
    if response.status_code == _PARTIAL:
        return response.headers.get("Content-Range") == f"bytes {start}-{size - 1}/{size}"
    return response.status_code not in (200, _NOT_SATISFIABLE)


def _remember_source(blob: Blob, response: Any) -> None:
    """Keep the ETag for `If-Range`, which takes strong ones only."""
    etag = response.headers.get("ETag", "")
    if etag.startswith('"') and etag.isascii():
        blob.source.write_text(etag, encoding="ascii")
    else:
        blob.source.unlink(missing_ok=True)


def _hash_of(path: Path, digest: Any, on_checked: Count) -> str:
    """The hexadecimal digest of a file, read in pieces, after what `digest` has seen already."""
    with path.open("rb") as data:
        while chunk := data.read(_HASH_CHUNK):
            digest.update(chunk)
            on_checked(len(chunk))
    return str(digest.hexdigest())
