"""What is measured of a server: a mixed load, batching beside serial, the death of its worker, sizes and batches.

In: a server, or the options of one. Out: rows of figures, each with what it shows to hold. Refuses to know: options of
the program, files.
"""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from load.clients import LOST, Outcome, ask_all
from load.plan import alike, mixed
from load.server import Server

Row = Mapping[str, Any]

ROUNDING = 2
"""Levels of 255 between a picture drawn among others and the same alone: what rounding may do in float32."""


def mixed_load(server: Server, count: int, clients: int) -> Iterator[Row]:
    """The same load twice, then each of its pictures alone; memory after each."""
    with server.client() as client:
        (model,) = client.get("/v1/models").json()["data"]
    asks = mixed(count, edits="editing" in model["defaults"]["tasks"])
    for round_ in (1, 2):
        before = _counts(server)
        outcomes = ask_all(server, asks, clients)
        server.wait_idle()
        yield {"round": round_, **_summary(outcomes), **_unlost(before, _counts(server)), **server.memory()}
    wanted = [ask for ask in asks if ask.kind in ("draw", "edit")]
    alone = ask_all(server, wanted, 1)
    yield {"alone": len(alone), **_summary(alone), **server.memory()}
    yield _unswapped([one for one in outcomes if one.ask.kind in ("draw", "edit")], alone)


def batching(server: Server, count: int, clients: int, repeats: int = 2) -> Iterator[Row]:
    """One client beside several, in turns; means and their spread, for the machine may be shared."""
    for size in ("64x64", "128x128", "256x256"):
        asks = alike(count, size, 4)
        ask_all(server, asks[:clients], clients)
        seconds: dict[int, list[float]] = {1: [], clients: []}
        for _ in range(repeats):
            for number in seconds:
                began = time.monotonic()
                ask_all(server, asks, number)
                seconds[number].append(time.monotonic() - began)
        serial, batched = (statistics.mean(values) for values in seconds.values())
        yield {
            "size": size,
            "pictures": count,
            "serial_seconds": round(serial, 2),
            "batched_seconds": round(batched, 2),
            "times_serial": round(serial / batched, 3),
            "spread": [round(min(v) / max(v), 2) for v in seconds.values()],
        }


def killed(server: Server, count: int, clients: int) -> Iterator[Row]:
    """The worker ends under load. Every request has an answer, and the next worker serves what waited."""
    asks = alike(count, "128x128", 8)
    outcomes: list[Outcome] = []
    load = threading.Thread(target=lambda: outcomes.extend(ask_all(server, asks, clients)))
    done = server.metric("pictures_total")
    load.start()
    while server.metric("pictures_total") < done + 4 or not server.metric("drawing_requests"):
        time.sleep(0.01)
    at_once = time.monotonic()
    server.kill_worker()
    while not server.metric("worker_restarts_total"):
        time.sleep(0.01)
    server.wait_ready()
    recovered = time.monotonic() - at_once
    load.join()
    ends = Counter(one.end for one in outcomes)
    later = [one.ended - at_once for one in outcomes if one.end == "drawn" and one.ended > at_once + 1]
    yield {
        "asked": count,
        "ends": dict(ends),
        "ready_again_seconds": round(recovered, 2),
        "next_picture_seconds": round(min(later), 2) if later else None,
        "holds": len(outcomes) == count and set(ends) <= {"drawn", "worker_lost"} and ends["worker_lost"] > 0,
    }


def batches(server: Server, size: str, batch: int, steps: int, rounds: int) -> Iterator[Row]:
    """So many clients that each ask again when they have their picture; the first round is not counted."""
    asks = alike(batch * (rounds + 1), size, steps)
    began = time.monotonic()
    ask_all(server, asks[:batch], batch)
    first = time.monotonic() - began
    before = server.stage_seconds()
    began = time.monotonic()
    outcomes = ask_all(server, asks[batch:], batch)
    wall = time.monotonic() - began
    stages = {
        stage: round((seconds - before.get(stage, 0.0)) / len(outcomes), 3)
        for stage, seconds in server.stage_seconds().items()
    }
    yield {
        "size": size,
        "batch": batch,
        "steps": steps,
        "first_round_seconds": round(first, 2),
        **_summary(outcomes),
        "pictures_a_minute": round(60 * len(outcomes) / wall, 2),
        "stage_seconds": stages,
        "memory_gb": round(server.metric("memory_bytes") / 1e9, 2),
        "holds": all(one.end == "drawn" for one in outcomes),
    }


# -- What outcomes say ------------------------------------------------------------------------------------------------


def _summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    drawn = sorted(one.seconds for one in outcomes if one.end == "drawn")
    wall = max(one.ended for one in outcomes) - min(one.began for one in outcomes)
    return {
        "ends": dict(Counter(one.end for one in outcomes)),
        "wall_seconds": round(wall, 2),
        "pictures_a_second": round(len(drawn) / wall, 3),
        **{f"p{part}_seconds": round(float(np.percentile(drawn, part)), 3) for part in (50, 99) if drawn},
    }


def _counts(server: Server) -> dict[str, float]:
    names = ("accepted_requests_total", "pictures_total", "cancelled_requests_total", "failed_requests_total")
    return {name: server.metric(name) for name in names}


def _unlost(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, Any]:
    """Whether what was accepted is what was drawn (one picture a request), given up, or refused with a reason."""
    accepted, drawn, cancelled, failed = (after[name] - before[name] for name in before)
    return {"accepted": int(accepted), "holds": accepted == drawn + cancelled + failed and not failed}


def _unswapped(among: Sequence[Outcome], alone: Sequence[Outcome]) -> Row:
    """Whether each picture is the one that its request draws alone, and says so in its file.

    Few steps of a small model leave some pictures empty, so that two requests may draw alike; those pairs are counted.
    """
    own, others = [], []
    solo = {one.ask.number: one.pixels for one in alone}
    for one in among:
        for number, pixels in solo.items():
            if pixels is not None and one.pixels is not None and pixels.shape == one.pixels.shape:
                apart = int(np.abs(pixels.astype(np.int16) - one.pixels).max())
                (own if number == one.ask.number else others).append(apart)
    return {
        "compared": len(own),
        "exact": own.count(0),
        "largest_difference": max(own),
        "other_pairs": len(others),
        "other_pairs_as_near": sum(apart <= ROUNDING for apart in others),
        "holds": len(own) == len(alone) and max(own) <= ROUNDING and all(one.is_own for one in among),
    }


def lost(rows: Sequence[Row]) -> int:
    """Asks that were never answered."""
    ends = Counter[str]()
    for row in rows:
        ends.update(row.get("ends", {}))
    return sum(number for end, number in ends.items() if end.startswith(LOST))
