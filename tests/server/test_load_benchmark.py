"""The benchmark of serving: what it concludes from what it saw, and one run of it at a small size."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from load import clients, plan, sections

    return SimpleNamespace(Outcome=clients.Outcome, plan=plan, sections=sections)


def outcomes(load, pictures: list[np.ndarray], is_own: bool = True) -> list:
    asks = load.plan.alike(len(pictures), "64x64", 2)
    return [
        load.Outcome(ask=ask, end="drawn", began=0.0, ended=1.0, pixels=pixels, is_own=is_own)
        for ask, pixels in zip(asks, pictures, strict=True)
    ]


def test_pictures_that_are_swapped_or_changed_are_found(load) -> None:
    pictures = [np.full((4, 4, 3), 60 * i, np.uint8) for i in range(4)]
    alone = outcomes(load, pictures)
    rounded = outcomes(load, [picture + 1 for picture in pictures])
    assert load.sections._unswapped(rounded, alone)["holds"]
    first, second, *rest = pictures
    for wrong in ([second, first, *rest], [first + 20, second, *rest], [first, first, *rest]):
        assert not load.sections._unswapped(outcomes(load, wrong), alone)["holds"]
    assert not load.sections._unswapped(rounded[:-1], alone)["holds"], "one is missing"
    assert not load.sections._unswapped(outcomes(load, pictures, is_own=False), alone)["holds"]


def test_requests_that_are_lost_are_counted(load) -> None:
    names = ("accepted", "drawn", "cancelled", "failed")
    before = dict.fromkeys(names, 3.0)
    assert load.sections._unlost(before, dict(zip(names, (13, 11, 5, 3), strict=True)))["holds"]
    for after in ((13, 10, 5, 3), (13, 10, 5, 4)):
        assert not load.sections._unlost(before, dict(zip(names, after, strict=True)))["holds"]
    assert load.sections.lost([{"ends": {"drawn": 3, "no answer: ReadError": 2}}, {}]) == 2


def test_the_plan_is_the_same_for_the_same_seed_and_edits_where_it_should(load) -> None:
    asks = load.plan.mixed(40, edits=True)
    assert asks == load.plan.mixed(40, edits=True)
    assert [sum(ask.kind == kind for ask in asks) for kind in ("draw", "edit", "cancel", "leave")] == [
        *(24, 8, 4, 4)
    ]
    assert not any(ask.kind == "edit" for ask in load.plan.mixed(40, edits=False))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_measures_a_server(saved_editing_folder: str) -> None:
    arguments = ["--model", saved_editing_folder, "--requests", "20", "--clients", "8"]
    sections = [
        "--only",
        "mixed",
        "killed",
        "batches",
        "--sizes",
        "64x64",
        "--batches",
        "1",
        "2",
        "--steps",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "serving.py", *arguments, *sections],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["holds"] and told["lost"] == 0 and told["times_serial"]["64x64"]["1"] == 1.0
    assert told["sections"]["mixed"][-1]["compared"] == 16
    assert told["sections"]["killed"][0]["ends"]["worker_lost"] > 0
