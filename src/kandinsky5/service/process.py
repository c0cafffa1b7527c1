"""The worker as the service sees it: a process that is there or is not, lives or hangs, and may be started again.

In: commands. Out: messages, and `Ended` after the last. Two threads speak with it: one waits for it to read, the other
for what it says, so that a worker that does neither keeps nobody waiting. Refuses to know: requests.
"""

import logging
import math
import multiprocessing
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Final

from kandinsky5.service.messages import Command, Ping, Stop
from kandinsky5.service.watch import PATIENCE, LoadingWatch, Watch, vitals_of
from kandinsky5.service.worker import OpenEngines, work

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds between attempts to start a worker that ends before it is ready; each is twice the one before."""


Outbox = SimpleQueue[Command | None]
"""What is to be sent, in order; None after the last."""


@dataclass(frozen=True)
class Ended:
    """A worker says nothing more: it has ended, or is about to."""


class WorkerProcess:
    """One worker at a time. `starts` counts them; times are of `time.monotonic`.

    `hear` is called with each of its messages and with `Ended` after the last, by another thread; it must be quick.
    """

    def __init__(self, open_engines: OpenEngines, *, most: int, hear: Callable[[Any], None]) -> None:
        self.starts = 0
        self.ready = False
        self._open_engines = open_engines
        self._most = most
        self._hear = hear
        self._watch = Watch()
        self._loading = LoadingWatch()
        self._verdict: str | None = None
        self._process: Any = None
        self._connection: Connection | None = None
        self._outbox: Outbox = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._pause = 0.0
        self._next_start = 0.0
        self._context = multiprocessing.get_context("spawn")

    @property
    def pid(self) -> int | None:
        """Its process id; None while there is none."""
        process = self._process  # it may be buried meanwhile
        return process.pid if process is not None else None

    def look_after(self, *, working: bool) -> float:
        """Start it where there is none and the pause after a failure is over; end it where it hangs.

        A worker that is ready and not `working` need not show that it lives. Returns when to look again, unless
        something happens before that.
        """
        now = time.monotonic()
        if self._process is None:
            if now < self._next_start:
                return self._next_start
            self._start()
        if not self.ready:
            if now >= self._loading.due and (why := self._loading.look(vitals_of(self._process.pid), now)):
                self._end(why)
            return self._loading.due
        if not working:
            self._watch.rest()
            return math.inf
        if now >= self._watch.due:
            if self._watch.silent:
                self._end(f"it showed no sign of life for {PATIENCE:.0f} s")
            self.send(Ping())
            self._watch.pinged(now)
        return self._watch.due

    def _end(self, why: str) -> None:
        """End one that hangs."""
        log.error("ending worker %s: %s", self.pid, why)
        self._verdict = why
        self.kill()

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        level = logging.getLogger("kandinsky5").getEffectiveLevel()
        if level > logging.DEBUG:
            level = max(level, logging.WARNING)  # prompts are in the log below that
        process = self._context.Process(
            target=work,
            args=(theirs, self._open_engines, self._most, level),
            name="kandinsky5-worker",
            daemon=True,
        )
        process.start()
        theirs.close()
        self._process, self._connection, self._outbox = process, ours, SimpleQueue()
        self._threads = [
            threading.Thread(target=_write, args=(ours, self._outbox), daemon=True),
            threading.Thread(target=_read, args=(ours, self._heard), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        self.starts += 1
        log.info("worker %s started", process.pid)

    def _heard(self, message: Any) -> None:
        self._watch.heard()
        self._hear(message)

    def now_ready(self) -> None:
        """It has loaded its model: should it end, the next is started at once."""
        self.ready, self._pause = True, 0.0
        self._loading.rest()

    def send(self, command: Command) -> None:
        """Put it into the queue of what the worker is sent. Where it has ended this does nothing."""
        if self._process is not None:
            self._outbox.put(command)

    def bury(self) -> str:
        """After its end: how it ended, and why where it was ended here.

        The next may be started, at once or after a pause if it was never ready.
        """
        assert self._process is not None and self._connection is not None
        process, was_ready = self._process, self.ready
        self.ready = False
        process.join(5)
        if process.exitcode is None:
            process.kill()
            process.join()
        self._outbox.put(None)
        for thread in self._threads:
            thread.join(5)  # its end of the pipe is closed, so neither waits any more
        self._connection.close()
        code = process.exitcode
        if not was_ready:
            self._pause = min(LONGEST_PAUSE, 2 * self._pause or FIRST_PAUSE)
        self._next_start = time.monotonic() + self._pause
        self._process, self._connection = None, None
        process.close()
        self._loading.rest()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        why, self._verdict = self._verdict, None
        return how if why is None else f"{how}: {why}"

    def kill(self) -> None:
        """End it now."""
        if self._process is not None:
            self._process.kill()

    def stop(self, seconds: float) -> None:
        """Let it end, and end it after that many seconds; one that loads its model hears nothing, and at once."""
        if self._process is None:
            return
        if self.ready:
            self.send(Stop())
            self._process.join(seconds)
        self.kill()
        self.bury()


def _write(connection: Connection, outbox: Outbox) -> None:
    """Send what is in the outbox, waiting where the worker does not read. What an ended one is sent is lost."""
    while (command := outbox.get()) is not None:
        try:
            connection.send(command)
        except (OSError, ValueError):
            log.info("the worker took no %s", type(command).__name__)


def _read(connection: Connection, hear: Callable[[Any], None]) -> None:
    """Pass on what comes, waiting where a message comes slowly or never whole."""
    try:
        while True:
            hear(connection.recv())
    except (EOFError, OSError):
        pass
    finally:
        hear(Ended())
