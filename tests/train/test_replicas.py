"""Two processes that share the rows of each step learn what one process learns from all of them."""

import gc
import multiprocessing
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from kandinsky5.train.replicas import ALONE, Replicas, join_replicas, leave_replicas
from kandinsky5.train.run import Limits, resume, run
from kandinsky5.train.state_file import load_state
from kandinsky5.train.update import Update, UpdateSettings

STEPS = 6
SETTINGS = UpdateSettings(steps=STEPS, peak=1e-2, warmup=2)
RECIPE = {"update": {"steps": STEPS}}


def rows(number: int) -> Tensor:
    return torch.randn(3, 5, generator=torch.Generator().manual_seed(number))


def learn(folder: Path, replicas: Replicas, shares: int, limits: Limits) -> bool:
    """Train on 3 * `shares` rows a step, of which this process takes its own."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    update = Update(dict(net.named_parameters()), SETTINGS, replicas)
    path = folder / "state.safetensors"
    resume(update, path, RECIPE)
    per_process = shares // replicas.count

    def gradients(numbers: list[int], step: int) -> dict[str, Tensor]:
        loss = sum(net(rows(number)).square().sum() for number in numbers) / (3 * shares)
        loss.backward()
        update.masters.take_gradients()
        return {"loss": loss.detach()}

    own = list(replicas.numbers(update.step, STEPS))
    if replicas.count == 1:
        batches = [list(range(step * shares, (step + 1) * shares)) for step in range(update.step, STEPS)]
    else:
        assert own[0] == replicas.number(update.step) and per_process == 1
        batches = [[number] for number in own]
    return run(update, batches, gradients, rows_per_batch=3 * shares, recipe=RECIPE, path=path, limits=limits)


def one_of_two(rank: int, folder: Path, port: int, limits: Limits) -> None:
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
    learn(folder, replicas, 2, limits)
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
    assert sorted([*first.numbers(2, 5), *second.numbers(2, 5)]) == [4, 5, 6, 7, 8, 9]
    assert [second.number(step) for step in (2, 3)] == list(second.numbers(2, 4))


def test_two_processes_learn_as_one_does_also_after_a_pause(tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert learn(alone, ALONE, 2, Limits())

    context = multiprocessing.get_context("fork")  # what this process has imported need not be imported again
    for limits in (Limits(stop_at=3), Limits()):
        port = free_port()
        children = [
            context.Process(target=one_of_two, args=(rank, together, port, limits)) for rank in range(2)
        ]
        gc.freeze()  # what came along is not the children's to take down
        for child in children:
            child.start()
        for child in children:
            child.join(120)
        assert [child.exitcode for child in children] == [0, 0]
    expected, found = (load_state(folder / "state.safetensors") for folder in (alone, together))
    assert expected[1]["step"] == found[1]["step"] == STEPS
    for name, tensor in expected[0].items():
        torch.testing.assert_close(found[0][name], tensor, rtol=1e-5, atol=1e-7)
    assert len((together / "log.jsonl").read_text().splitlines()) == 2, "one writes"
