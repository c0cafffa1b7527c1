"""The commands that draw nothing."""

import json
import platform
import re

import pytest
import torch

import kandinsky5

from .conftest import CommandLine


def test_show_prints_the_request_of_a_picture(command: CommandLine) -> None:
    command("generate", "a star", "-o", "star.png", "--seed", "3")
    done = command("show", "star.png")
    assert done.code == 0
    assert {"prompt: a star", "seed: 3", "steps: 4", "model: embedded", "device: cpu"} <= set(done.lines)
    stored = json.loads(command("show", "star.png", "--json").out)
    assert stored["request"]["prompt"] == "a star" and stored["model"] == "embedded"


def test_show_refuses_other_files(command: CommandLine) -> None:
    (command.folder / "notes.txt").write_text("no picture")
    done = command("show", "notes.txt")
    assert (done.code, done.out) == (2, "")
    assert "notes.txt is not a picture" in done.err


def test_info_says_what_this_machine_would_do(command: CommandLine) -> None:
    facts = json.loads(command("info", "--json").out)
    assert facts["versions"]["kandinsky5"] == kandinsky5.__version__
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["versions"]["python"] == platform.python_version()
    cpu = next(device for device in facts["devices"] if device["name"] == "cpu")
    if facts["chosen"]["device"] == "cpu":
        assert facts["chosen"]["dtype"] == ("bfloat16" if cpu["fast_bfloat16"] else "float32")
        assert facts["chosen"]["free_bytes"] > 0
    assert [model["name"] for model in facts["models"]][:2] == ["embedded", "t2i-lite-sft"]
    text = command("info").out
    for word in (
        torch.__version__,
        facts["chosen"]["dtype"],
        facts["attention"],
        "t2i-lite-pretrain",
        "29 GB",
    ):
        assert word in text


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16"), ("bf16", "bfloat16")]
)
def test_info_shows_what_options_would_do(command: CommandLine, precision: str, dtype: str) -> None:
    done = command("info", "--device", "cpu", "--precision", precision)
    assert done.code == 0 and re.search(rf"chosen +cpu, {dtype}, \d+\.\d GB free", done.out)
    assert command("info", "--precision", "int4").code == command("info", "--device", "tpu").code == 2


def test_version_and_help(command: CommandLine) -> None:
    assert command("--version").out == f"kandinsky5 {kandinsky5.__version__}\n"
    assert "Exit codes" in command("--help").out
    for name in ("generate", "show", "info"):
        assert command(name, "-h").code == 0


def test_an_unknown_command_is_refused(command: CommandLine) -> None:
    done = command("paint")
    assert done.code == 2
    assert "No such command 'paint'" in done.err and len(done.err.splitlines()) == 1
