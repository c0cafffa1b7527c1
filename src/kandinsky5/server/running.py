"""A server from its start to its end: the model is loaded while it already answers, and what is accepted is finished.

In: a service's parts, settings, and where to listen. Out: nothing, when it was told to stop; or the error for which the
model could not be loaded. Refuses to know: endpoints, options.
"""

import asyncio
import signal
import socket
from collections.abc import Callable
from types import FrameType
from typing import Final

import uvicorn

from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.server.app import build_app
from kandinsky5.server.logs import tell
from kandinsky5.server.settings import Settings
from kandinsky5.service import Failed, Limits, Service
from kandinsky5.service.worker import OpenEngines

FAREWELL: Final = 5.0
"""Seconds beyond the grace for the last answers to be sent."""


def serve(
    open_engines: OpenEngines,
    settings: Settings,
    limits: Limits,
    *,
    host: str,
    port: int,
    say: Callable[[str], None],
) -> None:
    """Serve until told to stop. `say` is called with the address once it can be connected to.

    Raises RequestError for an address that cannot be had, and what loading the model raised in the worker.
    """
    fatal: list[Failed] = []

    def stop(failed: Failed) -> None:
        fatal.append(failed)
        server.should_exit = True

    service = Service(open_engines, limits, on_fatal=stop)
    config = uvicorn.Config(
        build_app(service, settings),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan="off",
        timeout_graceful_shutdown=round(settings.grace + FAREWELL),
    )
    server = GracefulServer(config, service, settings.grace)
    listening = _listen(host, port, config.backlog)
    with listening:
        name = f"[{host}]" if ":" in host else host
        say(f"http://{name}:{listening.getsockname()[1]}")
        service.start()
        try:
            server.run(sockets=[listening])
        finally:
            service.close()
    if fatal:
        raise _error_of(fatal[0])


class GracefulServer(uvicorn.Server):
    """Accepts nothing new once it is told to stop, and gives what it has accepted `grace` seconds to be finished."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service = service
        self._grace = grace

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End gracefully, and at a second Ctrl-C at once. Unlike uvicorn's own, the signal is then dealt with."""
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End. What is not finished in time is answered with a failure."""
        self._service.drain()
        tell("shutting down", waiting=self._service.waiting, drawing=self._service.drawing)
        ending = asyncio.ensure_future(self._end())
        await super().shutdown(sockets)
        await ending

    async def _end(self) -> None:
        until = asyncio.get_running_loop().time() + self._grace
        while not (self._service.idle or self.force_exit) and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._service.close)


def _listen(host: str, port: int, backlog: int) -> socket.socket:
    """A socket whose connections wait until the server takes them up: none is refused while that one starts."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.listen(backlog)
    except (OSError, OverflowError) as error:
        listening.close()
        raise RequestError(
            f"Cannot listen on {host} port {port}: {error}; choose another --port or --host."
        ) from None
    return listening


def _error_of(failed: Failed) -> Exception:
    kinds: dict[str, type[Exception]] = {
        "request": RequestError,
        "checkpoint": CheckpointError,
        "capacity": CapacityError,
    }
    return kinds.get(failed.kind, RuntimeError)(failed.reason)
