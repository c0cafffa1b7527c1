"""A training run from settings to results: `kandinsky5 train`.

In: settings, the folder that their paths count from, and who is told. Out: the folder with the results. The same call
again continues a run that was stopped, bit for bit on one device: order, times and noise depend on seeds and step
numbers alone, the rest is in the newest checkpoint. It refuses to know the command line.
"""

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.placement import is_out_of_memory
from kandinsky5.train.checkpoints import Checkpoints
from kandinsky5.train.data.order import MicroBatch, Order
from kandinsky5.train.data.rows import RowReader, Rows
from kandinsky5.train.events import Events
from kandinsky5.train.objective import TIME_BINS, by_time
from kandinsky5.train.preparing import (
    Data,
    Model,
    count_parameters,
    load_model,
    prepare_data,
    prepare_network,
)
from kandinsky5.train.rectified_flow import losses
from kandinsky5.train.replicas import Replicas, join_replicas, leave_replicas
from kandinsky5.train.results import save_adapter, save_model, write_card
from kandinsky5.train.run import RunLog
from kandinsky5.train.settings import TrainingSettings
from kandinsky5.train.tuning.stepper import Stepper
from kandinsky5.train.watching import draw_prompts, save_pictures, validation_loss


class Watcher(Protocol):
    """Who is told how far a run is."""

    def say(self, text: str) -> None:
        """Something happened."""

    def on_step(self, step: int, steps: int, loss: float | None) -> None:
        """A step is done; its loss where it was looked at."""


def train(settings: TrainingSettings, base: Path, watcher: Watcher) -> Path:
    """Carry out a run, or what is left of it; returns its output folder.

    Args:
        settings: what to do.
        base: folder that paths in the settings count from.
        watcher: is told, in the leading process.

    Raises:
        RequestError: settings that cannot be carried out, unusable data, or a run begun with other settings.
        CheckpointError: files that cannot be read or written; the last checkpoint stays good.
        CapacityError: the device has too little memory.
    """
    replicas = join_replicas()
    try:
        model = load_model(settings, watcher.say if replicas.leads else _silent)
        return Training(settings, base, watcher, replicas, model).carry_out()
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, CapacityError) or not is_out_of_memory(error):
            raise
        raise CapacityError(
            "The device has too little memory for this run: lower run.micro_batch or data.sizes, set "
            'run.checkpointing = true, or model.base = "int8" with an adapter.'
        ) from error
    finally:
        leave_replicas()


class Training:
    """The parts of a run, in the order in which they are made."""

    def __init__(
        self, settings: TrainingSettings, base: Path, watcher: Watcher, replicas: Replicas, model: Model
    ):
        self.settings = settings
        self.model = model
        self._replicas = replicas
        self._watcher = watcher
        self._say = watcher.say if replicas.leads else _silent
        self.output = base / settings.output
        self._batches = self._micro_batches()
        self.data: Data = prepare_data(model, settings, base, replicas, self._say)
        weights = prepare_network(model, settings, replicas)
        self.stepper = Stepper(weights, settings.optimiser, steps=settings.run.steps, ema=settings.run.ema)
        self._checkpoints = Checkpoints(
            self.output / "checkpoints", keep=settings.run.keep, rank=replicas.rank, count=replicas.count
        )
        run = settings.run
        self._order = Order(
            self.data.rows,
            run.micro_batch,
            seed=run.seed,
            editing_share=settings.objective.editing_share,
        )
        self._reader = RowReader(
            self.data.rows, self.data.cache, unconditional=settings.objective.unconditional, seed=run.seed
        )
        self._validation: dict[str, float] = {}
        self._pictures: list[Path] = []

    def carry_out(self) -> Path:
        """Continue from the newest checkpoint, if there is one, to the end; returns the output folder."""
        self._resume()
        learning, everything = count_parameters(self.model.network)
        self._say(f"{learning / 1e6:.2f} of {everything / 1e6:.0f} million parameters learn")
        steps, log = self.settings.run.steps, None
        if self._replicas.leads:
            log = Log(self.output, self.settings)
        if self.stepper.step == 0:
            self._watch(log, due=True)
        for rows in self._steps():
            numbers = self._step(rows)
            step = self.stepper.step
            loss = log.add(step, numbers) if log is not None else None
            if self._replicas.leads:
                self._watcher.on_step(step, steps, loss)
            last = step == steps
            self._watch(log, due=last)
            if last or step % self.settings.run.save_every == 0:
                self._save()
        if log is not None:
            log.close()
        self._leave_results()
        return self.output

    # -- Steps ------------------------------------------------------------------------------------------------------

    def _micro_batches(self) -> int:
        """Micro-batches of a step in this process. Raises RequestError where processes do not share a batch evenly."""
        run = self.settings.run
        count = run.batch // run.micro_batch
        if count % self._replicas.count:
            raise RequestError(
                f"run.batch = {run.batch} in parts of run.micro_batch = {run.micro_batch} gives {count} forward "
                f"passes, which {self._replicas.count} processes cannot share evenly."
            )
        return count // self._replicas.count

    def _steps(self) -> Iterator[list[Rows]]:
        """The micro-batches of each remaining step, read ahead."""
        first, last = self.stepper.step, self.settings.run.steps
        stream = self._reader.stream(self._numbered(first, last))
        for _ in range(first, last):
            yield [next(stream) for _ in range(self._batches)]

    def _numbered(self, first: int, last: int) -> Iterator[tuple[MicroBatch, int]]:
        """This process's micro-batches of steps [first, last), with the number of their first row in the run."""
        count = self._batches * self._replicas.count
        for step in range(first, last):
            for part in range(self._batches):
                index = step * count + part * self._replicas.count + self._replicas.rank
                yield self._order[index], index * self.settings.run.micro_batch

    def _step(self, batches: list[Rows]) -> dict[str, Tensor]:
        """One update; its numbers for the log, over all processes, left on the device."""
        settings, model, weights = self.settings, self.model, self.stepper.weights
        if settings.tuning.dropout:
            torch.manual_seed(settings.run.seed * 1_000_003 + self.stepper.step * 1009 + self._replicas.rank)
        binned = torch.zeros(2, TIME_BINS, device=model.device)
        for number, rows in enumerate(batches):
            weights.before_backward(number + 1 == len(batches))
            loss, t = losses(model.network, rows, settings.objective, model.device, model.dtype)
            (loss.mean() / len(batches)).backward()
            weights.take_gradients()
            binned += by_time(loss.detach(), t)
        self._replicas.add_up([binned])
        numbers = {"loss": binned[0].sum() / binned[1].sum(), "loss_by_time": binned}
        numbers["rate"] = torch.tensor(self.stepper.rate)
        numbers["gradient_norm"] = self.stepper()
        return numbers

    # -- Checkpoints and results ------------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._checkpoints.clear_partial()
        newest = self._checkpoints.newest()
        if newest is None:
            return
        tensors, _ = self.stepper.state()
        found, values = self._checkpoints.load(newest, tensors)
        self._check_same(values["run"], newest)
        self.stepper.restore(found, values)
        self._say(f"continuing after step {self.stepper.step}, from {newest}")

    def _check_same(self, begun: Mapping[str, Any], path: Path) -> None:
        """Refuse to continue a run with other settings or data; its length may change where no rate decays."""
        wanted = self._described()
        differing = [
            f"{part}.{name}"
            for part, values in wanted["recipe"].items()
            for name, value in values.items()
            if value != begun["recipe"].get(part, {}).get(name)
        ]
        if self.settings.optimiser.decay_share == 0 and "run.steps" in differing:
            differing.remove("run.steps")
        if not differing and wanted["data"] != begun["data"]:
            differing = ["the pictures or captions"]
        if differing:
            raise RequestError(
                f"{path} was begun with other settings ({', '.join(differing)}): continue with the same, or name "
                "another output folder."
            )

    def _described(self) -> dict[str, Any]:
        recipe = json.loads(json.dumps(self.settings.recipe()))
        return {"recipe": recipe, "data": self.data.digest()}

    def _save(self) -> None:
        tensors, values = self.stepper.state()
        self._checkpoints.save(self.stepper.step, tensors, {**values, "run": self._described()})
        if self.settings.tuning.kind != "full" and self._replicas.leads:
            with self.stepper.result():
                save_adapter(self.model, self.settings, self.stepper.step, self.output)

    def _leave_results(self) -> None:
        step = self.stepper.step
        with self.stepper.result():
            if self.settings.tuning.kind == "full":
                save_model(self.model, self.output, self._replicas.leads)
            elif self._replicas.leads:
                save_adapter(self.model, self.settings, step, self.output)
        if self._replicas.leads:
            numbers: dict[str, Any] = {"pictures": len(self.data.rows), "left out": len(self.data.flaws)}
            numbers |= {name: f"{value:.4f}" for name, value in self._validation.items()}
            pictures = self._pictures or sorted((self.output / "pictures").glob(f"step-{step:07d}-*.png"))
            write_card(self.output, self.settings, step, numbers, pictures)

    # -- Watching ---------------------------------------------------------------------------------------------------

    def _watch(self, log: "Log | None", due: bool) -> None:
        """Pictures and validation loss, when it is time for them."""
        watch, step = self.settings.watch, self.stepper.step
        pictures = watch.prompts and (due or step % watch.pictures_every == 0)
        loss = self.data.held_back and (due or step % watch.validation_every == 0)
        if not pictures and not loss:
            return
        with self.stepper.result():
            if pictures:
                drawn = draw_prompts(self.model, self.data, watch)
                if self._replicas.leads:
                    self._pictures = save_pictures(drawn, self.output / "pictures", step)
            if loss:
                value = validation_loss(self.model, self.data, self.settings.objective)
                self._validation["validation loss before" if step == 0 else "validation loss"] = value
                if log is not None:
                    log.note(step, {"validation_loss": value})
                self._say(f"step {step}: validation loss {value:.4f}")


class Log:
    """log.jsonl, and TensorBoard's events where they are wanted."""

    def __init__(self, output: Path, settings: TrainingSettings):
        self._path = output / "log.jsonl"
        self._every = settings.watch.log_every
        self._steps = settings.run.steps
        self._lines = RunLog(self._path, settings.run.batch, settings.run.steps)
        self._events = Events(output / "events") if settings.watch.tensorboard else None
        self._began = time.monotonic()

    def add(self, step: int, numbers: Mapping[str, Tensor]) -> float | None:
        """Take in a step; its loss if this step is written."""
        self._lines.add(numbers)
        if step % self._every and step != self._steps:
            return None
        self._lines.write(step)
        loss = float(numbers["loss"])
        if self._events is not None:
            scalars = {name: float(value) for name, value in numbers.items() if value.ndim == 0}
            self._events.scalars(step, scalars)
        return loss

    def note(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers of their own."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        if self._events is not None:
            self._events.scalars(step, numbers)

    def close(self) -> None:
        """Nothing more will be written."""
        if self._events is not None:
            self._events.close()


def _silent(text: str) -> None:
    """For the processes that do not lead."""
