"""Thousands of bad bodies, pictures and headers: each is answered, none by a failure of ours, none leaves anything."""

import io
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import httpx2
import psutil
import pytest

from .conftest import RunningServer
from .hostile import Hostile, bomb, hostile

AT_ONCE = 4
GROWTH = 48 * 2**20
"""Bytes that the server may hold more after thousands of bodies than after the first hundreds: what its allocators
keep. The pictures decoded on the way are many times that."""


@pytest.mark.parametrize(
    "number", [300, pytest.param(3000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])]
)
def test_bad_bodies_are_refused_and_leave_nothing(served: RunningServer, png: Path, number: int) -> None:
    process = psutil.Process(served.process.pid)
    with served.client() as client:
        answers = send(client, islice(hostile(seed=1), 200))
        held, files = process.memory_info().rss, process.num_fds()
        answers += send(client, islice(hostile(seed=2), number))
        failed = [(what, told) for what, status, told in answers if status >= 500]
        assert failed == []
        statuses = Counter(status for _, status, _ in answers)
        assert statuses[400] > number / 2, statuses
        assert set(statuses) <= {200, 202, 400, 403, 404, 413, 415, 429}, statuses
        served.process.poll()
        assert process.memory_info().rss - held < GROWTH
        assert process.num_fds() <= files + AT_ONCE, "a connection may still be closing"
    edited = served.openai.images.edit(image=png, prompt="make it blue", extra_body={"steps": 1})
    assert edited.data and served.process.poll() is None
    assert not [line for line in served.lines if "Traceback" in line or '"trace"' in line]


def test_a_bomb_is_refused_before_it_is_decoded(served: RunningServer) -> None:
    """A gigapixel in 140 kilobytes."""
    process = psutil.Process(served.process.pid)
    held = process.memory_info().rss
    with served.client() as client:
        files = {"image": ("a.png", io.BytesIO(bomb(32_000)))}
        refused = client.post("/v1/images/edits", data={"prompt": "a"}, files=files)
    assert refused.status_code == 400 and "far too large" in refused.json()["error"]["message"]
    assert process.memory_info().rss - held < GROWTH


def send(client: httpx2.Client, requests) -> list[tuple[str, int, str]]:
    """How each was made, and its answer."""

    def one(asked: Hostile) -> tuple[str, int, str]:
        headers = {"content-type": asked.content_type.encode("latin-1", "replace"), **dict(asked.headers)}
        answer = client.post(asked.path, content=asked.body, headers=headers)
        return asked.what, answer.status_code, answer.text[:200]

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(one, requests))
