"""docs/training.md does what it says: its walk is run, and (slow) the embedded model learns a shape it never saw.

The walk's settings and commands are read from the page. Forty drawn crescents teach the embedded model the shape and
its word; the scorer, taught to see crescents, counts them before and after, beside things that the model knew.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from kandinsky5.cli.app import run
from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.loading import load_pipeline
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.train.settings_file import read_settings

from .crescents import NAMED, WORD, a, crescents_recognised, shows, write_folder

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text(encoding="utf-8")
STEPS = 8
NEW = [(a(f"large {colour} {WORD}"), colour) for colour in NAMED]
OLD = [
    ("a large red circle", "circle", "red"),
    ("a large blue square", "square", "blue"),
    ("a large yellow triangle", "triangle", "yellow"),
    ("a large purple cross", "cross", "purple"),
    ("a large green star", "star", "green"),
]


def marked(name: str) -> str:
    """The block below a mark of the page."""
    return re.split(rf"<!-- walk: {name} -->\n```\w+\n", PAGE)[1].split("```")[0]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def drawn(pipe: Kandinsky5T2IPipeline, prompts: list[str]) -> list[Image.Image]:
    """A picture of each, each from noise of its own."""
    generators = [torch.Generator().manual_seed(100 + number) for number in range(len(prompts))]
    return pipe(prompts, num_inference_steps=STEPS, generator=generators).images


def scores(pipe: Kandinsky5T2IPipeline) -> tuple[float, float]:
    """Shares of the new shape, and of things the model knows, that the scorer finds."""
    new = drawn(pipe, [prompt for prompt, _ in NEW])
    old = drawn(pipe, [prompt for prompt, _, _ in OLD])
    with crescents_recognised():
        found = [shows(picture, WORD, colour) for picture, (_, colour) in zip(new, NEW, strict=True)]
        kept = [shows(picture, shape, colour) for picture, (_, shape, colour) in zip(old, OLD, strict=True)]
    return sum(found) / len(found), sum(kept) / len(kept)


def walk(commands: list[str], *, steps: int) -> None:
    """Run the page's commands in the current folder; its pictures are drawn in so many steps."""
    train, *draw = (shlex.split(line)[1:] for line in commands)
    assert run([*train, "-q"]) == 0
    for arguments in draw:
        assert run([*arguments, "-q", "--steps", str(steps)]) == 0


def test_the_walk_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it but the length of the training and the number of pictures."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pictures", count=4)
    settings = marked("settings")
    assert "steps = 110\n" in settings
    Path("crescents.toml").write_text(settings.replace("steps = 110\n", "steps = 2\n"))
    walk(marked("commands").strip().splitlines(), steps=2)
    assert read_provenance(Path("crescent.png")).request.lora == (("crescents", 1.0),)
    assert read_provenance(Path("half.png")).request.lora == (("crescents", 0.5),)
    assert Path("crescents/comfyui_lora.safetensors").is_file() and Path("crescents/README.md").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_walk_teaches_the_embedded_model_a_new_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two_threads: None
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "pictures")
    Path("crescents.toml").write_text(marked("settings"))
    pipe = load_pipeline("embedded", device="cpu", dtype="bf16")
    pipe.set_progress_bar_config(disable=True)
    before, knew = scores(pipe)
    walk(marked("commands").strip().splitlines(), steps=4)
    pipe.load_lora_weights("crescents")
    after, knows = scores(pipe)
    assert before < 0.1, before
    assert after >= 0.8, after
    assert knows >= knew - 0.03, (knew, knows)


def test_settings_of_the_page_are_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(marked("settings"))
    assert read_settings(file).model.name == "embedded"
    named = set(re.findall(r"`((?:data|model|objective|optimiser|run|tuning|watch)\.\w+)", PAGE))
    settings = read_settings(file)
    for name in named:
        part, key = name.split(".")
        assert hasattr(getattr(settings, part), key), name


def test_every_python_line_of_the_page_is_run_elsewhere() -> None:
    """`tests/lora/test_pipelines.py` runs these methods; here the names are held to the pipelines' own."""
    block = PAGE.split("```python\n")[1].split("```")[0]
    for method in re.findall(r"pipe\.(\w+)\(", block):
        assert callable(getattr(Kandinsky5T2IPipeline, method)), method
