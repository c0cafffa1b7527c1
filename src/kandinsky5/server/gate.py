"""What every request passes before an endpoint sees it: its id, host, origin, key and size; and its log.

In: an ASGI app. Out: one that refuses what must not come in. Refuses to know: endpoints, bodies.
"""

import re
import secrets
import time
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kandinsky5.server import page
from kandinsky5.server.keys import Keyring
from kandinsky5.server.logs import tell
from kandinsky5.server.metrics import Metrics
from kandinsky5.server.problems import CLIENT_GONE, Problem, of_any, plain
from kandinsky5.server.settings import Settings

OPEN_PATHS: Final = ("/", "/health", "/ready", "/openapi.json")
OPEN_PREFIXES: Final = (page.ROOM, "/v1/images/files/")
"""Reached without a key: what says nothing, the page, and pictures whose names cannot be guessed, as OpenAI's urls."""

_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Gate:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._keyring = Keyring(settings.keys)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, started = Headers(scope=scope), time.perf_counter()
        sent = headers.get("x-request-id", "")
        request_id = sent if _ID.fullmatch(sent) else secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"], state["key"] = request_id, ""
        answered: list[int] = []

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
                answered.append(message["status"])
            await send(message)

        try:
            self._check(scope, headers)
            await self._app(scope, self._bounded(receive), send_named)
        except ClientDisconnect:
            answered.append(CLIENT_GONE)
        except Exception as error:
            problem = of_any(error, id=request_id)
            if answered:
                raise  # too late for an answer; the server closes the connection
            await problem.response()(scope, receive, send_named)
        finally:
            self._tell(scope, started, answered)

    def _check(self, scope: Scope, headers: Headers) -> None:
        """Raises Problem for what must not come in."""
        host = headers.get("host", "")
        if self._settings.hosts and _name_of(host) not in self._settings.hosts:
            # A page whose name was made to lead here would otherwise speak to a server that listens on loopback only.
            names = ", ".join(sorted(self._settings.hosts))
            message = f"This server answers to {names} only, not to {plain(host)!r}."
            raise Problem(403, message, code="host_not_allowed")
        origin, path = headers.get("origin"), scope["path"]
        # The page's own scripts are asked for with their origin: refused, the page could not say what is wrong.
        if origin is not None and _place_of(origin) != host and not path.startswith(page.ROOM):
            message = (
                f"Requests from pages of other origins are refused: the page is of {plain(origin)!r}, and this server "
                f"was asked as {plain(host)!r}. A proxy between them must leave the Host header as it is."
            )
            raise Problem(403, message, code="origin_not_allowed")
        name = self._keyring.name_of(headers.get("authorization"))
        if name is None and path not in OPEN_PATHS and not path.startswith(OPEN_PREFIXES):
            raise Problem(
                401,
                "Incorrect API key provided; send one of this server's as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        scope["state"]["key"] = name or ""
        length = headers.get("content-length", "")
        if length.isdigit() and int(length[:20]) > self._settings.max_body_bytes:
            raise self._too_large()

    def _bounded(self, receive: Receive) -> Receive:
        """The same messages, counted: a body may be sent in pieces without saying its length."""
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self._settings.max_body_bytes:
                    raise self._too_large()
            return message

        return bounded

    def _too_large(self) -> Problem:
        most = self._settings.max_body_bytes
        return Problem(413, f"The body is larger than the {most} bytes read here.", code="body_too_large")

    def _tell(self, scope: Scope, started: float, answered: list[int]) -> None:
        route: Any = scope.get("route")
        status = answered[0] if answered else 0
        pattern = getattr(route, "path", "none")
        self._metrics.responded(scope["method"] if route is not None else "any", pattern, status)
        client = scope.get("client")
        tell(
            "request",
            id=scope["state"]["request_id"],
            method=scope["method"],
            path=scope["path"],
            status=status,
            seconds=round(time.perf_counter() - started, 4),
            key=scope["state"]["key"],
            client=client[0] if client else None,
        )


def _place_of(origin: str) -> str | None:
    """The name and port in an Origin header; None where it has none, or is no url."""
    try:
        return urlsplit(origin).netloc or None
    except ValueError:
        return None


def _name_of(host: str) -> str:
    """The name in a Host header, without its port."""
    return host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0].lower()
