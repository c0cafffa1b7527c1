"""How the hub may be reached, and the client's errors in our words.

In: a token, a cache, an address; whatever `huggingface_hub` raises. Out: settings to hand to the client, and a
CheckpointError or CapacityError of one line that says what would work. Refuses to know: which files are wanted.
"""

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Final

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from kandinsky5.errors import CapacityError, CheckpointError
from kandinsky5.variants import close_hub_ids

TRANSPORT_ERROR: Final[type[Exception]] = next(
    base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"
)
"""The base class of what the client's HTTP library raises; the library is another in each major version."""

ANSWER_SECONDS: Final = 20
"""How long the hub may take to describe a repository."""

_OTHERWISE: Final = "The embedded model needs no download (--model embedded)."


@dataclass(frozen=True, kw_only=True)
class HubAccess:
    """How to reach the hub. None means what `huggingface_hub` does by itself.

    Attributes:
        token: sent to the hub; default and True: HF_TOKEN, or the token of `hf auth login`; False: none.
        cache_dir: folder of the cache; default: HF_HUB_CACHE.
        endpoint: address of the hub; default: HF_ENDPOINT, or https://huggingface.co.
        local_files_only: never ask the hub, use what is in the cache.
    """

    token: str | bool | None = None
    cache_dir: Path | None = None
    endpoint: str | None = None
    local_files_only: bool = False

    @property
    def api(self) -> HfApi:
        """The client."""
        return HfApi(endpoint=self.endpoint, token=self.token)

    @property
    def cache_folder(self) -> Path:
        """The folder of the cache, which may not exist yet."""
        return Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()

    @property
    def address(self) -> str:
        """The hub's address, without a slash at its end."""
        return (self.endpoint or constants.ENDPOINT).rstrip("/")

    @property
    def is_offline(self) -> bool:
        """Whether the hub must not be asked: `local_files_only`, or HF_HUB_OFFLINE in the environment."""
        return self.local_files_only or bool(constants.HF_HUB_OFFLINE)


def may_use_cache(error: BaseException) -> bool:
    """Whether an error says nothing about the repository: no connection, an overloaded or failing hub."""
    status = _status(error)
    if status is not None:
        return status == 429 or status >= 500
    return isinstance(error, TRANSPORT_ERROR | ConnectionError | TimeoutError)


def seconds_asked(headers: Mapping[str, str]) -> int | None:
    """How long an overloaded hub asks to be left alone: `Retry-After` (seconds or a date), or the hub's `RateLimit`."""
    after = headers.get("Retry-After", "").strip()
    if after.isascii() and after.isdigit():
        return int(after[:9])
    try:
        return max(0, round((parsedate_to_datetime(after) - datetime.now(UTC)).total_seconds()))
    except (ValueError, TypeError):
        reset = re.search(r";\s*r=0\b.*;\s*t=(\d{1,9})", headers.get("RateLimit", ""))
        return int(reset[1]) if reset else None


def refusal(
    error: Exception, access: HubAccess, repo_id: str, revision: str | None
) -> CheckpointError | CapacityError:
    """Our error for one of the client's, to be raised from it."""
    if isinstance(error, CheckpointError | CapacityError):
        return error
    cause = error
    while isinstance(cause, LocalEntryNotFoundError) and isinstance(cause.__cause__, Exception):
        cause = cause.__cause__  # the client wraps what went wrong into "not found here"
    if isinstance(cause, HFValidationError):
        return CheckpointError(f"{repo_id!r} is neither a folder here nor a hub id such as org/name.")
    if isinstance(cause, LocalTokenNotFoundError):
        return CheckpointError(
            f"token=True asks for a token to fetch {repo_id} with, and there is none here; log in (hf auth login), or "
            "set HF_TOKEN."
        )
    if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError):
        return CheckpointError(absence(access, repo_id, revision))
    if isinstance(cause, HfHubHTTPError):
        return CheckpointError(_answer(cause, access, repo_id, revision))
    if isinstance(cause, TRANSPORT_ERROR | ConnectionError | TimeoutError):
        return CheckpointError(
            f"{access.address} does not answer ({type(cause).__name__}: {_one_line(cause)}), so {repo_id} cannot be "
            "fetched; check the network, HTTPS_PROXY and HF_ENDPOINT, or fetch it elsewhere and copy the folder, and "
            f"try again: what came is kept. {_OTHERWISE}"
        )
    if isinstance(cause, FileMetadataError):
        return CheckpointError(f"{access.address} does not speak the hub's protocol: {_one_line(cause)}")
    return _of_the_disk(cause, access, repo_id)


def absence(access: HubAccess, repo_id: str, revision: str | None) -> str:
    """What to say of a repository that is not in the cache while the hub must not be asked."""
    at = f" at revision {revision!r}" if revision else ""
    return (
        f"{repo_id}{at} is not in the cache {access.cache_folder}, and the hub must not be asked (local_files_only, or "
        f"HF_HUB_OFFLINE is set); kandinsky5 pull {repo_id} fetches it where there is a network."
    )


def _answer(error: HfHubHTTPError, access: HubAccess, repo_id: str, revision: str | None) -> str:
    """What an HTTP status means for the person who asked."""
    page = f"{access.address}/{repo_id}"
    status = _status(error)
    if isinstance(error, GatedRepoError):
        return (
            f"{repo_id} is given only to those who accept its licence (HTTP {status}): log in and accept it at {page}, "
            "then log in here with a token of that account (hf auth login, HF_TOKEN, or pull --token-file)."
        )
    if isinstance(error, DisabledRepoError):
        return f"{repo_id} has been disabled by the hub (HTTP {status}); see {page}."
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no revision {revision or 'main'!r}; {page}/tree/main lists branches and tags."
    if isinstance(error, EntryNotFoundError):
        return f"{repo_id} has lost a file that it listed (HTTP {status}, {error.response.url}); try again."
    if status == 401 and "Invalid credentials" in error.response.headers.get("X-Error-Message", ""):
        return f"The hub refuses the token sent for {repo_id} (HTTP 401); renew HF_TOKEN, or do without one."
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404):
        close = close_hub_ids(repo_id)
        hint = f"did you mean {' or '.join(close)}? Otherwise " if close else ""
        return (
            f"{repo_id} is not on the hub, or it is private (HTTP {status}); {hint}check the name at {page}, or set "
            "HF_TOKEN to a token that may read it."
        )
    if status == 403:
        return f"The token sent may not read {repo_id} (HTTP 403); give it read access to {page}, or use another."
    if status == 429:
        wait = seconds_asked(error.response.headers)
        when = f"in {wait} seconds" if wait is not None else "in some minutes"
        return (
            f"The hub has had too many requests from here (HTTP 429); try again {when}, or with HF_TOKEN set."
        )
    return (
        f"{access.address} fails now (HTTP {status}: {_one_line(error):.200}); try again later. {_OTHERWISE}"
    )


def _of_the_disk(error: Exception, access: HubAccess, repo_id: str) -> CheckpointError | CapacityError:
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(
            f"The disk of {access.cache_folder} is full; free some room or name another cache (--cache-dir, "
            "HF_HUB_CACHE) and try again: what came is kept."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        place = getattr(error, "filename", None) or access.cache_folder
        return CheckpointError(
            f"{place} cannot be written ({getattr(error, 'strerror', error)}); name another cache "
            "(--cache-dir, HF_HUB_CACHE)."
        )
    return CheckpointError(f"{repo_id} cannot be fetched: {_one_line(error)}")


def _status(error: BaseException) -> int | None:
    return error.response.status_code if isinstance(error, HfHubHTTPError) else None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
