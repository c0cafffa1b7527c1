"""The numbers of a run: log.jsonl, and the same for those who draw curves.

In: numbers of steps, in the leading process. Out: lines. Each step stands in log.jsonl once: what a start that was cut
off wrote after the checkpoint that is continued goes. It refuses to know where the numbers come from.
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kandinsky5.train.events import Events, TensorBoardEvents, WandbEvents
from kandinsky5.train.settings import Plan

logger = logging.getLogger(__name__)

FILE: Final = "log.jsonl"
VALIDATION: Final = "validation_loss"


class Log:
    """The log of a run that goes on after `step`. Numbers are summed on the device, and read when a line is due."""

    def __init__(self, plan: Plan, step: int):
        self._path = plan.output / FILE
        self._plan = plan
        plan.output.mkdir(parents=True, exist_ok=True)
        _forget_after(self._path, step)
        self._events = _events(plan, step)
        self._began = time.monotonic()
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, step: int, numbers: Mapping[str, Tensor], *, due: bool) -> float | None:
        """Take in a step; where a line is due, wait for the device, write it and return the step's loss."""
        for name, number in numbers.items():
            self._sums[name] = self._sums[name] + number if name in self._sums else number.clone()
        self._count += 1
        if not due:
            return None
        self._write(step)
        return float(numbers["loss"])

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers of their own."""
        self._append({"step": step, **numbers})
        self._draw(step, numbers)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not spent on steps, and not in their rates: saving, pictures, validation."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the steps so far end here
        began = time.monotonic()
        try:
            yield
        finally:
            self._began += time.monotonic() - began

    def close(self) -> None:
        """Nothing more will be written."""
        for events in self._events:
            events.close()

    def _write(self, step: int) -> None:
        """A line of averages since the last one, for programs and for people. Of "tokens" the rate is written."""
        averages = {name: _average(total, self._count) for name, total in self._sums.items()}
        now, run = time.monotonic(), self._plan.run
        rate = self._count / (now - self._began)
        line: dict[str, Any] = {
            "step": step,
            "steps_per_second": round(rate, 3),
            "rows_per_second": round(rate * run.batch, 1),
        }
        if "tokens" in averages:
            line["tokens_per_second"] = round(rate * (run.batch // run.micro_batch) * averages.pop("tokens"))
        if torch.cuda.is_available():
            line["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        line |= averages
        self._append(line)
        self._draw(step, {name: value for name, value in line.items() if not isinstance(value, list)})
        shown = " ".join(f"{name} {_short(value)}" for name, value in line.items() if name != "step")
        logger.info("step %d/%d %s", step, run.steps, shown)
        self._began, self._sums, self._count = now, {}, 0

    def _draw(self, step: int, numbers: Mapping[str, float]) -> None:
        """The same for those who draw curves."""
        for events in self._events:
            events.scalars(step, {name: value for name, value in numbers.items() if name != "step"})

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def validation_figures(output: Path) -> dict[str, float]:
    """The first and the last validation loss that the log of a folder tells of."""
    found = [line for line in _read(output / FILE) if VALIDATION in line]
    before = [line[VALIDATION] for line in found if line["step"] == 0]
    after = [line[VALIDATION] for line in found if line["step"] > 0]
    figures = {"validation loss before": before[:1], "validation loss": after[-1:]}
    return {name: value for name, values in figures.items() for value in values}


def _average(total: Tensor, count: int) -> Any:
    """A number's average, or a list of them, None where nothing was counted."""
    if total.ndim == 0:
        return float(total) / count
    return [s / n if n else None for s, n in zip(*total.tolist(), strict=True)]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join("-" if v is None else f"{v:.3f}" for v in value) + "]"
    return f"{value:.4g}"


def _events(plan: Plan, step: int) -> list[Events]:
    found: list[Events] = []
    if plan.watch.tensorboard:
        found.append(TensorBoardEvents(plan.output / "events", step))
    if plan.watch.wandb:
        found.append(WandbEvents(plan.watch.wandb, plan.output, plan.recipe))
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
