"""Requests in, pictures out, for many askers at once: the line, the worker process, and what becomes of each request.

In: requests with a key, a priority, a deadline and a listener. Out: reports to the listener, the last of which is
always `Finished` or `Failed`. The worker is started again when it ends, and answers for what it was drawing are
failures with a reason. Refuses to know: HTTP, formats, what a model is.

One thread, the pump, speaks to the worker; listeners are called from it, or from the thread that cancels.
"""

import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import wait
from typing import Any, Final

from PIL import Image

from kandinsky5.errors import CapacityError
from kandinsky5.request import ImageRequest
from kandinsky5.service.line import FullLineError, Line
from kandinsky5.service.messages import (
    Begin,
    Card,
    Drop,
    Dropped,
    Failed,
    FailureKind,
    Finished,
    Pulse,
    Ready,
    Report,
)
from kandinsky5.service.process import WorkerProcess
from kandinsky5.service.ticket import Counts, Limits, Listener, Ticket
from kandinsky5.service.worker import OpenEngines

log = logging.getLogger(__name__)

PATIENCE: Final = 120.0
"""Seconds a worker has to let go of a request that was cancelled, before it is taken to hang. A step takes less."""


class Service:
    """One model, many askers. Made, `start`ed, and `close`d once."""

    def __init__(
        self, open_engines: OpenEngines, limits: Limits, *, on_fatal: Callable[[Failed], None] | None = None
    ) -> None:
        self.limits = limits
        self.counts = Counts()
        self.card: Card | None = None
        self.closing = False
        self._on_fatal = on_fatal
        self._lock = threading.RLock()
        self._line: Line[Ticket] = Line(limits.waiting, limits.waiting_per_key)
        self._drawing: dict[str, Ticket] = {}
        self._seconds_a_picture = 1.0
        self._worker = WorkerProcess(open_engines, most=limits.drawing)
        self._woken, self._wake = Pipe(duplex=False)
        self._stopped = False
        self._pump = threading.Thread(target=self._run, name="kandinsky5-service", daemon=True)

    # -- For askers ---------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a request would be drawn now rather than wait for a worker to start."""
        return self._worker.ready and not self.closing

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return len(self._line)

    @property
    def drawing(self) -> int:
        """Requests that the worker has."""
        return len(self._drawing)

    @property
    def worker_pid(self) -> int | None:
        """The worker's process id, None while there is none."""
        return self._worker.pid

    @property
    def restarts(self) -> int:
        """Workers started after the first."""
        return max(0, self._worker.starts - 1)

    def submit(
        self,
        request: ImageRequest,
        picture: Image.Image | None = None,
        *,
        listener: Listener,
        key: str = "",
        priority: int = 0,
        previews: int = 0,
        expand: bool = False,
        seconds: float | None = None,
    ) -> Ticket:
        """Put a request into the line. `seconds` shortens the service's own deadline; `expand` has its prompt
        written out first.

        Raises FullLineError (a CapacityError) where there is no place, CapacityError when the service is closing.
        """
        now = time.monotonic()
        allowed = self.limits.seconds if seconds is None else min(seconds, self.limits.seconds)
        ticket = Ticket(
            id=secrets.token_hex(8),
            request=request,
            picture=picture,
            key=key,
            priority=priority,
            previews=previews,
            expand=expand,
            listener=listener,
            accepted=now,
            deadline=now + allowed,
        )
        with self._lock:
            if self.closing:
                raise CapacityError("The server is shutting down and takes no more requests.")
            try:
                self._check_sources(picture)
                self._line.add(ticket)
            except CapacityError:
                self.counts.refused += 1
                raise
            self.counts.accepted += 1
        self._nudge()
        return ticket

    def cancel(self, ticket: Ticket, kind: FailureKind = "cancelled", reason: str = "Cancelled.") -> bool:
        """End a request; within one step its place is free. False if it has ended already."""
        with self._lock:
            if ticket.ended:
                return False
            if ticket.id in self._drawing:
                # Its place stays taken until the worker says that it is dropped.
                self._worker.send(Drop(id=ticket.id))
                ticket.deadline = time.monotonic() + PATIENCE
            self._line.remove(ticket)
            self._end(ticket, Failed(id=ticket.id, kind=kind, reason=reason))
        self._nudge()
        return True

    def place(self, ticket: Ticket) -> int:
        """Requests in the line that were accepted before it; other keys' later ones may still come between."""
        with self._lock:
            return sum(1 for other in self._line if other.accepted < ticket.accepted)

    def seconds_until_room(self) -> int:
        """A guess at when a place in the line will be free: the time of one picture, 1 to 600."""
        return max(1, min(600, math.ceil(self._seconds_a_picture)))

    # -- For who owns it ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to load the model; returns at once."""
        self._pump.start()

    def drain(self) -> None:
        """Accept nothing more; what is accepted goes on."""
        self.closing = True

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or being drawn."""
        return not self._line and not self._drawing

    def close(self, seconds: float = 10.0) -> None:
        """Answer what is left with a failure, and end the worker."""
        self.drain()
        reason = "The server is shutting down; it had accepted the request and could not finish it in time."
        with self._lock:
            for ticket in [*self._line, *self._drawing.values()]:
                self.cancel(ticket, "closing", reason)
            self._stopped = True
        self._nudge()
        if self._pump.is_alive():
            self._pump.join(seconds)
        self._worker.stop(seconds)

    # -- The pump -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopped:
            try:
                self._turn()
            except Exception:
                log.exception("the service's pump met an error and goes on")
                time.sleep(0.1)

    def _turn(self) -> None:
        """Start a worker where there is none, hand out work, and take what comes back until something is due."""
        with self._lock:
            self._worker.start_if_due()
            self._expire()
            self._hand_out()
            sources = [self._woken, self._worker.connection]
        for source in wait([s for s in sources if s is not None], timeout=self._pause()):
            if source is self._woken:
                while self._woken.poll():
                    self._woken.recv_bytes()
            else:
                self._take()

    def _take(self) -> None:
        """Every message that the worker has sent; its end, if that is what came."""
        try:
            while (message := self._worker.receive()) is not None:
                with self._lock:
                    self._hear(message)
        except EOFError:
            self._worker_ended()

    def _hear(self, message: Any) -> None:
        if isinstance(message, Ready):
            self.card = message.card
            self._worker.now_ready()
            log.info("ready: %s", message.card)
        elif isinstance(message, Pulse):
            self.counts.group, self.counts.memory_bytes = message.pictures, message.memory_bytes
        elif isinstance(message, Failed) and not message.id:
            log.error("the model cannot be loaded: %s", message.reason)
            if self.card is None and self._on_fatal is not None:
                self._stopped = True
                self._on_fatal(message)
        elif isinstance(message, Dropped):
            self._drawing.pop(message.id, None)
        else:
            self._report(message)

    def _report(self, message: Report) -> None:
        ticket = self._drawing.get(message.id)
        if ticket is None:
            return
        if isinstance(message, Finished | Failed):
            del self._drawing[message.id]
        if ticket.ended:
            return  # cancelled; this was on its way
        if isinstance(message, Finished):
            self.counts.pictures += len(message.pictures)
            spent = (time.monotonic() - (ticket.begun or ticket.accepted)) / len(message.pictures)
            self._seconds_a_picture += 0.2 * (spent - self._seconds_a_picture)
        if isinstance(message, Finished | Failed):
            self._end(ticket, message)
        else:
            self._tell(ticket, message)

    def _hand_out(self) -> None:
        while self._worker.ready and sum(t.weight for t in self._drawing.values()) < self.limits.drawing:
            ticket = self._line.next()
            if ticket is None:
                return
            ticket.begun = time.monotonic()
            self._drawing[ticket.id] = ticket
            self._worker.send(
                Begin(
                    id=ticket.id,
                    request=ticket.request,
                    picture=ticket.picture,
                    previews=ticket.previews,
                    expand=ticket.expand,
                )
            )

    def _expire(self) -> None:
        now = time.monotonic()
        for ticket in [*self._line, *self._drawing.values()]:
            if ticket.deadline > now:
                continue
            if ticket.ended:
                log.error(
                    "the worker has not let go of request %s for %.0f s; ending it", ticket.id, PATIENCE
                )
                self._worker.kill()
                ticket.deadline = now + PATIENCE
            else:
                spent = now - ticket.accepted
                where = "being drawn" if ticket.begun is not None else "waiting"
                reason = (
                    f"Not done after {spent:.0f} s (the request was still {where}); ask for less, or later."
                )
                self.cancel(ticket, "deadline", reason)

    def _pause(self) -> float | None:
        """Seconds until something is due without a message."""
        now = time.monotonic()
        with self._lock:
            due = [t.deadline for t in [*self._line, *self._drawing.values()]]
            if self._worker.due is not None:
                due.append(self._worker.due)
        return max(0.0, min(due) - now) if due else None

    def _worker_ended(self) -> None:
        """Answer for what it was drawing."""
        with self._lock:
            how = self._worker.bury()
            if self._stopped:
                return
            lost, self._drawing = [*self._drawing.values()], {}
            log.error("the worker ended (%s) with %d requests", how, len(lost))
            for ticket in lost:
                reason = (
                    f"The process that drew the picture ended ({how}); it is being started again. Try again."
                )
                self._end(ticket, Failed(id=ticket.id, kind="worker", reason=reason))

    # -- Endings ------------------------------------------------------------------------------------------------------

    def _check_sources(self, picture: Image.Image | None) -> None:
        """Raises FullLineError where the line has a place and memory has none. One picture is always taken."""
        held = sum(_bytes_of(ticket.picture) for ticket in [*self._line, *self._drawing.values()])
        if picture is not None and held and held + _bytes_of(picture) > self.limits.source_bytes:
            most = self.limits.source_bytes
            raise FullLineError(
                f"The source pictures that wait fill the {most} bytes kept for them; try again later.",
                own=False,
            )

    def _end(self, ticket: Ticket, report: Finished | Failed) -> None:
        if ticket.ended:
            return
        ticket.ended = True
        if isinstance(report, Failed):
            self.counts.failures[report.kind] = self.counts.failures.get(report.kind, 0) + 1
        self._tell(ticket, report)
        ticket.picture = None

    def _tell(self, ticket: Ticket, report: Report) -> None:
        try:
            ticket.listener(report)
        except Exception:
            log.exception("a listener of request %s failed", ticket.id)

    def _nudge(self) -> None:
        with self._lock:
            self._wake.send_bytes(b".")


def _bytes_of(picture: Image.Image | None) -> int:
    """Of an RGB picture in memory."""
    return 0 if picture is None else 3 * picture.width * picture.height
