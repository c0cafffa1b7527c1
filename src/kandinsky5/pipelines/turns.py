"""Calls of one pipeline from several threads: one after the other.

A scheduler counts the steps of one run, and guidance and number of steps of a call are the pipeline's attributes, which
callbacks read. Two runs at a time would take each other's times. Refuses to know: what is run.
"""

import threading
from types import TracebackType
from typing import Self


class Turns:
    """Held while a call runs; a callback may call again. A copy of what holds it, or a pickle, has turns of its own."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self._lock.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()

    def __reduce__(self) -> tuple[type["Turns"], tuple[()]]:
        return Turns, ()
