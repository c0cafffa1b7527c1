"""The numbers of a run: log.jsonl, and the same for those who draw curves.

In: numbers of steps, in the leading process. Out: lines. Each step stands in log.jsonl once: what a start that was cut
off wrote after the checkpoint that is continued goes. It refuses to know where the numbers come from.
"""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kandinsky5.train.events import Events, TensorBoardEvents, WandbEvents
from kandinsky5.train.run import RunLog
from kandinsky5.train.settings import TrainingSettings

FILE: Final = "log.jsonl"
VALIDATION: Final = "validation_loss"


class Log:
    """The log of a run in `output` that goes on after `step`."""

    def __init__(self, output: Path, settings: TrainingSettings, step: int):
        self._path = output / FILE
        self._every = settings.watch.log_every
        self._steps = settings.run.steps
        _forget_after(self._path, step)
        self._lines = RunLog(self._path, settings.run.batch, settings.run.steps)
        self._events = _events(output, settings, step)

    def add(self, step: int, numbers: Mapping[str, Tensor]) -> float | None:
        """Take in a step; its loss if this step is written."""
        self._lines.add(numbers)
        if not self.due(step):
            return None
        self._lines.tell(step)
        scalars = {name: float(value) for name, value in numbers.items() if value.ndim == 0}
        for events in self._events:
            events.scalars(step, scalars)
        return scalars["loss"]

    def due(self, step: int) -> bool:
        """Whether a line is written after this step."""
        return step % self._every == 0 or step == self._steps

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers of their own."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        for events in self._events:
            events.scalars(step, numbers)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not spent on steps, and not in their rates: saving, pictures, validation."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the steps so far end here
        began = time.monotonic()
        try:
            yield
        finally:
            self._lines.leave_out(time.monotonic() - began)

    def close(self) -> None:
        """Nothing more will be written."""
        for events in self._events:
            events.close()


def validation_figures(output: Path) -> dict[str, float]:
    """The first and the last validation loss that the log of a folder tells of."""
    found = [line for line in _read(output / FILE) if VALIDATION in line]
    before = [line[VALIDATION] for line in found if line["step"] == 0]
    after = [line[VALIDATION] for line in found if line["step"] > 0]
    figures = {"validation loss before": before[:1], "validation loss": after[-1:]}
    return {name: value for name, values in figures.items() for value in values}


def _events(output: Path, settings: TrainingSettings, step: int) -> list[Events]:
    watch = settings.watch
    found: list[Events] = []
    if watch.tensorboard:
        found.append(TensorBoardEvents(output / "events", step))
    if watch.wandb:
        found.append(WandbEvents(watch.wandb, output, settings.recipe()))
    return found


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines that are whole: a run may have been killed in the middle of one."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


def _forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps after this one; all of them where a run begins anew."""
    kept = [line for line in _read(path) if 0 < step >= line["step"]]
    if path.is_file():
        partial = path.with_name(f".{path.name}")
        partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        partial.replace(path)
