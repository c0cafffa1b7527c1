"""The README does what it says: its commands and snippets are run, its tables compared with the code."""

import json
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kandinsky5.cli.app import ExitCode
from kandinsky5.demo.claims import Claims, Group
from kandinsky5.demo.scorer import score
from kandinsky5.variants import EMBEDDED, VARIANTS, embedded_folder
from tests.pipelines.conftest import picture

from .conftest import CommandLine

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TABLE_COMMANDS = re.findall(r"^\|[^|]*\| `(kandinsky5 [^`]*)`", README, re.MULTILINE)


CLAIMS = Claims(
    groups=tuple(
        Group(count=1, colour=colour, shape=shape, size=None, fill=None, position=None)
        for colour, shape in (("red", "circle"), ("blue", "square"))
    ),
    relations=((0, "left of", 1),),
    ground=None,
)
"""Of the first command."""

LONGEST_COLD_START = 30.0
"""Seconds. The promise is 15 on two idle cores; a suite's cores are not idle."""


def script() -> str:
    """The console script of the environment that runs the tests."""
    path = Path(sys.executable).parent / "kandinsky5"
    assert path.is_file(), "the package is not installed here; the README's test command installs it"
    return str(path)


def test_the_first_command_draws_what_the_prompt_says(tmp_path: Path) -> None:
    """Its last part, with the installed package; `.ci/run` and its first parts are the same for the tests' command."""
    install, _, draw = SHELL[0].strip().rpartition(" && ")
    assert install == "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt ."
    program, *arguments = shlex.split(draw)
    assert program == ".venv/bin/kandinsky5"
    command = [script(), *arguments, "--seed", "1", "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    seconds = time.perf_counter() - started
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < LONGEST_COLD_START
    told = json.loads(done.stdout)
    assert (told["path"], told["model"], told["request"]["seed"]) == ("picture.png", EMBEDDED, 1)
    with Image.open(tmp_path / "picture.png") as image:
        assert image.size == (256, 256)
        report = score(np.asarray(image.convert("RGB")), CLAIMS)
    assert report.whole


def test_every_other_command_is_understood(command: CommandLine) -> None:
    """They run over an engine that paints plain squares; the folder holds the files they name."""
    assert len(TABLE_COMMANDS) == 11
    picture(128, 96).save("photo.png")
    Path("prompts.txt").write_text("a red circle\ntwo rings\n")
    Path("style.safetensors").touch()
    assert command("generate", "a star", "-o", "picture.png").code == 0
    others = [line.replace(".venv/bin/", "") for line in SHELL[1].strip().splitlines()]
    for line in [*TABLE_COMMANDS, *others]:
        done = command(*shlex.split(line)[1:])
        told = "a lighthouse, in every detail\n" if "--expand" in line else ""
        assert (done.code, done.err) == (0, told), line
    assert {"larger.png", "cat.png", "night.png", "night-compare.png"} <= set(command.files())
    assert sum(name.startswith("stars/a-green-star-") for name in command.files()) == 4


def test_the_published_snippet_runs_with_the_embedded_model() -> None:
    """As in the README, but for what only a large GPU and a download can do: model, device, size and steps."""
    snippet = PYTHON[0]
    for ours, theirs in (
        (f'"{embedded_folder()}"', '"kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers"'),
        ('device="cpu"', 'device="cuda"'),
        ("height=256", "height=1024"),
        ("width=256", "width=1024"),
        ("num_inference_steps=2", "num_inference_steps=50"),
    ):
        assert snippet.count(theirs) == 1
        snippet = snippet.replace(theirs, ours)
    names: dict[str, object] = {}
    exec(snippet, names)
    assert isinstance(names["output"], Image.Image) and names["output"].size == (256, 256)


def test_the_snippet_of_the_embedded_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(PYTHON[1], {})
    with Image.open("stars.png") as image:
        assert image.size == (256, 256)


def test_exit_codes_are_those_of_the_code() -> None:
    table = README.split("| exit code |")[1].split("\n\n")[0]
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)] == list(ExitCode)


def test_links_and_models_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
    for model in re.findall(r"--model (\S+)", README):
        assert model in [variant.name for variant in VARIANTS]


def test_ci_reads_the_test_command_from_here() -> None:
    """`.ci/run` takes the line that starts with `python3 -m venv` below this heading and splits it at its last `&&`."""
    line = README.split("## Run the tests")[1].split("```sh\n")[1].split("\n")[0]
    assert line == (
        "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e '.[dev]' && "
        ".venv/bin/python -m pytest -q -n 2"
    )
    assert "README.md" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
