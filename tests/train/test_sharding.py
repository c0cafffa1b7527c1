"""Full tuning cut over processes by FSDP2: the same losses as one process, and checkpoints that any number reads."""

import errno
import gc
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kandinsky5.errors import CheckpointError
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.train.training import train

from .conftest import SMALL, Told, small_settings, write_pictures

FULL = {"tuning__kind": "full", "optimiser__rate": 0.003, "run__batch": 4, "run__save_every": 2}


DISK_FULL = 7
"""How a process ends that was told so."""


def one_of(rank: int, count: int, port: int, base: Path, model: str, changes: dict[str, Any]) -> None:
    """What `torchrun` makes of a process, and then its training. `full_at` is a step whose folder cannot be made."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.compiler.set_stance("force_eager")  # torchao's optimisers take a processor long to compile
    full_at, make = changes.pop("full_at", None), Path.mkdir

    def mkdir(path: Path, *arguments: Any, **named: Any) -> None:
        if full_at is not None and path.name == f".partial-{full_at:07d}":
            raise OSError(errno.ENOSPC, "No space left on device")
        make(path, *arguments, **named)

    Path.mkdir = mkdir  # type: ignore[method-assign]
    try:
        train(small_settings(base, model, **FULL | changes), base, Told())
    except CheckpointError as error:
        assert f"step-{full_at:07d} cannot be written" in str(error) and "is still good" in str(error)
        sys.exit(DISK_FULL)


def run(base: Path, processes: int, model: str, *, ends: int = 0, **changes: Any) -> None:
    """Train in processes of their own, which speak through gloo."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context = multiprocessing.get_context("fork")  # what this process has imported need not be imported again
    children = [
        context.Process(target=one_of, args=(rank, processes, port, base, model, changes))
        for rank in range(processes)
    ]
    gc.freeze()  # what came along is not the children's to take down: threads it may wait for are not in them
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    assert [child.exitcode for child in children] == [ends] * processes


def losses(folder: Path, kind: str = "loss") -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line[kind] for line in lines if kind in line}


def assert_is_the_checkpoint_s(folder: Path, step: int, saved_folder: str, kind: str = "master") -> None:
    """The published folder of a run loads, and holds the pieces of the checkpoint put together."""
    before = Kandinsky5T2IPipeline.from_pretrained(saved_folder).transformer.state_dict()
    after = Kandinsky5T2IPipeline.from_pretrained(folder / "model").transformer.state_dict()
    assert before.keys() == after.keys()
    assert sum(not torch.equal(before[name], after[name]) for name in before) > 0.9 * len(before)
    files = sorted((folder / "checkpoints" / f"step-{step:07d}").glob("*.safetensors"))
    pieces = [load_file(file) for file in files]
    for name, value in after.items():
        parts = [piece[f"{kind}.{name}"] for piece in pieces if f"{kind}.{name}" in piece]
        assert torch.equal(torch.cat(parts), value), name


def test_two_processes_learn_as_one_and_one_goes_on_where_two_stopped(
    saved_folder: str, tmp_path: Path
) -> None:
    """Six steps by one process; four by two, and the last two by one. An average is judged between the steps."""
    write_pictures(tmp_path / "pictures")
    judged = {"run__ema": 0.5, "data__validation_share": 0.4, "watch__validation_every": 2}
    run(tmp_path, 1, saved_folder, output="one", **judged)
    run(tmp_path, 2, saved_folder, output="two", run__steps=4, **judged)
    expected = losses(tmp_path / "one")
    assert list(expected) == [1, 2, 3, 4, 5, 6]
    assert losses(tmp_path / "two") == pytest.approx({s: expected[s] for s in (1, 2, 3, 4)}, rel=2e-5)
    judgements = losses(tmp_path / "one", "validation_loss")
    assert list(judgements) == [0, 2, 4, 6]
    del judgements[6]
    assert losses(tmp_path / "two", "validation_loss") == pytest.approx(judgements, rel=1e-4)
    pieces = sorted(path.name for path in (tmp_path / "two" / "checkpoints" / "step-0000004").iterdir())
    assert pieces == ["pieces-00000.safetensors", "pieces-00001.safetensors", "values.json"]
    assert_is_the_checkpoint_s(tmp_path / "two", 4, saved_folder, "average")
    run(tmp_path, 1, saved_folder, output="two", run__steps=6, **judged)
    assert losses(tmp_path / "two") == pytest.approx(expected, rel=1e-4)


def test_adapters_learn_the_same_in_two_processes(saved_folder: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures")
    lora = {"tuning__kind": "lora", "optimiser__rate": 0.01, "run__steps": 4, "run__ema": 0.5}
    run(tmp_path, 1, saved_folder, output="one", **lora)
    with tarfile.open(tmp_path / "shard.tar", "w") as shard:  # the same pictures, in the same order
        for file in sorted((tmp_path / "pictures").iterdir()):
            shard.add(file, file.name)
    lora |= {"data__sources__kind": "webdataset", "data__sources__path": "shard.tar"}
    run(tmp_path, 2, saved_folder, output="two", **lora)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=2e-5)


def test_groups_with_an_8_bit_optimiser_agree_that_the_disk_is_full_and_go_on(
    saved_folder: str, tmp_path: Path
) -> None:
    """HSDP on two processes. Both end at step 4, whose folder the first cannot make; then both go on from step 2."""
    write_pictures(tmp_path / "pictures")
    changes = {"optimiser__name": "adamw8bit", "run__replicas": 2, "run__steps": 4, "output": "out"}
    run(tmp_path, 2, saved_folder, **changes, full_at=4, ends=DISK_FULL)
    expected = losses(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-0000002"]
    run(tmp_path, 2, saved_folder, **changes)
    assert losses(tmp_path / "out") == expected


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
