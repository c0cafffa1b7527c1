"""benchmarks/training.py runs from end to end with a small network, and a section that fails ends nothing."""

import importlib.util
import json
import multiprocessing
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from .test_replicas import free_port

FILE = Path(__file__).parents[2] / "benchmarks" / "training.py"
TINY = ["--tiny", "--side", "64", "--text", "8", "--steps", "1", "--rank", "2"]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The program as a module, without the compilation of blocks and of torchao's optimisers."""
    monkeypatch.syspath_prepend(FILE.parent)
    spec = importlib.util.spec_from_file_location("training_benchmark", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "WARM", 1)
    torch.compiler.set_stance("force_eager")
    yield module
    torch.compiler.set_stance("default")


def last_line(text: str) -> dict[str, Any]:
    return json.loads(text.strip().splitlines()[-1])


def test_every_section_is_measured(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["training.py", *TINY, "--ways", "eager"])
    benchmark.main()
    text = capsys.readouterr().out
    rows = {row["section"]: row for row in last_line(text)["sections"]}
    assert list(rows) == [
        *("lora-bf16", "lora-int8", "lora-fp8", "lora-nf4", "lora-peer", "full-adamw", "full-adamw8bit")
    ]
    for row in rows.values():
        assert "failed" not in row, row
        assert row["forward_backward_seconds"] > 0 and row["optimiser_seconds"] > 0 and row["last_loss"] > 0
    assert rows["lora-bf16"]["last_loss"] == pytest.approx(rows["lora-peer"]["last_loss"], rel=0.05)
    assert last_line(text)["times_of_peer"].keys() == {"eager", "better"}
    (tmp_path / "one.txt").write_text(text)
    arguments = [*TINY, "--sections", "full", "--against", str(tmp_path / "one.txt")]
    monkeypatch.setattr(sys, "argv", ["training.py", *arguments])
    benchmark.main()
    rows = {row["section"]: row for row in last_line(capsys.readouterr().out)["sections"]}
    assert rows.keys() == {
        f"full-{name}{end}" for name in ("adamw", "adamw8bit") for end in ("", "-compiled")
    }
    assert all(("efficiency" in row) is not name.endswith("compiled") for name, row in rows.items())


def test_a_section_that_fails_or_does_not_fit_ends_nothing(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise ModuleNotFoundError("No module named 'wheel'")

    monkeypatch.setattr(benchmark, "tune_adapter", broken)
    arguments = [*TINY, "--ways", "eager", "--base", "int8", "--sections", "lora", "lora-peer"]
    monkeypatch.setattr(sys, "argv", ["training.py", *arguments])
    benchmark.main()
    first, second = last_line(capsys.readouterr().out)["sections"]
    assert first["failed"] == "ModuleNotFoundError: No module named 'wheel'"
    assert second["images_per_second"] > 0
    monkeypatch.setattr(sys, "argv", ["training.py", *arguments, "--budget", "-1"])
    benchmark.main()
    assert all("left_out" in row for row in last_line(capsys.readouterr().out)["sections"])


def one_of_two(rank: int, port: int, benchmark: ModuleType, out: Path) -> None:
    """A process of two, of which the second breaks in its first section."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    sys.argv = ["training.py", *TINY, "--sections", "full", "--ways", "eager"]
    benchmark.PATIENCE = timedelta(seconds=1)  # type: ignore[attr-defined]
    if rank == 1:
        benchmark.filled = None  # type: ignore[attr-defined]
    with (out / str(rank)).open("w", buffering=1) as sys.stdout:
        benchmark.main()


def test_a_process_that_breaks_leaves_no_other_waiting(benchmark: ModuleType, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    port = free_port()
    children = [
        context.Process(target=one_of_two, args=(rank, port, benchmark, tmp_path)) for rank in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(25)
    assert [child.exitcode for child in children] == [1, 1]
    (row,) = last_line((tmp_path / "1").read_text())["sections"]
    assert "NoneType" in row["failed"] and row["lost"]
