"""The loop of a training run: batches in, updates, a log line every few seconds, a state file to continue from.

It does not know what is trained: a function turns a batch into gradients and numbers for the log. A run has a fixed
number of steps; it may stop early (a time limit, a step) and be continued by the same command, which then does exactly
what an unbroken run would have done. Of several replicas the leading one decides when, and writes; its log tells of its
own rows.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.train.schedule import before_decay
from kandinsky5.train.state_file import load_state, save_state
from kandinsky5.train.update import Update

logger = logging.getLogger(__name__)

Gradients = Callable[[Any, int], Mapping[str, Tensor]]
"""Maps (batch, step) to numbers for the log, having left gradients in the update's masters. A scalar is averaged over
the steps of a log line; a (2, n) tensor of sums and counts becomes n averages."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When a run pauses and reports. None of it changes the result."""

    max_seconds: float = math.inf
    stop_at: int | None = None
    log_seconds: float = 10.0
    save_seconds: float = 240.0


def resume(update: Update, path: Path, recipe: Mapping[str, Any]) -> None:
    """Continue from the state file at `path`, if there is one.

    A run may be given another length (`recipe["update"]["steps"]`) until the decay of its learning rate begins, for up
    to there the result would have been the same. Raises RequestError where any other setting, or the length later
    than that, differs from what the file was written with.
    """
    if not path.exists():
        return
    tensors, values = load_state(path)
    wanted, begun = json.loads(json.dumps(recipe)), values["recipe"]
    changed = sorted(key for key in wanted | begun if wanted.get(key) != begun.get(key))
    if changed and not (changed == ["update"] and _relengthened(begun, wanted, values["step"])):
        raise RequestError(
            f"{path} was begun with other settings ({', '.join(changed)}); continue with the same, or remove the file."
        )
    update.restore(tensors, values)


def _relengthened(begun: Mapping[str, Any], wanted: Mapping[str, Any], step: int) -> bool:
    """Whether the update settings of two recipes differ in length alone, and in nothing done before `step`."""
    both = [{**recipe.get("update", {}), "steps": None} for recipe in (begun, wanted)]
    return both[0] == both[1] and all(
        before_decay(step, steps=recipe["update"]["steps"], decay_share=recipe["update"]["decay_share"])
        for recipe in (begun, wanted)
    )


def run(
    update: Update,
    batches: Iterable[Any],
    gradients: Gradients,
    *,
    rows_per_batch: int,
    recipe: Mapping[str, Any],
    path: Path,
    limits: Limits,
) -> bool:
    """Train from `update.step` on; returns whether the run is finished, after writing its state to `path`.

    Args:
        batches: the batches of the remaining steps, in order.
        gradients: see `Gradients`.
        rows_per_batch: of all replicas, for the rate in the log.
        recipe: JSON-able settings that a continued run must share.
        path: of the state file; the log is written beside it as `log.jsonl`.
        limits: when to pause.
    """
    replicas = update.replicas
    last = min(update.settings.steps, limits.stop_at or update.settings.steps)
    log = RunLog(path.with_name("log.jsonl"), rows_per_batch, update.settings.steps)
    began = logged = saved = time.monotonic()
    if update.step < last:
        for batch in batches:
            numbers = dict(gradients(batch, update.step))
            numbers["gradient_norm"] = update()
            log.add(numbers)
            now = time.monotonic()
            stop = update.step >= last or replicas.agree(now - began > limits.max_seconds)
            if replicas.leads and (stop or now - logged > limits.log_seconds):
                log.write(update.step)
                logged = time.monotonic()
            if stop:
                break
            if now - saved > limits.save_seconds:
                _save(update, path, recipe)
                saved = time.monotonic()
        _save(update, path, recipe)
    return update.step >= update.settings.steps


def _save(update: Update, path: Path, recipe: Mapping[str, Any]) -> None:
    if update.replicas.leads:
        tensors, values = update.state()
        save_state(path, tensors, values | {"recipe": dict(recipe)})


class RunLog:
    """Numbers summed on the device, read when a line is written: one for people, one as JSON."""

    def __init__(self, path: Path, rows_per_batch: int, steps: int):
        self._path = path
        self._rows = rows_per_batch
        self._steps = steps
        self._began = time.monotonic()
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, numbers: Mapping[str, Tensor]) -> None:
        """Take in one step's numbers, without waiting for the device."""
        for name, number in numbers.items():
            self._sums[name] = (
                self._sums[name] + number.detach() if name in self._sums else number.detach().clone()
            )
        self._count += 1

    def leave_out(self, seconds: float) -> None:
        """So many seconds since the last line were not spent on steps."""
        self._began += seconds

    def write(self, step: int) -> None:
        """Write the averages since the last line. Raises FloatingPointError if one of the scalars is not finite."""
        for name, value in self.tell(step).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} at step {step}; the last saved state is still good."
                )

    def tell(self, step: int) -> dict[str, Any]:
        """Write and return the averages since the last line, whatever they are. Of "tokens" the rate is written."""
        averages = {name: _average(total, self._count) for name, total in self._sums.items()}
        now = time.monotonic()
        rate = self._count / (now - self._began)
        line: dict[str, Any] = {
            "step": step,
            "steps_per_second": round(rate, 3),
            "rows_per_second": round(rate * self._rows, 1),
        }
        if "tokens" in averages:
            line["tokens_per_second"] = round(rate * float(averages.pop("tokens")))  # type: ignore[arg-type]
        if torch.cuda.is_available():
            line["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        line |= averages
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = " ".join(f"{name} {_short(value)}" for name, value in line.items() if name != "step")
        logger.info("step %d/%d %s", step, self._steps, shown)
        self._began, self._sums, self._count = now, {}, 0
        return averages


def _average(total: Tensor, count: int) -> float | list[float | None]:
    if total.ndim == 0:
        return float(total) / count
    return [s / n if n else None for s, n in zip(*total.tolist(), strict=True)]


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + " ".join("-" if v is None else f"{v:.3f}" for v in value) + "]"
    return f"{value:.4g}"
