"""A training run from its first step to its last: the loop of `kandinsky5 train` and of the embedded model's recipe.

In: a plan, a lesson, and who is told. Out: what the lesson makes of its weights, beside checkpoints and a log. The same
call again continues a run that was stopped, bit for bit on a CPU: micro-batches depend on their numbers alone, the rest
is in the newest checkpoint. It refuses to know what is learnt and from what.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky5.checkpoint.document import reason
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.out_of_memory import is_out_of_memory
from kandinsky5.train.checkpoints import FOLDER, Checkpoints
from kandinsky5.train.lesson import Lesson, LessonMaker
from kandinsky5.train.log import Log
from kandinsky5.train.packages import check_packages
from kandinsky5.train.replicas import ALONE, Replicas, join_replicas, leave_replicas
from kandinsky5.train.schedule import before_decay
from kandinsky5.train.settings import Plan, TrainingSettings
from kandinsky5.train.tuning.lesson import TuningLesson
from kandinsky5.train.tuning.stepper import Stepper


class Watcher(Protocol):
    """Who is told how far a run is."""

    def say(self, text: str) -> None:
        """Something happened."""

    def on_step(self, step: int, steps: int, loss: float | None) -> None:
        """A step is done; its loss where it was looked at."""


def train(
    settings: TrainingSettings, base: Path, watcher: Watcher, lesson: LessonMaker = TuningLesson
) -> Path:
    """Carry out a run, or what is left of it; returns its output folder.

    Args:
        settings: what to do.
        base: folder that paths in the settings count from.
        watcher: is told, in the leading process.
        lesson: makes what is learnt; `demo.network_training.NetworkLesson` for drawn sources.

    Raises:
        RequestError: settings that cannot be carried out, unusable data, or a run begun with other settings.
        CheckpointError: files that cannot be read or written; the last checkpoint stays good.
        CapacityError: the device has too little memory.
    """
    check_packages(settings)
    replicas = join_replicas()
    try:
        check_processes(settings, replicas)
        plan = settings.plan(base)
        made = lesson(settings, base, replicas, watcher.say if replicas.leads else _silent)
        Training(plan, made, watcher, replicas).carry_out()
        return plan.output
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(
            f"A file of the run cannot be read or written: {reason(error)}. The same command goes on from its last "
            "checkpoint."
        ) from error
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, CapacityError) or not is_out_of_memory(error):
            raise
        raise CapacityError(
            "The device has too little memory for this run: lower run.micro_batch or data.sizes, set "
            'run.checkpointing = true, or model.base = "int8" with an adapter.'
        ) from error
    finally:
        leave_replicas()


def check_processes(settings: TrainingSettings, replicas: Replicas) -> None:
    """Raise RequestError for a run that so many processes cannot carry out together."""
    run = settings.run
    forwards = run.batch // run.micro_batch
    if forwards % replicas.count:
        raise RequestError(
            f"run.batch = {run.batch} in parts of run.micro_batch = {run.micro_batch} gives {forwards} forward passes, "
            f"which {replicas.count} processes cannot share evenly."
        )
    if settings.tuning.kind != "full" or settings.data.drawn is not None:
        return
    if replicas.count % run.replicas:
        raise RequestError(
            f"{replicas.count} processes do not divide into run.replicas = {run.replicas} groups."
        )
    if settings.optimiser.name in ("prodigy", "muon") and replicas.count > 1:
        looks = "all weights" if settings.optimiser.name == "prodigy" else "whole matrices"
        raise RequestError(
            f'optimiser.name = "{settings.optimiser.name}" looks at {looks} at once, and full tuning cuts them up over '
            'the processes: use "adamw", "adamw8bit" or "schedule-free", or one process.'
        )


class Training:
    """A run of a lesson, in one of the processes that share it."""

    def __init__(self, plan: Plan, lesson: Lesson, watcher: Watcher, replicas: Replicas = ALONE):
        run = plan.run
        self.stepper = Stepper(lesson.weights, plan.optimiser, steps=run.steps, ema=run.ema)
        self._plan = plan
        self._lesson = lesson
        self._watcher = watcher
        self._replicas = replicas
        self._parts = run.batch // run.micro_batch // replicas.count
        self._checkpoints = Checkpoints(
            plan.output / FOLDER, keep=run.keep, rank=replicas.rank, count=replicas.count
        )
        self._finite = torch.ones((), dtype=torch.bool, device=lesson.device)
        self._log: Log | None = None

    def carry_out(self) -> bool:
        """Continue from the newest checkpoint, if there is one; returns whether the last step is done.

        A run that pauses, because its plan says so, leaves a checkpoint and no results.
        """
        self._resume()
        if self._replicas.leads:
            self._log = Log(self._plan, self.stepper.step)
        try:
            self._go_on()
        finally:
            if self._log is not None:
                self._log.close()
        finished = self.stepper.step == self._plan.run.steps
        if finished:
            self._lesson.finish(self.stepper)
        else:
            self._say(f"paused after step {self.stepper.step}; the same command goes on")
        return finished

    def _go_on(self) -> None:
        """The remaining steps, and what is due between them."""
        run, stepper, began = self._plan.run, self.stepper, time.monotonic()
        if stepper.step == 0:
            self._show(edge=True)
        numbers = self._replicas.numbers(stepper.step * self._parts, run.steps * self._parts)
        batches = zip(numbers, self._lesson.batches(numbers), strict=True)
        while stepper.step < run.steps and not self._stopped:
            told = self._step(batches)
            step, last = stepper.step, stepper.step == run.steps
            ends = last or self._stopped or self._late(time.monotonic() - began)
            due = ends or step % self._plan.watch.log_every == 0
            loss = self._log.add(step, told, due=due) if self._log is not None else None
            if self._replicas.leads:
                self._watcher.on_step(step, run.steps, loss)
            if due:
                self._refuse_nonsense(bool(self._finite))
            self._show(edge=last)
            if ends or step % run.save_every == 0:
                self._save()
            if ends:
                break

    @property
    def _stopped(self) -> bool:
        """Whether the step is reached at which the run pauses."""
        return 0 < self._plan.run.stop_at <= self.stepper.step

    def _late(self, seconds: float) -> bool:
        """Whether the run pauses after so many seconds: of which the leading process judges."""
        limit = self._plan.run.max_seconds
        return limit > 0 and self._replicas.agree(seconds > limit)

    def _step(self, batches: Iterator[tuple[int, Any]]) -> dict[str, Tensor]:
        """One update; its numbers for the log, over all processes, left on the device."""
        told = []
        for _ in range(self._parts):
            number, batch = next(batches)
            told.append(self._lesson.take_gradients(batch, number, self._parts))
        means = _means(told, self._replicas)
        means["rate"] = torch.tensor(self.stepper.rate)
        means["gradient_norm"] = self.stepper()
        self._finite &= means["loss"].isfinite() & means["gradient_norm"].isfinite()
        return means

    def _refuse_nonsense(self, sound: bool) -> None:
        """Stop in every process before anything is kept. Raises RequestError unless all are sound."""
        if self._replicas.all_agree(sound):
            return
        newest, settings = self._checkpoints.newest(), self._plan.optimiser
        kept = f"{newest} is from before" if newest else "no checkpoint was written"
        raise RequestError(
            f"Up to step {self.stepper.step} the loss, its gradient or the weights grew beyond all numbers, and "
            f"nothing of that is saved; {kept}. Lower optimiser.rate = {settings.rate:g} or optimiser.clip = "
            f"{settings.clip:g}, or raise optimiser.warmup = {settings.warmup}, in another output folder."
        )

    def _show(self, edge: bool) -> None:
        """What the lesson shows of itself, when it is time for it."""
        step = self.stepper.step
        if not self._lesson.is_due(step, edge):
            return
        with self._paused(), self.stepper.result():
            found = self._lesson.show(step, edge)
            if self._log is not None and found:
                self._log.note(step, found)

    # -- Checkpoints ------------------------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._checkpoints.clear_partial()
        newest = self._checkpoints.newest()
        if newest is None:
            return
        tensors, _ = self.stepper.state()
        found, values = self._checkpoints.load(newest, tensors)
        self._check_same(values["run"], values["step"], newest)
        if values["step"] > self._plan.run.steps:
            raise RequestError(
                f"run.steps = {self._plan.run.steps} is less than {newest} has behind it: set at least "
                f"{values['step']}, or name another output folder."
            )
        self.stepper.restore(found, values)
        self._say(f"continuing after step {self.stepper.step}, from {newest}")

    def _check_same(self, begun: Mapping[str, Any], step: int, path: Path) -> None:
        """Refuse to continue a run with other settings or data; its length may change until its rate decays."""
        wanted = self._described()
        differing = [
            f"{part}.{name}"
            for part, values in wanted["recipe"].items()
            for name, value in values.items()
            if value != begun["recipe"].get(part, {}).get(name)
        ]
        decay, begun_steps = self._plan.optimiser.decay_share, begun["recipe"]["run"]["steps"]
        if differing == ["run.steps"] and (
            not decay
            or all(
                before_decay(step, steps=n, decay_share=decay) for n in (begun_steps, self._plan.run.steps)
            )
        ):
            differing = []
        if not differing:
            data, found = wanted["data"], begun["data"]
            differing = [name for name in data | found if data.get(name) != found.get(name)]
        if differing:
            raise RequestError(
                f"{path} was begun with other settings ({', '.join(differing)}): continue with the same, or name "
                "another output folder."
            )

    def _described(self) -> dict[str, Any]:
        return {"recipe": json.loads(json.dumps(self._plan.recipe)), "data": dict(self._lesson.digest())}

    def _save(self) -> None:
        """A checkpoint, and what the lesson keeps beside it, of weights that are numbers. Raises RequestError else."""
        with self._paused():
            self._refuse_nonsense(self.stepper.sound() and bool(self._finite))
            tensors, values = self.stepper.state()
            self._checkpoints.save(self.stepper.step, tensors, {**values, "run": self._described()})
            self._lesson.keep(self.stepper)

    def _paused(self) -> AbstractContextManager[None]:
        return nullcontext() if self._log is None else self._log.paused()

    def _say(self, text: str) -> None:
        if self._replicas.leads:
            self._watcher.say(text)


def _means(told: Sequence[Mapping[str, Tensor]], replicas: Replicas) -> dict[str, Tensor]:
    """Each number's mean over these micro-batches of all processes, which send each other one message."""
    rows = [torch.cat([value.detach().float().flatten() for value in one.values()]) for one in told]
    mean = torch.stack(rows).mean(0)
    if replicas.count > 1:
        replicas.add_up([mean])
        mean /= replicas.count
    values = mean.split([value.numel() for value in told[0].values()])
    return {name: row.view(like.shape) for (name, like), row in zip(told[0].items(), values, strict=True)}


def _silent(text: str) -> None:
    """For the processes that do not lead."""
