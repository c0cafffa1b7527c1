"""What a person typed, or a disk that is full, ends with its own code and one line; never as something unexpected."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from kandinsky5.cli.picturefile import write_picture
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.provenance import PictureFormat
from kandinsky5.variants import resolve_model

from .conftest import CommandLine
from .test_picturefile import picture

LONG = "x" * 300


@pytest.mark.parametrize("prompts", [["-"], ["--from-file", "-"]], ids=str)
def test_a_closed_standard_input(command: CommandLine, prompts: list[str]) -> None:
    def closed(*arguments: str) -> None:
        return None

    command.patch.setattr("io.TextIOWrapper", closed)  # what Python has for `<&-`
    done = command("generate", *prompts)
    assert done.code == 2 and "Standard input is closed" in done.err and len(done.err.splitlines()) == 1


def test_a_closed_standard_input_of_a_process(tmp_path: Path) -> None:
    code = "from kandinsky5.cli.app import main; main(['generate', '-'])"
    shell = f'"{sys.executable}" -c "{code}" <&-'
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "Standard input is closed" in done.stderr, done.stderr


@pytest.mark.parametrize("command_name", ["generate", "verify", "pull", "quantize"])
def test_a_model_with_a_name_that_is_too_long(command: CommandLine, command_name: str) -> None:
    given = {"generate": ["a", "--model", LONG], "quantize": [LONG, "out"]}.get(command_name, [LONG])
    done = command(command_name, *given)
    assert done.code == 2 and "is not one of embedded" in done.err and len(done.err) < 800
    with pytest.raises(RequestError, match="an existing folder"):
        resolve_model("a\0b")


def test_a_long_name_in_python(tmp_path: Path) -> None:
    from kandinsky5.pipelines import Kandinsky5T2IPipeline

    with pytest.raises(CheckpointError, match="neither a folder here nor a hub id"):
        Kandinsky5T2IPipeline.from_pretrained(LONG, cache_dir=tmp_path)


@pytest.mark.parametrize(
    "output",
    [f"{LONG}.png", f"{LONG}/a.png", f"{LONG}/", "a/" * 3000 + "b.png", LONG, f"{'x' * 250}.png"],
    ids=["file", "folder of a file", "folder", "path", "no suffix", "numbered"],
)
def test_an_output_with_a_name_that_is_too_long(command: CommandLine, output: str) -> None:
    done = command("generate", "a", "-o", output, "-n", "2")
    assert done.code == 2 and command.opened == [] and len(done.err.splitlines()) == 1
    assert "too long" in done.err or "does not end in" in done.err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_has_no_room(command: CommandLine, number: int) -> None:
    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    command.patch.setattr("os.fsync", full)
    done = command("generate", "a", "-o", "a.png")
    assert done.code == 4 and "a.png cannot be written" in done.err and command.files() == []


def test_a_limit_of_file_sizes_has_no_room(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(CapacityError, match=r"p\.png cannot be written: File too large"):
            write_picture(picture(), tmp_path / "p.png", PictureFormat.png)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_became_a_file_is_the_persons(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    with pytest.raises(RequestError, match="choose another -o"):
        write_picture(picture(), tmp_path / "a" / "p.png", PictureFormat.png)
