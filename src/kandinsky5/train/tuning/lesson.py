"""Published models learn from rows of a cache: what `kandinsky5 train` does with pictures and words of your own.

In: settings. Out: a lesson, pictures and a validation loss of how far it is, and an adapter or a model folder with its
card. It refuses to know the loop and its checkpoints.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.train.data.cache import fingerprint
from kandinsky5.train.data.order import Order
from kandinsky5.train.data.remote import check_sources
from kandinsky5.train.data.rows import RowReader, Rows
from kandinsky5.train.lesson import Lesson
from kandinsky5.train.log import VALIDATION, validation_figures
from kandinsky5.train.objective import by_time
from kandinsky5.train.preparing import count_parameters, load_model, prepare_data, prepare_network
from kandinsky5.train.rectified_flow import points_of
from kandinsky5.train.replicas import Replicas
from kandinsky5.train.results import save_adapter, save_model, write_card
from kandinsky5.train.settings import TrainingSettings
from kandinsky5.train.tuning.learning import check_targets
from kandinsky5.train.tuning.passes import Passes, why_not_replayed
from kandinsky5.train.tuning.stepper import Stepper
from kandinsky5.train.watching import draw_prompts, save_pictures, validation_loss


class TuningLesson(Lesson):
    """The velocity of stored pictures, for an adapter or every weight of the network.

    Args:
        settings: what to do.
        base: folder that paths in the settings count from.
        replicas: processes that share the rows.
        say: is told what happens.

    Raises:
        RequestError: settings that cannot be carried out, or unusable data.
        CheckpointError: files that cannot be read or written.
    """

    def __init__(
        self, settings: TrainingSettings, base: Path, replicas: Replicas, say: Callable[[str], None]
    ):
        if settings.data.drawn is not None:
            raise RequestError(
                "data.sources: drawn scenes are another lesson, demo.network_training.NetworkLesson."
            )
        check_sources(settings.data.stored, base)
        self.model = load_model(settings, say)
        self.device = self.model.device
        self._settings = settings
        self._replicas = replicas
        self._say = say
        self._output = base / settings.output
        self._pictures: list[Path] = []
        check_targets(self.model.network, settings.tuning)
        self._begins_with = fingerprint(self.model.network)
        self.data = prepare_data(self.model, settings, base, replicas, say)
        self.weights = prepare_network(self.model, settings, replicas)
        obstacle = why_not_replayed(
            self.weights, self.device, dropout=settings.tuning.dropout, compiled=settings.run.compile
        )
        replayed = settings.run.graphs and obstacle is None
        if settings.run.graphs and self.device.type == "cuda" and obstacle is not None:
            say(f"no CUDA graphs: {obstacle}")
        self._passes = Passes(self.model.network, self.weights, replayed=replayed)
        learning, everything = count_parameters(self.model.network)
        say(f"{learning / 1e6:.2f} of {everything / 1e6:.0f} million parameters learn")

    def batches(self, numbers: range) -> Iterator[Rows]:
        """Rows of the cache, some read ahead."""
        run, objective = self._settings.run, self._settings.objective
        order = Order(self.data.rows, run.micro_batch, seed=run.seed, editing_share=objective.editing_share)
        reader = RowReader(
            self.data.rows, self.data.cache, unconditional=objective.unconditional, seed=run.seed
        )
        return reader.stream((order[number], number * run.micro_batch) for number in numbers)

    def take_gradients(self, batch: Rows, number: int, parts: int) -> dict[str, Tensor]:
        """Of the mean of the rows' losses; that is told, also by time, and the tokens that it took."""
        settings, model = self._settings, self.model
        if settings.tuning.dropout:
            torch.manual_seed(settings.run.seed * 1_000_003 + number)
        points = points_of(
            batch, settings.objective, model.device, model.dtype, text_multiple=self._passes.text_multiple
        )
        loss = self._passes(points, 1 / parts)
        tokens = torch.tensor(float(self._tokens(batch)), device=model.device)
        return {"loss": loss.mean(), "loss_by_time": by_time(loss, points.t), "tokens": tokens}

    def _tokens(self, rows: Rows) -> int:
        """Visual and text tokens of a micro-batch."""
        _, height, width = self.model.network.config.patch_size
        seen = rows.mean.shape[2] // height * (rows.mean.shape[3] // width)
        return len(rows) * seen + int(rows.conditioning.mask.sum())

    def digest(self) -> dict[str, str]:
        """Of the pictures and texts, and of the model."""
        return {"the pictures or captions": self.data.digest(), "the model's weights": self._begins_with}

    def is_due(self, step: int, edge: bool) -> bool:
        """Whether pictures or the validation loss are."""
        return any(self._due(step, edge))

    def show(self, step: int, edge: bool) -> Mapping[str, float]:
        """Pictures as files, and the validation loss."""
        pictures, loss = self._due(step, edge)
        if pictures:
            drawn = draw_prompts(self.model, self.data, self._settings.watch)
            if self._replicas.leads:
                self._pictures = save_pictures(drawn, self._output / "pictures", step)
        if not loss:
            return {}
        value = validation_loss(self.model, self.data, self._settings.objective, self._replicas)
        self._say(f"step {step}: validation loss {value:.4f}")
        return {VALIDATION: value}

    def _due(self, step: int, edge: bool) -> tuple[bool, bool]:
        watch = self._settings.watch
        pictures = bool(watch.prompts) and (edge or step % watch.pictures_every == 0)
        return pictures, bool(self.data.held_back) and (edge or step % watch.validation_every == 0)

    def keep(self, stepper: Stepper) -> None:
        """The adapter as it is."""
        if self._settings.tuning.kind != "full" and self._replicas.leads:
            with stepper.result():
                save_adapter(self.model, self._settings, stepper.step, self._output)

    def finish(self, stepper: Stepper) -> None:
        """The adapter or the model's folder, and its card."""
        settings, step, output = self._settings, stepper.step, self._output
        with stepper.result():
            if settings.tuning.kind == "full":
                save_model(self.model, output, self._replicas.leads)
            elif self._replicas.leads:
                save_adapter(self.model, settings, step, output)
        if self._replicas.leads:
            numbers: dict[str, Any] = {"pictures": len(self.data.rows), "left out": len(self.data.flaws)}
            numbers |= {name: f"{value:.4f}" for name, value in validation_figures(output).items()}
            pictures = self._pictures or sorted((output / "pictures").glob(f"step-{step:07d}-*.png"))
            write_card(output, settings, step, numbers, pictures)
