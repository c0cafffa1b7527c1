"""A small saved system, pictures to train it on, and a run of the real trainer."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kandinsky5.train.settings import TrainingSettings
from kandinsky5.train.settings_file import read_settings
from kandinsky5.train.training import train
from tests.pipelines.conftest import (
    components,
    editing_components,
    editing_network,
    picture,
    saved_editing_folder,
    saved_folder,
)

__all__ = ["components", "editing_components", "editing_network", "saved_editing_folder", "saved_folder"]

WORDS = ("a red circle", "blue square and", "a green star beside", "a circle")


@dataclass
class Told:
    """What a run says, and the losses it shows. `stop_at` ends it after a step, as Ctrl-C does."""

    said: list[str] = field(default_factory=list)
    losses: dict[int, float] = field(default_factory=dict)
    stop_at: int | None = None

    def say(self, text: str) -> None:
        self.said.append(text)

    def on_step(self, step: int, steps: int, loss: float | None) -> None:
        if loss is not None:
            self.losses[step] = loss
        if step == self.stop_at:
            raise KeyboardInterrupt


def write_pictures(folder: Path, count: int = 6, side: int = 64) -> None:
    """Pictures of soft colours in two shapes, one of them with several captions."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        picture(side, side, seed=number).save(folder / f"{number}.png")
        captions = WORDS[number % 4] if number else "\n".join(WORDS[:3])
        (folder / f"{number}.txt").write_text(captions)


def write_edits(folder: Path, count: int = 4, side: int = 128) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        picture(side, side, seed=number).save(folder / f"before-{number}.png")
        picture(side, side, seed=50 + number).save(folder / f"after-{number}.png")
        lines.append(
            {
                "source": f"before-{number}.png",
                "instruction": "make it blue",
                "target": f"after-{number}.png",
            }
        )
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


SMALL = {
    "model.base": "fp32",
    "model.device": "cpu",
    "tuning.rank": 4,
    "tuning.alpha": 4,
    "optimiser.rate": 0.01,
    "optimiser.warmup": 2,
    "run.steps": 6,
    "run.batch": 2,
    "run.save_every": 3,
    "watch.log_every": 1,
}


def small_settings(base: Path, model: str, **changes: Any) -> TrainingSettings:
    """Settings of a short run; `a__b` is the key a.b."""
    named = {key.replace("__", "."): value for key, value in changes.items()}
    merged = {"model.name": model, **SMALL, **named}
    sources = merged.pop("sources", ["pictures"])
    tables = "".join(f"[[data.sources]]\npath = {json.dumps(path)}\n" for path in sources)
    file = base / "config.toml"
    file.write_text(tables)
    return read_settings(file, [f"{key}={json.dumps(value)}" for key, value in merged.items()])


@pytest.fixture
def trained(tmp_path: Path, saved_folder: str) -> Callable[..., Told]:
    """Runs the trainer in a folder of its own, on six pictures; returns what it told."""
    write_pictures(tmp_path / "pictures")

    def run(*, stop_at: int | None = None, **changes: Any) -> Told:
        told = Told(stop_at=stop_at)
        settings = small_settings(tmp_path, changes.pop("model", saved_folder), **changes)
        try:
            train(settings, tmp_path, told)
        except KeyboardInterrupt:
            told.say("stopped")
        return told

    return run
