"""Whether a worker that has work lives: it is pinged, and whatever it says is a sign of life.

In: when it was pinged, that something was heard of it. Out: when the next ping is due, and whether it has been silent
for too long. Pings are counted rather than seconds, so that a service that was itself stopped for an hour finds nobody
dead when it goes on. Refuses to know: processes, requests.
"""

from typing import Final

PATIENCE: Final = 120.0
"""Seconds of silence after which a worker with work is taken to hang. A thread of its own answers pings, however long
a step takes; only a process that is stopped, swapped out or stuck does not."""

PINGS: Final = 4
"""In that time."""


class Watch:
    """Of one worker at a time. `due` is when to ping it next, in seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self.due = 0.0
        self._unanswered = 0

    @property
    def silent(self) -> bool:
        """Whether it has answered none of the pings of PATIENCE seconds; asked when the next is due."""
        return self._unanswered >= PINGS

    def pinged(self, now: float) -> None:
        """It was sent a ping."""
        self._unanswered += 1
        self.due = now + PATIENCE / PINGS

    def heard(self) -> None:
        """It has said something."""
        self._unanswered = 0

    def rest(self) -> None:
        """It has no work, or is not there."""
        self.due, self._unanswered = 0.0, 0
