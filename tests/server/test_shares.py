"""What is kept for several keys in one room: who asks for much pushes out nobody else's."""

import asyncio
from typing import Any

from kandinsky5.server.shares import Shares
from kandinsky5.server.shelf import Shelf

from .scripted import Scripted, ask, scripted_app

DRAWN = {"prompt": "a", "size": "64x64"}


def full(shares: Shares) -> list[str]:
    """What is dropped until there is room, in order."""
    dropped = []
    while (name := shares.first_to_go()) is not None:
        shares.remove(name)
        dropped.append(name)
    return dropped


def test_the_oldest_of_whoever_holds_the_most_goes_first() -> None:
    shares = Shares(10)
    shares.add("alice0", "alice", 4)
    shares.add("bob0", "bob", 3)
    shares.add("bob1", "bob", 3)
    assert full(shares) == []
    shares.add("carol0", "carol", 4)
    assert full(shares) == ["bob0", "alice0"], "6 of bob's, then 4 of alice's, which are older than carol's"
    shares.remove("alice0")
    shares.add("carol1", "carol", 4)
    assert full(shares) == ["carol0"]
    shares.add("large", "dave", 99)
    assert full(shares) == ["large"], "what does not fit at all"


def test_a_picture_behind_a_url_outlasts_the_flood_of_another_key() -> None:
    shelf = Shelf(seconds=10, most_bytes=100, now=lambda: 0.0)
    mine = shelf.put(b"m" * 20, "image/png", "alice")
    theirs = [shelf.put(b"t" * 20, "image/png", "bob") for _ in range(50)]
    assert shelf.get(mine) is not None
    assert [shelf.get(name) is not None for name in theirs] == [False] * 46 + [True] * 4


def as_key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}-0123456789abcdef"}


async def submitted(app: Any, key: str) -> str:
    status, job = await ask(app, "POST", "/v1/jobs/generations", DRAWN, **as_key(key))
    assert status == 202, job
    return job["id"]


def test_a_job_outlasts_the_flood_of_another_key() -> None:
    async def script(service: Scripted, app: Any) -> None:
        mine = await submitted(app, "alice")
        service.finish()
        statuses: list[str] = []

        async def done() -> bool:
            _, job = await ask(app, "GET", f"/v1/jobs/{mine}", **as_key("alice"))
            statuses.append(job["status"])
            return job["status"] == "succeeded"

        while not await done():
            assert len(statuses) < 1000
        theirs = []
        for _ in range(12):
            theirs.append(await submitted(app, "bob"))
            await ask(app, "POST", f"/v1/jobs/{theirs[-1]}/cancel", **as_key("bob"))
        status, result = await ask(app, "GET", f"/v1/jobs/{mine}/result", **as_key("alice"))
        assert status == 200 and len(result["data"]) == 1
        _, listed = await ask(app, "GET", "/v1/jobs", **as_key("bob"))
        assert [job["id"] for job in listed["data"]] == theirs[:-5:-1], "four of the five that are kept"

    asyncio.run(script(*scripted_app(keys=("alice", "bob"), keep_jobs=5)))


def test_jobs_that_are_not_done_are_all_kept() -> None:
    """How many there may be is for the queue to say."""

    async def script(service: Scripted, app: Any) -> None:
        waiting = [await submitted(app, "alice") for _ in range(7)]
        for place in range(4):
            service.finish(place)
        shown: list[dict] = []

        async def ended() -> int:
            _, listed = await ask(app, "GET", "/v1/jobs", **as_key("alice"))
            shown[:] = listed["data"]
            return sum(job["ended_at"] is None for job in shown)

        while await ended() > 3:
            await asyncio.sleep(0.01)
        assert [job["id"] for job in shown if job["ended_at"] is None] == waiting[:3:-1]
        assert len(shown) == 3 + 2, "two of those that are done"

    asyncio.run(script(*scripted_app(keys=("alice",), keep_jobs=2)))
