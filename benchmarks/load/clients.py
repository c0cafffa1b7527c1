"""Clients that ask a server for what a plan says, each over a connection of its own.

In: a server and asks. Out: an `Outcome` for each. Refuses to know: what is concluded from them.
"""

import base64
import io
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx2
import numpy as np
from PIL import Image

from kandinsky5.provenance import Provenance, stored_json
from load.plan import Ask
from load.server import Server

LOST = "no answer"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How an ask ended: "drawn", "cancelled", "left", an error's code, or `LOST`. Times are of `time.monotonic`.

    `is_own` is whether the picture's file holds the prompt and the seed that were asked for.
    """

    ask: Ask
    end: str
    began: float
    ended: float
    pixels: np.ndarray | None = field(default=None, repr=False)
    is_own: bool = False

    @property
    def seconds(self) -> float:
        """From asking to the answer."""
        return self.ended - self.began


def ask_all(server: Server, asks: Sequence[Ask], clients: int) -> list[Outcome]:
    """Each client takes the next ask when it has its answer."""
    own = threading.local()
    opened: list[httpx2.Client] = []

    def one(ask: Ask) -> Outcome:
        if not hasattr(own, "client"):
            own.client = server.client()
            opened.append(own.client)
        began = time.monotonic()
        try:
            end, picture = _carry_out(own.client, ask)
        except httpx2.HTTPError as error:
            end, picture = f"{LOST}: {type(error).__name__}", None
        return Outcome(
            ask=ask,
            end=end,
            began=began,
            ended=time.monotonic(),
            pixels=None if picture is None else np.asarray(picture.convert("RGB")),
            is_own=picture is not None and _holds_request(picture, ask),
        )

    try:
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(one, asks))
    finally:
        for client in opened:
            client.close()


def _holds_request(picture: Image.Image, ask: Ask) -> bool:
    stored = Provenance.from_json(stored_json(picture) or "").request
    return (stored.prompt, stored.seed) == (ask.body["prompt"], ask.body["seed"])


def _carry_out(client: httpx2.Client, ask: Ask) -> tuple[str, Image.Image | None]:
    if ask.kind == "cancel":
        return _cancelled(client, ask), None
    if ask.kind == "leave":
        return _left(client, ask), None
    path = "/v1/images/edits" if ask.kind == "edit" else "/v1/images/generations"
    answer = client.post(path, json=ask.body)
    if answer.status_code != 200:
        return answer.json()["error"]["code"], None
    data = base64.b64decode(answer.json()["data"][0]["b64_json"])
    return "drawn", Image.open(io.BytesIO(data))


def _cancelled(client: httpx2.Client, ask: Ask) -> str:
    job = client.post("/v1/jobs/generations", json=ask.body)
    if job.status_code != 202:
        return job.json()["error"]["code"]
    time.sleep(ask.seconds)
    return client.post(f"/v1/jobs/{job.json()['id']}/cancel").json()["status"]


def _left(client: httpx2.Client, ask: Ask) -> str:
    """Half of them wait for a stream, half for an answer; the connection is closed by both."""
    if ask.number % 4 < 2:
        try:
            client.post("/v1/images/generations", json=ask.body, timeout=ask.seconds)
        except httpx2.ReadTimeout:
            return "left"
        return "drawn"
    with client.stream("POST", "/v1/images/generations", json={**ask.body, "stream": True}) as stream:
        next(stream.iter_raw(), b"")
        time.sleep(min(ask.seconds, 0.2))
    return "left"
