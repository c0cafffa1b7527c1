"""The commands that draw nothing."""

import json
import platform
import re

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import kandinsky5

from .conftest import CommandLine


def test_show_prints_the_request_of_a_picture(command: CommandLine) -> None:
    command("generate", "a star", "-o", "star.png", "--seed", "3")
    done = command("show", "star.png")
    assert done.code == 0
    assert {"prompt: a star", "seed: 3", "steps: 4", "model: embedded", "device: cpu"} <= set(done.lines)
    stored = json.loads(command("show", "star.png", "--json").out)
    assert stored["request"]["prompt"] == "a star" and stored["model"] == "embedded"


def test_show_says_what_a_stranger_s_picture_holds_on_lines_of_its_own(command: CommandLine) -> None:
    """Nothing of a file moves the cursor, or looks like another fact."""
    request = {"prompt": "a star\nseed: 9\x1b[2J", "seed": 3}
    facts = {"request": request, "model": "m\nseconds: 7", "seconds": 1.0, "software": {"x\ny": "z"}}
    chunks = PngInfo()
    chunks.add_itxt("kandinsky5", json.dumps(facts))
    Image.new("RGB", (16, 16)).save("theirs.png", pnginfo=chunks)
    done = command("show", "theirs.png")
    assert done.code == 0 and "\x1b" not in done.out
    assert {r"prompt: a star\nseed: 9\x1b[2J", "seed: 3", r"model: m\nseconds: 7", r"x\ny: z"} <= set(
        done.lines
    )
    assert "seconds: 7" not in done.lines and "seed: 9" not in done.lines


@pytest.mark.filterwarnings("error")
def test_show_refuses_pictures_that_are_far_too_large(
    command: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns above it, and ends at twice as many
    Image.new("1", (64, 64)).save("huge.png")
    done = command("show", "huge.png")
    assert done.code == 2 and "huge.png is far too large to be read" in done.err
    Image.new("1", (40, 40)).save("large.png")
    done = command("show", "large.png")
    assert done.code == 2 and "does not say how it was made" in done.err


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


def test_info_refuses_a_size_in_a_person_s_words(command: CommandLine) -> None:
    done = command("info", "--size", "250x256")
    assert (
        done.code == 2 and "Width 250 is not a multiple of 16; the nearest that is: 240 or 256." in done.err
    )


def test_no_words_at_all_are_answered_with_help_alone(command: CommandLine) -> None:
    done = command()
    assert done.code == 2 and "Usage" in done.out + done.err and "kandinsky5:" not in done.err


def test_version_and_help(command: CommandLine) -> None:
    assert command("--version").out == f"kandinsky5 {kandinsky5.__version__}\n"
    assert "Exit codes" in command("--help").out
    for name in ("generate", "show", "info"):
        assert command(name, "-h").code == 0


def test_an_unknown_command_is_refused(command: CommandLine) -> None:
    done = command("paint")
    assert done.code == 2
    assert "No such command 'paint'" in done.err and len(done.err.splitlines()) == 1
