"""Full tuning cut over processes by FSDP2: the same losses as one process, and checkpoints that any number reads."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.train.training import train

from .conftest import SMALL, Told, small_settings, write_pictures

FULL = {"tuning__kind": "full", "optimiser__rate": 0.003, "run__batch": 4, "run__save_every": 2}


def one_of(rank: int, count: int, port: int, base: Path, model: str, changes: dict[str, Any]) -> None:
    """What `torchrun` makes of a process, and then its training."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    train(small_settings(base, model, **FULL | changes), base, Told())


def run(base: Path, processes: int, model: str, **changes: Any) -> None:
    """Train in processes of their own, which speak through gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")  # what this process has imported need not be imported again
    children = [
        context.Process(target=one_of, args=(rank, processes, port, base, model, changes))
        for rank in range(processes)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children] == [0] * processes


def losses(folder: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def assert_is_the_checkpoint_s(folder: Path, step: int, saved_folder: str) -> None:
    """The published folder of a run loads, and holds the pieces of the checkpoint put together."""
    before = Kandinsky5T2IPipeline.from_pretrained(saved_folder).transformer.state_dict()
    after = Kandinsky5T2IPipeline.from_pretrained(folder / "model").transformer.state_dict()
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.9 * len(before)
    files = sorted((folder / "checkpoints" / f"step-{step:07d}").glob("*.safetensors"))
    pieces = [load_file(file) for file in files]
    for name, value in after.items():
        parts = [piece[f"master.{name}"] for piece in pieces if f"master.{name}" in piece]
        assert torch.equal(torch.cat(parts), value), name


def test_two_processes_learn_as_one_and_one_goes_on_where_two_stopped(
    saved_folder: str, tmp_path: Path
) -> None:
    """Six steps by one process; four by two, and the last two by one."""
    write_pictures(tmp_path / "pictures")
    run(tmp_path, 1, saved_folder, output="one")
    run(tmp_path, 2, saved_folder, output="two", run__steps=4)
    expected = losses(tmp_path / "one")
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "two") == pytest.approx({s: expected[s] for s in (1, 2, 3, 4)}, rel=2e-5)
    pieces = sorted(path.name for path in (tmp_path / "two" / "checkpoints" / "step-0000004").iterdir())
    assert pieces == ["pieces-00000.safetensors", "pieces-00001.safetensors", "values.json"]
    assert_is_the_checkpoint_s(tmp_path / "two", 4, saved_folder)
    run(tmp_path, 1, saved_folder, output="two", run__steps=6)
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-4)


def test_adapters_learn_the_same_in_two_processes(saved_folder: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    lora = {"tuning__kind": "lora", "optimiser__rate": 0.01, "run__steps": 4, "run__ema": 0.5}
    run(tmp_path, 1, saved_folder, output="one", **lora)
    run(tmp_path, 2, saved_folder, output="two", **lora)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)


@pytest.mark.slow
def test_torchrun_with_two_groups_that_each_hold_all(saved_folder: str, tmp_path: Path) -> None:
    """HSDP by the command line, as `docs/training.md` says."""
    write_pictures(tmp_path / "pictures")
    config = tmp_path / "config.toml"
    config.write_text('[[data.sources]]\npath = "pictures"\n')
    settings = {"model.name": saved_folder, **SMALL, **{k.replace("__", "."): v for k, v in FULL.items()}}
    settings |= {"run.replicas": 2, "run.steps": 2}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    command += ["-m", "kandinsky5", "train", str(config), "-q"]
    for key, value in settings.items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_is_the_checkpoint_s(tmp_path / "training", 2, saved_folder)
