"""An app over a service that does what a test tells it, for what takes a real one too long or never happens to it.

Nothing is drawn: the test says what the worker reports. The app, its endpoints and its gate are the real ones.
"""

import asyncio
import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from PIL import Image
from starlette.types import Message

from kandinsky5.generated import GeneratedImage
from kandinsky5.request import ImageRequest
from kandinsky5.server.app import build_app
from kandinsky5.server.settings import Settings
from kandinsky5.service import Begun, Card, Failed, Finished
from kandinsky5.service.ticket import Counts, Listener

CARD = Card(
    model="tiny",
    tasks=("text-to-image",),
    size=(64, 64),
    sizes=((64, 64),),
    steps=3,
    guidance=5.0,
    device="cpu",
    dtype="float32",
)


class Scripted:
    """Takes every request and does nothing with it. `asked` are the listeners and requests, in order."""

    def __init__(self) -> None:
        self.card, self.counts = CARD, Counts()
        self.waiting = self.drawing = self.restarts = 0
        self.ready, self.closing, self.loading = True, False, "The model is being loaded."
        self.asked: list[tuple[Listener, ImageRequest]] = []
        self.cancelled: list[str] = []

    def submit(self, request: ImageRequest, picture: Any, *, listener: Listener, **more: Any) -> Any:
        self.asked.append((listener, request))
        return SimpleNamespace(id=str(len(self.asked) - 1), begun=None, listener=listener)

    def cancel(self, ticket: Any) -> None:
        if ticket.id not in self.cancelled:
            self.cancelled.append(ticket.id)
            ticket.listener(Failed(id=ticket.id, kind="cancelled", reason="Cancelled."))

    def place(self, ticket: Any) -> int:
        return 0

    def seconds_until_room(self) -> int:
        return 1

    def begin(self, place: int = -1) -> None:
        """Report that a request is being drawn."""
        listener, request = self.asked[place]
        told = ImageRequest(prompt=request.prompt, width=64, height=64, steps=3, guidance=5.0, seed=1)
        listener(Begun(id="", request=told, text_tokens=1, image_tokens=0))

    def fail(self, reason: str) -> None:
        """Report that the newest request will not be drawn."""
        self.asked[-1][0](Failed(id="", kind="request", reason=reason))

    def finish(self, place: int = -1) -> None:
        """Report that it is drawn: a grey picture."""
        self.begin(place)
        told = ImageRequest(prompt="a", width=64, height=64, steps=3, guidance=5.0, seed=1)
        picture = GeneratedImage(
            image=Image.new("RGB", (64, 64), "grey"), request=told, seconds=1.0, model="tiny", software={}
        )
        self.asked[place][0](Finished(id="", pictures=[picture]))


class Exchange:
    """One request to the app, whose answer is looked at while it comes; inside `async with` the client listens."""

    def __init__(self, app: Any, method: str, path: str, body: Any = None, **headers: str) -> None:
        sent = {"host": "localhost", "content-type": "application/json", **headers}
        self.messages: list[Message] = []
        self._app = app
        self._body = b"" if body is None else json.dumps(body).encode()
        self._gone = asyncio.Event()
        self._asked = False
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in sent.items()],
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 80),
        }

    async def __aenter__(self) -> "Exchange":
        self._running = asyncio.ensure_future(self._app(self._scope, self._receive, self._send))
        return self

    async def __aexit__(self, *_: Any) -> None:
        self._gone.set()
        await asyncio.wait_for(self._running, 10)

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int | None:
        """None until the headers are there."""
        return self.messages[0]["status"] if self.messages else None

    @property
    def text(self) -> str:
        """What has come of the body."""
        return b"".join(message.get("body", b"") for message in self.messages).decode()

    async def answer(self) -> Any:
        """The whole answer, as JSON."""
        await asyncio.wait_for(asyncio.shield(self._running), 10)
        return json.loads(self.text)


async def ask(app: Any, method: str, path: str, body: Any = None, **headers: str) -> tuple[int | None, Any]:
    """Status and JSON of an answer that comes at once."""
    async with Exchange(app, method, path, body, **headers) as exchange:
        answer = await exchange.answer()
    return exchange.status, answer


async def until(holds: Any, seconds: float = 10) -> None:
    """Let the app go on until it is so."""
    for _ in range(round(seconds / 0.005)):
        if holds():
            return
        await asyncio.sleep(0.005)
    raise AssertionError(f"still not so after {seconds} s")


def scripted_app(keys: Sequence[str] = (), **settings: Any) -> tuple[Scripted, Any]:
    """A service to be told what to do, and the app over it. Keys are names, and are sent as NAME-0123456789abcdef."""
    service = Scripted()
    named = {name: f"{name}-0123456789abcdef" for name in keys}
    return service, build_app(service, Settings(model="tiny", keys=named, **settings))  # type: ignore[arg-type]
