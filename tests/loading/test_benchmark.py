"""The benchmark of loading, at its small size: it runs, its last line is JSON, and what it loads is whole."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.pipelines.encoder_parts import left_out

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "tiny"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        checkpoint = importlib.import_module("full_size_checkpoint")
        checkpoint.write_checkpoint(folder, tiny=True, shard_bytes=200_000)
        sizes = {name: checkpoint.parameters(model) for name, model in checkpoint.models(False).items()}
    assert [round(count / 1e9, 2) for count in sizes.values()] == [6.02, 0.08, 8.29, 0.12]
    return folder


def test_the_checkpoint_it_writes_is_one(written):
    assert len(list(written.rglob("*.safetensors"))) > 8
    pipe = Kandinsky5T2IPipeline.from_pretrained(written)
    assert left_out(pipe.text_encoder) == ("vision", "head")
    assert pipe.transformer.dtype == pipe.text_encoder.dtype == torch.bfloat16
    _, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        written / "text_encoder", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.fixture
def loading(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("loading")


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("kill -9 $$", "ended with -9: it said nothing"),
        ("echo why >&2; exit 3", "ended with 3: why"),
        ("exit 0", "no result: it said nothing"),
        ("echo '['", "no result"),
    ],
)
def test_a_process_that_dies_costs_no_other_result(loading, tmp_path, monkeypatch, program, words):
    (tmp_path / "python").write_text(f"#!/bin/sh\n{program}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(loading.sys, "executable", str(tmp_path / "python"))
    assert words in loading.in_new_process("ours", tmp_path, "cpu", 10)["error"]


def test_the_target_is_that_of_all_bytes(loading):
    """A way that leaves parts on disk is not the one that counts, however fast."""
    assert next(iter(loading.WAYS)) == loading.TARGET_WAY == "ours, all parts"
    assert loading.judged({"ours": 9.0, "ours, all parts": 16.0})["ours_within_target"] is False
    assert loading.judged({"ours": 19.0, "ours, all parts": 14.0})["ours_within_target"] is True
    assert loading.judged({"ours": 9.0})["ours_within_target"] is None
    assert loading.BUDGET_SECONDS < 600


def test_a_write_that_was_interrupted_is_not_taken_as_complete(loading, tmp_path, monkeypatch):
    checkpoint = importlib.import_module("full_size_checkpoint")

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_shard", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.write_checkpoint(tmp_path / "half", tiny=True)
    assert (tmp_path / "half" / "vae" / "config.json").exists()
    assert not (tmp_path / "half" / "model_index.json").exists()


@pytest.mark.slow
def test_it_measures_both_in_new_processes(written):
    arguments = ["--tiny", "--folder", written, "--device", "cpu", "--only", "ours", "diffusers"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / "loading.py", *arguments],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    ours, theirs = result["ways"]["ours"], result["ways"]["diffusers"]
    assert 0 < ours["weights_gb"] < theirs["weights_gb"]
    assert set(ours["check_seconds"]) == {"check_folder", "check_finite", "check_arrived"}
    assert theirs["check_seconds"] == {}
    assert result["times_faster_than_diffusers"] > 0 and (written / "model_index.json").exists()
