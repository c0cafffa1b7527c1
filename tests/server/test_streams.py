"""Streams while nothing comes, and what is said and logged where the server itself fails."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from kandinsky5.service import Stepped

from .scripted import Exchange, Scripted, ask, scripted_app, until

DRAWN = {"prompt": "a", "size": "64x64"}
STREAMED = {**DRAWN, "stream": True}
PATH = "/v1/images/generations"


def run(script: Callable[[Scripted, Any], Coroutine[Any, Any, None]]) -> None:
    """Let a script drive an app."""
    service, app = scripted_app()
    asyncio.run(script(service, app))


@pytest.fixture
def short_breath(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr("kandinsky5.server.images.BREATH", 0.05)
    return 0.05


def test_a_stream_begins_and_breathes_while_its_request_waits_and_while_it_is_drawn(
    short_breath: float,
) -> None:
    async def script(service: Scripted, app: Any) -> None:
        async with Exchange(app, "POST", PATH, STREAMED) as stream:
            await until(lambda: stream.text.count(": waiting\n\n") >= 3)
            assert (b"x-accel-buffering", b"no") in stream.messages[0]["headers"], "nginx would keep it back"
            assert stream.status == 200 and stream.text.count(":") == stream.text.count(": waiting")
            service.begin()
            await until(lambda: stream.text.count(": drawing\n\n") >= 3)
            breaths = stream.text.count(": drawing")
            for step in range(30):  # reports that a client is told nothing of are no breath
                service.asked[0][0](Stepped(id="", done=step, total=30))
                await asyncio.sleep(short_breath / 5)
            assert 3 <= stream.text.count(": drawing") - breaths <= 8
            service.finish()
            await until(lambda: "event: image_generation.completed" in stream.text)

    run(script)


def test_what_is_refused_at_once_is_refused_with_a_status() -> None:
    async def script(service: Scripted, app: Any) -> None:
        async with Exchange(app, "POST", PATH, STREAMED) as stream:
            await until(lambda: bool(service.asked))
            service.fail("There is no room for that.")
            assert (await stream.answer())["error"]["message"] == "There is no room for that."
            assert stream.status == 400

    run(script)


def test_a_client_that_leaves_a_stream_in_line_ends_its_request(short_breath: float) -> None:
    async def script(service: Scripted, app: Any) -> None:
        async with Exchange(app, "POST", PATH, STREAMED) as stream:
            await until(lambda: ": waiting" in stream.text)
        assert service.cancelled == ["0"]

    run(script)


# -- Failures of the server's own ---------------------------------------------------------------------------------


def fail(*_: Any) -> None:
    raise RuntimeError("a bug of ours")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict]]:
    """Pictures cannot be encoded. Returns what the log says of failures, as facts."""
    for place in ("images", "jobs"):
        monkeypatch.setattr(f"kandinsky5.server.{place}.encode_all", fail)
    caplog.set_level(logging.INFO, "kandinsky5.server")

    def told() -> list[dict]:
        records = [record for record in caplog.records if record.getMessage() == "unexpected"]
        assert all("a bug of ours" in str(record.exc_info[1]) for record in records if record.exc_info)
        assert all(record.exc_info and record.levelno == logging.ERROR for record in records)
        return [record.facts for record in records]  # type: ignore[attr-defined]

    return told


@pytest.mark.parametrize("stream", [True, False])
def test_a_failure_of_ours_is_logged_under_the_requests_id(stream: bool, failing: Callable) -> None:
    async def script(service: Scripted, app: Any) -> None:
        asked = STREAMED if stream else DRAWN
        async with Exchange(app, "POST", PATH, asked, x_request_id="mine-7") as exchange:
            await until(lambda: bool(service.asked))
            service.finish()
            await until(lambda: '"internal_error"' in exchange.text)
        assert "a bug of ours" not in exchange.text

    run(script)
    assert failing() == [{"id": "mine-7"}]


def test_a_failure_of_a_job_is_logged_under_the_id_that_submitted_it(failing: Callable) -> None:
    job: dict[str, Any] = {}

    async def script(service: Scripted, app: Any) -> None:
        _, told = await ask(app, "POST", "/v1/jobs/generations", DRAWN, x_request_id="mine-8")
        job.update(told)
        service.finish()
        for number in range(100):
            _, told = await ask(app, "GET", f"/v1/jobs/{job['id']}", x_request_id=f"poll-{number}")
            if told["ended_at"] is not None:
                break
            await asyncio.sleep(0.01)
        assert (told["status"], told["error"]["code"]) == ("failed", "internal_error")

    run(script)
    assert failing() == [{"id": "mine-8", "job": job["id"]}]
