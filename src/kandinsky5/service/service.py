"""Requests in, pictures out, for many askers at once: the line, the worker process, and what becomes of each request.

In: requests with a key, a priority, a deadline and a listener. Out: reports to the listener, the last of which is
always `Finished` or `Failed`. The worker is started again when it ends, and answers for what it was drawing are
failures with a reason. Refuses to know: HTTP, formats, what a model is.

One thread, the pump, decides what the worker is told and hears what it says; it waits for neither, and nobody who asks
waits for it. Listeners are called from it, or from the thread that cancels.
"""

import atexit
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
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
    Pong,
    Pulse,
    Ready,
    Report,
)
from kandinsky5.service.process import Ended, WorkerProcess
from kandinsky5.service.ticket import Counts, Limits, Listener, Ticket, bytes_of
from kandinsky5.service.watch import PATIENCE
from kandinsky5.service.worker import OpenEngines

log = logging.getLogger(__name__)

LONGEST_WAIT: Final = 3600.0
"""Seconds of the pump; whatever happens wakes it."""


class Service:
    """One model, many askers. Made, `start`ed, and `close`d once.

    Attributes:
        card: of the model, once it has been loaded for the first time.
        closing: whether nothing more is accepted.
        loading: why a service that is not `ready`, and not closing, is not: a sentence for whoever asks.
    """

    def __init__(
        self, open_engines: OpenEngines, limits: Limits, *, on_fatal: Callable[[Failed], None] | None = None
    ) -> None:
        self.limits = limits
        self.counts = Counts()
        self.card: Card | None = None
        self.closing = False
        self.loading = "The model is being loaded."
        self._on_fatal = on_fatal
        self._lock = threading.RLock()
        self._line: Line[Ticket] = Line(limits.waiting, limits.waiting_per_key)
        self._drawing: dict[str, Ticket] = {}
        self._seconds_a_picture = 1.0
        self._inbox: SimpleQueue[Any] = SimpleQueue()  # what the worker has said; None only wakes the pump
        self._worker = WorkerProcess(open_engines, most=limits.drawing, hear=self._inbox.put)
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
        with self._lock:
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
        self._inbox.put(None)
        return ticket

    def cancel(self, ticket: Ticket, kind: FailureKind = "cancelled", reason: str = "Cancelled.") -> bool:
        """End a request; within one step its place is free. False if it has ended already."""
        with self._lock:
            if ticket.ended:
                return False
            if ticket.id in self._drawing:
                # Its place stays taken until the worker says that it is dropped.
                self._worker.send(Drop(id=ticket.id))
                ticket.deadline = time.monotonic() + max(PATIENCE, self.limits.seconds)
            self._line.remove(ticket)
            self._end(ticket, Failed(id=ticket.id, kind=kind, reason=reason))
        self._inbox.put(None)
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
        atexit.register(self.close)  # who ends without it would wait for a worker that ignores SIGTERM
        self._pump.start()

    def drain(self) -> None:
        """Accept nothing more; what is accepted goes on."""
        self.closing = True

    @property
    def idle(self) -> bool:
        """Whether nothing is waiting or being drawn."""
        return not self.waiting and not self.drawing

    def close(self, seconds: float = 10.0) -> None:
        """Answer what is left with a failure, and end the worker."""
        atexit.unregister(self.close)
        self.drain()
        reason = "The server is shutting down; it had accepted the request and could not finish it in time."
        with self._lock:
            for ticket in [*self._line, *self._drawing.values()]:
                self.cancel(ticket, "closing", reason)
            self._stopped = True
        self._inbox.put(None)
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
        """See to the worker, hand out work, and hear one message, or none until something is due."""
        with self._lock:
            self._expire()
            self._hand_out()
            due = [ticket.deadline for ticket in [*self._line, *self._drawing.values()]]
        due.append(self._worker.look_after(working=bool(self._drawing)))
        try:
            message = self._inbox.get(timeout=min(max(0.0, min(due) - time.monotonic()), LONGEST_WAIT))
        except Empty:
            return
        if isinstance(message, Ended):
            self._worker_ended()
        elif message is not None:
            with self._lock:
                self._hear(message)

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
        elif not isinstance(message, Pong):
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
                # It answers pings, but one step has taken longer than a whole request may.
                log.error("the worker does not let go of request %s; ending it", ticket.id)
                self._worker.kill()
                ticket.deadline = now + PATIENCE
            else:
                spent = now - ticket.accepted
                where = "being drawn" if ticket.begun is not None else "waiting"
                reason = (
                    f"Not done after {spent:.0f} s (the request was still {where}); ask for less, or later."
                )
                self.cancel(ticket, "deadline", reason)

    def _worker_ended(self) -> None:
        """Answer for what it was drawing."""
        how = self._worker.bury()
        with self._lock:
            if self._stopped:
                return
            lost, self._drawing = [*self._drawing.values()], {}
            log.error("the worker ended (%s) with %d requests", how, len(lost))
            self.loading = f"The process that had the model ended ({how}); the model is being loaded again."
            for ticket in lost:
                reason = (
                    f"The process that drew the picture ended ({how}); it is being started again. Try again."
                )
                self._end(ticket, Failed(id=ticket.id, kind="worker", reason=reason))

    # -- Endings ------------------------------------------------------------------------------------------------------

    def _check_sources(self, picture: Image.Image | None) -> None:
        """Raises FullLineError where the line has a place and memory has none. One picture is always taken."""
        held = sum(bytes_of(ticket.picture) for ticket in [*self._line, *self._drawing.values()])
        if picture is not None and held and held + bytes_of(picture) > self.limits.source_bytes:
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
