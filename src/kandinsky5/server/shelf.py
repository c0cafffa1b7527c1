"""Pictures behind a url, in memory, for a while.

In: bytes and their media type. Out: a name that cannot be guessed, and the bytes for who knows it. Nothing here touches
the disk: no name a client sends can open a file. Refuses to know: HTTP, what the bytes are.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kept:
    """What is kept, and until when."""

    data: bytes
    media_type: str
    until: float


class Shelf:
    """Keeps things for `seconds`, and of more than `most_bytes` the newest. `now` tells the time in seconds."""

    def __init__(self, *, seconds: float, most_bytes: int, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self.most_bytes = most_bytes
        self._now = now
        self._kept: dict[str, Kept] = {}
        self._bytes = 0

    def put(self, data: bytes, media_type: str) -> str:
        """Keep it, and get its name."""
        name = secrets.token_urlsafe(24)
        self._kept[name] = Kept(data, media_type, self._now() + self.seconds)
        self._bytes += len(data)
        self._clear()
        return name

    def get(self, name: str) -> Kept | None:
        """What is kept under the name, None if it is not there or no longer."""
        self._clear()
        return self._kept.get(name)

    def _clear(self) -> None:
        while self._kept:
            oldest = next(iter(self._kept))  # dictionaries keep the order in which things were put
            if self._kept[oldest].until > self._now() and self._bytes <= self.most_bytes:
                return
            self._bytes -= len(self._kept.pop(oldest).data)
