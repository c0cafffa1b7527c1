"""One file's lock in the client's cache, and waiting that can be ended.

In: the path of a lock, seconds, and a function that raises when it is time to stop. Out: the lock held, or the time
gone by. A thread that waits in one go holds up Ctrl-C, which arrives in another. Refuses to know: what is locked.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from huggingface_hub.utils import WeakFileLock

SLICE_SECONDS: Final = 1.0
"""The longest that an end is waited for."""


@contextmanager
def locked(path: Path, *, go_on: Callable[[], None], waiting: Callable[[int], None]) -> Iterator[None]:
    """Hold the client's own lock, so that `hf download` waits too.

    Args:
        path: of the lock.
        go_on: called between slices of waiting; what it raises ends the wait.
        waiting: told 1 when another process has the lock, and -1 when that is over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        waits = False
        try:
            while True:
                try:
                    held.enter_context(WeakFileLock(path, timeout=SLICE_SECONDS))
                    break
                except TimeoutError:  # the base class of the lock's own
                    go_on()
                    if not waits:
                        waiting(1)
                    waits = True
        finally:
            if waits:
                waiting(-1)
        yield


def pause(seconds: float, go_on: Callable[[], None]) -> None:
    """Let time go by in slices; what `go_on` raises ends it."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        go_on()
        time.sleep(min(left, SLICE_SECONDS))
