"""Pictures behind a url, in memory, for a while.

In: bytes, their media type, whose they are. Out: a name that cannot be guessed, and the bytes for who knows it. Nothing
here touches the disk: no name a client sends can open a file. Refuses to know: HTTP, what the bytes are.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from kandinsky5.server.shares import Shares


@dataclass(frozen=True)
class Kept:
    """What is kept, and until when."""

    data: bytes
    media_type: str
    until: float


class Shelf:
    """Keeps things for `seconds`, at most `most_bytes` of them: of the key that holds the most, the oldest goes first.

    `now` tells the time in seconds.
    """

    def __init__(self, *, seconds: float, most_bytes: int, now: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._now = now
        self._kept: dict[str, Kept] = {}
        self._shares = Shares(most_bytes)

    def put(self, data: bytes, media_type: str, key: str) -> str:
        """Keep it, and get its name."""
        name = secrets.token_urlsafe(24)
        self._kept[name] = Kept(data, media_type, self._now() + self.seconds)
        self._shares.add(name, key, len(data))
        self._clear()
        return name

    def get(self, name: str) -> Kept | None:
        """What is kept under the name, None if it is not there or no longer."""
        self._clear()
        return self._kept.get(name)

    def _clear(self) -> None:
        while self._kept:
            oldest = next(iter(self._kept))  # dictionaries keep the order in which things were put
            if self._kept[oldest].until > self._now():
                break
            self._drop(oldest)
        while (name := self._shares.first_to_go()) is not None:
            self._drop(name)

    def _drop(self, name: str) -> None:
        del self._kept[name]
        self._shares.remove(name)
