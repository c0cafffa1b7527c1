"""A training run from settings to results: `kandinsky5 train`.

In: settings, the folder that their paths count from, and who is told. Out: the folder with the results. The same call
again continues a run that was stopped, bit for bit on a CPU: order, times and noise depend on seeds and step numbers
alone, the rest is in the newest checkpoint. It refuses to know the command line.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.out_of_memory import is_out_of_memory
from kandinsky5.train.checkpoints import Checkpoints
from kandinsky5.train.data.order import MicroBatch, Order
from kandinsky5.train.data.rows import RowReader, Rows
from kandinsky5.train.log import VALIDATION, Log, validation_figures
from kandinsky5.train.objective import TIME_BINS, by_time
from kandinsky5.train.packages import check_packages
from kandinsky5.train.preparing import (
    Data,
    Model,
    count_parameters,
    load_model,
    prepare_data,
    prepare_network,
)
from kandinsky5.train.rectified_flow import losses, points_of
from kandinsky5.train.replicas import Replicas, join_replicas, leave_replicas
from kandinsky5.train.results import save_adapter, save_model, write_card
from kandinsky5.train.settings import TrainingSettings
from kandinsky5.train.tuning.learning import check_targets
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
    check_packages(settings)
    replicas = join_replicas()
    try:
        check_processes(settings, replicas)
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


def check_processes(settings: TrainingSettings, replicas: Replicas) -> None:
    """Raise RequestError for a run that so many processes cannot carry out together."""
    run = settings.run
    forwards = run.batch // run.micro_batch
    if forwards % replicas.count:
        raise RequestError(
            f"run.batch = {run.batch} in parts of run.micro_batch = {run.micro_batch} gives {forwards} forward passes, "
            f"which {replicas.count} processes cannot share evenly."
        )
    if settings.tuning.kind == "full" and replicas.count % run.replicas:
        raise RequestError(
            f"{replicas.count} processes do not divide into run.replicas = {run.replicas} groups."
        )
    if settings.tuning.kind == "full" and settings.optimiser.name == "prodigy" and replicas.count > 1:
        raise RequestError(
            'optimiser.name = "prodigy" looks at all weights at once, and full tuning cuts them up over the '
            'processes: use "adamw", "adamw8bit" or "schedule-free", or one process.'
        )


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
        self._batches = settings.run.batch // settings.run.micro_batch // replicas.count
        check_targets(model.network, settings.tuning)
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
        self._finite = torch.ones((), dtype=torch.bool, device=model.device)
        self._log: Log | None = None
        self._pictures: list[Path] = []

    def carry_out(self) -> Path:
        """Continue from the newest checkpoint, if there is one, to the end; returns the output folder."""
        self._resume()
        learning, everything = count_parameters(self.model.network)
        self._say(f"{learning / 1e6:.2f} of {everything / 1e6:.0f} million parameters learn")
        if self._replicas.leads:
            self._log = Log(self.output, self.settings, self.stepper.step)
        try:
            self._go_on()
        finally:
            if self._log is not None:
                self._log.close()
        self._leave_results()
        return self.output

    def _go_on(self) -> None:
        """The remaining steps, and what is due between them."""
        run = self.settings.run
        if self.stepper.step == 0:
            self._watch(due=True)
        for rows in self._steps():
            numbers = self._step(rows)
            step = self.stepper.step
            loss = self._log.add(step, numbers) if self._log is not None else None
            if self._replicas.leads:
                self._watcher.on_step(step, run.steps, loss)
            last = step == run.steps
            if last or step % self.settings.watch.log_every == 0:
                self._refuse_nonsense(bool(self._finite))
            self._watch(due=last)
            if last or step % run.save_every == 0:
                self._save()

    # -- Steps ------------------------------------------------------------------------------------------------------

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
        tokens = torch.tensor(float(sum(self._tokens(rows) for rows in batches)), device=model.device)
        for rows in batches:
            points = points_of(rows, settings.objective, model.device, model.dtype)
            loss = losses(model.network, points)
            (loss.mean() / len(batches)).backward()
            weights.take_gradients()
            binned += by_time(loss.detach(), points.t)
        self._replicas.add_up([binned, tokens])
        numbers = {"loss": binned[0].sum() / binned[1].sum(), "loss_by_time": binned, "tokens": tokens}
        numbers["rate"] = torch.tensor(self.stepper.rate)
        numbers["gradient_norm"] = self.stepper()
        self._finite &= numbers["loss"].isfinite() & numbers["gradient_norm"].isfinite()
        return numbers

    def _tokens(self, rows: Rows) -> int:
        """Visual and text tokens of a micro-batch."""
        _, height, width = self.model.network.config.patch_size
        seen = rows.mean.shape[2] // height * (rows.mean.shape[3] // width)
        return len(rows) * seen + int(rows.conditioning.mask.sum())

    def _refuse_nonsense(self, sound: bool) -> None:
        """Stop in every process before anything is kept. Raises RequestError unless all are sound."""
        if self._replicas.all_agree(sound):
            return
        newest, settings = self._checkpoints.newest(), self.settings.optimiser
        kept = f"{newest} is from before" if newest else "no checkpoint was written"
        raise RequestError(
            f"Up to step {self.stepper.step} the loss, its gradient or the weights grew beyond all numbers, and "
            f"nothing of that is saved; {kept}. Lower optimiser.rate = {settings.rate:g} or optimiser.clip = "
            f"{settings.clip:g}, or raise optimiser.warmup = {settings.warmup}, in another output folder."
        )

    # -- Checkpoints and results ------------------------------------------------------------------------------------

    def _resume(self) -> None:
        self._checkpoints.clear_partial()
        newest = self._checkpoints.newest()
        if newest is None:
            return
        tensors, _ = self.stepper.state()
        found, values = self._checkpoints.load(newest, tensors)
        self._check_same(values["run"], newest)
        if values["step"] > self.settings.run.steps:
            raise RequestError(
                f"run.steps = {self.settings.run.steps} is less than {newest} has behind it: set at least "
                f"{values['step']}, or name another output folder."
            )
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
        """A checkpoint, and the adapter as it is, of weights that are numbers. Raises RequestError for others."""
        with self._paused():
            self._refuse_nonsense(self.stepper.sound() and bool(self._finite))
            tensors, values = self.stepper.state()
            self._checkpoints.save(self.stepper.step, tensors, {**values, "run": self._described()})
            if self.settings.tuning.kind != "full" and self._replicas.leads:
                with self.stepper.result():
                    save_adapter(self.model, self.settings, self.stepper.step, self.output)

    def _paused(self) -> AbstractContextManager[None]:
        return nullcontext() if self._log is None else self._log.paused()

    def _leave_results(self) -> None:
        step = self.stepper.step
        with self.stepper.result():
            if self.settings.tuning.kind == "full":
                save_model(self.model, self.output, self._replicas.leads)
            elif self._replicas.leads:
                save_adapter(self.model, self.settings, step, self.output)
        if self._replicas.leads:
            numbers: dict[str, Any] = {"pictures": len(self.data.rows), "left out": len(self.data.flaws)}
            numbers |= {name: f"{value:.4f}" for name, value in validation_figures(self.output).items()}
            pictures = self._pictures or sorted((self.output / "pictures").glob(f"step-{step:07d}-*.png"))
            write_card(self.output, self.settings, step, numbers, pictures)

    # -- Watching ---------------------------------------------------------------------------------------------------

    def _watch(self, due: bool) -> None:
        """Pictures and validation loss, when it is time for them."""
        watch, step = self.settings.watch, self.stepper.step
        pictures = watch.prompts and (due or step % watch.pictures_every == 0)
        loss = self.data.held_back and (due or step % watch.validation_every == 0)
        if not pictures and not loss:
            return
        with self._paused(), self.stepper.result():
            if pictures:
                drawn = draw_prompts(self.model, self.data, watch)
                if self._replicas.leads:
                    self._pictures = save_pictures(drawn, self.output / "pictures", step)
            if loss:
                value = validation_loss(self.model, self.data, self.settings.objective, self._replicas)
                if self._log is not None:
                    self._log.note(step, {VALIDATION: value})
                self._say(f"step {step}: validation loss {value:.4f}")


def _silent(text: str) -> None:
    """For the processes that do not lead."""
