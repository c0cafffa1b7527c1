"""Two processes that share the rows of each step learn what one process learns from all of them."""

import gc
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kandinsky5.train.replicas import ALONE, Replicas, join_replicas, leave_replicas
from kandinsky5.train.settings import OptimiserSettings, RunSettings
from kandinsky5.train.training import Training

from .small_lesson import MUON, OPTIMISER, SmallLesson, Told, newest, plan_of, small_net

RUN = RunSettings(steps=6, batch=6, micro_batch=3, ema=0.999)


def learn(folder: Path, replicas: Replicas, optimiser: OptimiserSettings, run: RunSettings) -> bool:
    """Train on six rows a step in parts of three, of which this process takes its own."""
    lesson = SmallLesson(optimiser, replicas=replicas, net=small_net(), count=3)
    return Training(plan_of(folder, optimiser, run), lesson, Told(), replicas).carry_out()


def one_of_two(rank: int, folder: Path, port: int, optimiser: OptimiserSettings, run: RunSettings) -> None:
    os.environ |= {
        "WORLD_SIZE": "2",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    replicas = join_replicas()
    assert replicas == Replicas(count=2, rank=rank)
    learn(folder, replicas, optimiser, run)
    leave_replicas()


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_without_torchrun_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert join_replicas() is ALONE
    assert ALONE.leads and ALONE.agree(True) and not ALONE.agree(False)
    assert list(ALONE.numbers(3, 6)) == [3, 4, 5]


def test_two_replicas_take_turns_with_the_batches() -> None:
    first, second = (Replicas(count=2, rank=rank) for rank in range(2))
    assert sorted([*first.numbers(4, 10), *second.numbers(4, 10)]) == list(range(8, 20))
    assert list(first.numbers(2, 4)) == [4, 6] and list(second.numbers(2, 4)) == [5, 7]


@pytest.mark.parametrize("optimiser", [OPTIMISER, MUON], ids=["adamw", "muon"])
def test_two_processes_learn_as_one_does_also_after_a_pause(
    tmp_path: Path, optimiser: OptimiserSettings
) -> None:
    """And one process goes on where two paused."""
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert learn(alone, ALONE, optimiser, RUN)

    context = multiprocessing.get_context("fork")  # what this process has imported need not be imported again
    for run in (replace(RUN, stop_at=3), replace(RUN, stop_at=5)):
        port = free_port()
        children = [
            context.Process(target=one_of_two, args=(rank, together, port, optimiser, run))
            for rank in range(2)
        ]
        gc.freeze()  # what came along is not the children's to take down
        for child in children:
            child.start()
        for child in children:
            child.join(120)
        assert [child.exitcode for child in children] == [0, 0]
    assert learn(together, ALONE, optimiser, RUN)
    (expected, values), (found, found_values) = newest(alone), newest(together)
    assert values["step"] == found_values["step"] == RUN.steps
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-7)
    logs = [
        [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for folder in (alone, together)
    ]
    assert [line["step"] for line in logs[1]] == [1, 2, 3, 4, 5, 6], "one writes"
    for one, two in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-5), "of the rows of both"
