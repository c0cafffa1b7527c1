"""Whether a worker lives: one with work is pinged, and one that loads its model is looked at from outside.

In: when it was pinged, that something was heard of it, what the system says of its process. Out: when the next ping or
look is due, and whether there has been no sign of life for too long. Pings and looks are counted rather than seconds,
so that a service that was itself stopped for an hour finds nobody dead when it goes on. Refuses to know: requests, and
how a process is started and ended.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

PATIENCE: Final = 120.0
"""Seconds of silence after which a worker with work is taken to hang. A thread of its own answers pings, however long
a step takes; only a process that is stopped, swapped out or stuck does not. One that is stopped while it loads has as
long."""

PINGS: Final = 4
"""In that time."""

STILL_PATIENCE: Final = 5
"""Times PATIENCE after which a worker that loads and does nothing at all is taken to hang. Longer than `hub.blob` waits
in all for a hub that asks to be left alone; who waits for another process's download asks for its lock meanwhile, and
one that reads from the slowest disk is given a page now and then. Both are seen."""


class Watch:
    """Of one worker with work at a time. `due` is when to ping it next, in seconds of `time.monotonic`."""

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


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """What a system says of a process. `done` changes whenever it computes, reads or is given memory."""

    stopped: bool
    done: tuple[int, ...]


def vitals_of(pid: int) -> Vitals | None:
    """The vitals of a process; None where the system does not tell (only Linux does), or it is gone.

    A process that loads a model cannot be asked: libraries that it imports, and files that it reads, keep all of its
    threads waiting for as long as a slow disk takes.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *numbers = stat.rpartition(")")[2].split()  # the name before it may hold anything
    # Minor and major page faults, each with its children's, and clock ticks in the program and in the system, too.
    return Vitals(stopped=state in "Tt", done=tuple(map(int, numbers[6:14])))


class LoadingWatch:
    """Of one worker that loads at a time. `due` is when to look at it next, in seconds of `time.monotonic`."""

    def __init__(self) -> None:
        self.due = 0.0
        self._stopped = 0
        self._still = 0
        self._done: tuple[int, ...] = ()

    def look(self, vitals: Vitals | None, now: float) -> str | None:
        """Take note of what is seen when it is due. Returns why it is taken to hang, None while it may live."""
        self.due = now + PATIENCE / PINGS
        if vitals is None:
            return None
        self._stopped = self._stopped + 1 if vitals.stopped else 0
        self._still = self._still + 1 if vitals.done == self._done else 0
        self._done = vitals.done
        if self._stopped > PINGS:
            return f"it was stopped for {PATIENCE:.0f} s while it loaded the model"
        if self._still >= PINGS * STILL_PATIENCE:
            return f"it did nothing for {PATIENCE * STILL_PATIENCE:.0f} s while it loaded the model"
        return None

    def rest(self) -> None:
        """It has loaded, or is not there."""
        self.due, self._stopped, self._still, self._done = 0.0, 0, 0, ()
