"""A request from a handler's side: put into the line, listened to, and given up when nobody waits for it any more.

In: a request and who asks. Out: its reports as they come, in the handler's event loop. Refuses to know: bodies,
formats.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from PIL import Image
from starlette.requests import Request

from kandinsky5.request import ImageRequest
from kandinsky5.server.metrics import Metrics
from kandinsky5.server.problems import of_failure
from kandinsky5.service import Begun, Failed, Finished, Report, Service

Value = TypeVar("Value")


class ClientGoneError(Exception):
    """Whoever asked has hung up."""


class Asking:
    """One request in the service. Raises what `Service.submit` raises."""

    def __init__(
        self,
        service: Service,
        metrics: Metrics,
        request: ImageRequest,
        picture: Image.Image | None = None,
        *,
        key: str,
        priority: int = 0,
        previews: int = 0,
        expand: bool = False,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._service = service
        self._metrics = metrics
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self.begun: Begun | None = None

        def listen(report: Report) -> None:
            loop.call_soon_threadsafe(self._reports.put_nowait, report)

        self.ticket = service.submit(
            request,
            picture,
            listener=listen,
            key=key,
            priority=priority,
            previews=previews,
            expand=expand,
        )

    async def report(self, within: float | None = None) -> Report | None:
        """The next report; None where none comes within so many seconds. Raises Problem where it is a failure."""
        try:
            report = await asyncio.wait_for(self._reports.get(), within)
        except TimeoutError:
            return None
        self._metrics.heard(self.ticket, report)
        if isinstance(report, Begun):
            self.begun = report
        if isinstance(report, Failed):
            raise of_failure(report)
        return report

    async def reports(self) -> AsyncIterator[Report]:
        """Every report, the end included. Raises Problem where the end is a failure."""
        while not isinstance(report := await self.report(), Finished):
            assert report is not None
            yield report
        yield report

    async def finished(self) -> Finished:
        """The end. Raises Problem where it is a failure."""
        async for report in self.reports():
            if isinstance(report, Finished):
                return report
        raise AssertionError("reports end with Finished, or raise")

    def cancel(self) -> None:
        """Give it up; nothing happens if it has ended."""
        self._service.cancel(self.ticket)


async def unless_gone(request: Request, task: Coroutine[Any, Any, Value]) -> Value:
    """What the task returns. Raises ClientGoneError, and ends the task, when the client hangs up before that.

    The request's body must have been read.
    """
    working = asyncio.ensure_future(task)
    watching = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for future in (working, watching):
            future.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def cancel_when_gone(request: Request, asking: Asking) -> None:
    """Wait for the client to hang up, and end its request then; for answers that are already being sent."""
    await _gone(request)
    asking.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
