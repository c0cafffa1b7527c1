"""The command line over a real system at tiny size, loaded from a folder in the published layout."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from kandinsky5.cli.app import run
from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.pipelines import Kandinsky5T2IPipeline


@pytest.fixture
def folder(saved_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder, from a working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    return Path(saved_folder)


def test_a_prompt_becomes_a_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["generate", "a red circle", "--model", str(folder), "--device", "cpu", "--precision", "fp32"]
    assert run([*arguments, "-o", "a.png", "--seed", "5"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("a.png\tseed 5\t") and captured.err == ""
    stored = read_provenance(Path("a.png"))
    assert (stored.model, stored.request.steps, stored.request.seed) == (str(folder), 3, 5)
    assert (stored.software["device"], stored.software["dtype"]) == ("cpu", "float32")
    assert run([*arguments, "-o", "b.png", "--like", "a.png"]) == 0
    with Image.open("a.png") as first, Image.open("b.png") as again:
        assert first.size == (64, 64)
        assert first.tobytes() == again.tobytes()


@pytest.mark.parametrize(("precision", "dtypes"), [("bf16", ["bfloat16"]), ("auto", ["bfloat16", "float32"])])
def test_the_precision_is_followed_and_stored(folder: Path, precision: str, dtypes: list[str]) -> None:
    assert (
        run(
            [
                "generate",
                "a",
                "--model",
                str(folder),
                "--device",
                "cpu",
                "--precision",
                precision,
                "-o",
                "a.png",
            ]
        )
        == 0
    )
    stored = read_provenance(Path("a.png")).software["dtype"]
    assert stored in dtypes


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model_index.json").unlink(),
        lambda folder: (folder / "model_index.json").write_text("{"),
        lambda folder: cut(folder / "transformer" / "diffusion_pytorch_model.safetensors"),
        lambda folder: cut(folder / "text_encoder" / "model.safetensors"),
        lambda folder: (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink(),
        lambda folder: (folder / "vae" / "config.json").unlink(),
        lambda folder: shutil.rmtree(folder / "tokenizer"),
    ],
    ids=["no index", "no json", "cut network", "cut encoder", "no network", "no vae config", "no tokenizer"],
)
def test_damaged_files_are_a_checkpoint_error(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    assert run(["generate", "a", "--model", str(copy), "--device", "cpu", "-o", "a.png"]) == 3
    captured = capsys.readouterr()
    assert str(copy) in captured.err and len(captured.err.splitlines()) == 1
    assert not Path("a.png").exists()


def test_a_model_that_cannot_be_fetched_is_a_checkpoint_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "a", "--model", "t2i-lite-pretrain", "--device", "cpu", "-o", "a.png"]) == 3
    assert "Kandinsky-5.0-T2I-Lite-pretrain-Diffusers" in capsys.readouterr().err


def test_an_absent_device_is_a_request_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "a", "--model", str(folder), "--device", "cuda:99", "-o", "a.png"]) == 2
    assert "'cuda:99'" in capsys.readouterr().err


def test_control_c_ends_with_130_and_no_half_file(folder: Path, tmp_path: Path) -> None:
    """A process of its own, interrupted while it draws the second of many prompts."""
    (tmp_path / "prompts.txt").write_text("a red circle\n" * 500)
    arguments = (
        f"generate --from-file prompts.txt -o out/ --model {folder} --device cpu --precision fp32".split()
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "kandinsky5", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
    told = [line.split("\t")[0] for line in [first, *rest.splitlines()]]
    written = sorted(str(path) for path in Path("out").iterdir())
    # The file may be written and the interrupt come before its line.
    assert set(told) <= set(written) and len(written) <= len(told) + 1
    for path in written:
        with Image.open(path) as image:
            image.load()


def test_a_reader_that_leaves_early_is_no_traceback(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n" * 40)
    done = subprocess.run(
        f"{sys.executable} -m kandinsky5 generate --from-file prompts.txt -o out/ --model {folder} "
        "--device cpu --precision fp32 --steps 1 | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


@pytest.mark.usefixtures("few_tokens")
def test_a_prompt_is_written_out_told_and_stored(
    folder: Path, capsys: pytest.CaptureFixture[str], pipeline: Kandinsky5T2IPipeline
) -> None:
    """The picture holds the longer prompt, so that --like draws it again without writing."""
    arguments = ["generate", "a red circle", "--model", str(folder), "--device", "cpu", "--precision", "fp32"]
    assert run([*arguments, "-o", "a.png", "--seed", "5", "--expand"]) == 0
    longer = pipeline.expand_prompt("a red circle")
    assert read_provenance(Path("a.png")).request.prompt == longer != "a red circle"
    assert capsys.readouterr().out.startswith("a.png\tseed 5\t")
    again = ["generate", "--model", str(folder), "--device", "cpu", "--precision", "fp32", "--like", "a.png"]
    assert run([*again, "-o", "b.png"]) == 0
    with Image.open("a.png") as first, Image.open("b.png") as second:
        assert first.tobytes() == second.tobytes()


def test_the_embedded_model_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "a red circle", "--expand"]) == 2
    assert "only reads" in capsys.readouterr().err
