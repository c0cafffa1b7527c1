"""The worker as the service sees it: a process that is there or is not, and when it may be started again.

In: commands. Out: messages, or EOFError when it has ended. Refuses to know: requests.
"""

import logging
import multiprocessing
import time
from multiprocessing.connection import Connection
from typing import Any, Final

from kandinsky5.service.messages import Begin, Drop, Stop
from kandinsky5.service.worker import OpenEngines, work

log = logging.getLogger(__name__)

FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds between attempts to start a worker that ends before it is ready; each is twice the one before."""


class WorkerProcess:
    """One worker at a time. `starts` counts them; times are of `time.monotonic`."""

    def __init__(self, open_engines: OpenEngines, *, most: int) -> None:
        self.starts = 0
        self.ready = False
        self.connection: Connection | None = None
        self._open_engines = open_engines
        self._most = most
        self._process: Any = None
        self._pause = 0.0
        self._next_start = 0.0
        self._context = multiprocessing.get_context("spawn")

    @property
    def pid(self) -> int | None:
        """Its process id; None while there is none."""
        return self._process.pid if self._process is not None else None

    @property
    def due(self) -> float | None:
        """When it may be started; None while it runs."""
        return self._next_start if self._process is None else None

    def start_if_due(self) -> None:
        """Start it where there is none, and the pause after a failure is over."""
        if self.due is None or time.monotonic() < self.due:
            return
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
        self._process, self.connection = process, ours
        self.starts += 1
        log.info("worker %s started", process.pid)

    def now_ready(self) -> None:
        """It has loaded its model: should it end, the next is started at once."""
        self.ready, self._pause = True, 0.0

    def send(self, command: Begin | Drop | Stop) -> None:
        """Where it has ended this does nothing; the reader of its messages finds out."""
        try:
            if self.connection is not None:
                self.connection.send(command)
        except (OSError, ValueError):
            log.info("the worker took no %s", type(command).__name__)

    def receive(self) -> Any:
        """The next message, None while there is none. Raises EOFError when it has ended."""
        if self.connection is None:
            return None
        try:
            return self.connection.recv() if self.connection.poll() else None
        except OSError as error:
            raise EOFError from error

    def bury(self) -> str:
        """After its end: how it ended. The next may be started, at once or after a pause if it was never ready."""
        assert self._process is not None and self.connection is not None
        self.connection.close()
        self._process.join(5)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        code = self._process.exitcode
        self._process.close()
        if not self.ready:
            self._pause = min(LONGEST_PAUSE, 2 * self._pause or FIRST_PAUSE)
        self._next_start = time.monotonic() + self._pause
        self._process, self.connection, self.ready = None, None, False
        return f"signal {-code}" if code < 0 else f"exit code {code}"

    def kill(self) -> None:
        """End it now."""
        if self._process is not None:
            self._process.kill()

    def stop(self, seconds: float) -> None:
        """Let it end, and end it after that many seconds."""
        if self._process is None:
            return
        self.send(Stop())
        self._process.join(seconds)
        self.kill()
        self.bury()
