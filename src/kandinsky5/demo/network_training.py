"""Teaches the embedded model's network, both text encoders and the vision tower, to draw and to edit at once.

Comes in: settings whose source is drawn (`embedded.toml` beside this file). Goes out: a lesson of `kandinsky5.train`,
which leaves a folder in the published layout. It does not know the loss, nor optimisers and checkpoints.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from kandinsky5.demo.architecture import cast_parameters
from kandinsky5.demo.caption_reading import take_reading
from kandinsky5.demo.export import publish
from kandinsky5.demo.joint_batches import JointBatch, JointBatches
from kandinsky5.demo.network_loss import NetworkLoss, scenes_of, task_tokens
from kandinsky5.demo.running import Running
from kandinsky5.demo.scene_batches import batches_from
from kandinsky5.demo.tokenizers import load_tokenizers
from kandinsky5.demo.trained_modules import architecture_of, build_modules
from kandinsky5.demo.warm_start import digest, take_weights
from kandinsky5.errors import RequestError
from kandinsky5.train.lesson import PlainLesson
from kandinsky5.train.preparing import place_of
from kandinsky5.train.replicas import Replicas
from kandinsky5.train.settings import TrainingSettings
from kandinsky5.train.tuning.stepper import Stepper
from kandinsky5.variants import resolve_model

RECIPE: Final = Path(__file__).with_name("embedded.toml")
"""Of the embedded model."""

MODEL_FOLDER: Final = "model"


class NetworkLesson(PlainLesson):
    """Endless scenes, drawn inside the step, of which each process has its own.

    Args:
        settings: what to do. `model.name` brings tokenizers and autoencoder.
        base: folder that paths in the settings count from.
        replicas: processes that share the rows.
        say: is told what happens.

    Raises:
        RequestError: a batch that does not divide, a model that is no folder or has more tokens, another source.
        CheckpointError: weights to begin from that do not fit, or cannot be read.
    """

    def __init__(
        self, settings: TrainingSettings, base: Path, replicas: Replicas, say: Callable[[str], None]
    ):
        drawn = settings.data.drawn
        if drawn is None:
            raise RequestError('data.sources: this lesson learns from a source of kind "drawn".')
        scenes = scenes_of(settings)
        self._settings = settings
        self._leads = replicas.leads
        self._output = base / settings.output
        self._parts = _folder_of(settings.model.name)
        self._running = _running(settings)
        self.device = self._running.device
        qwen, clip = load_tokenizers(self._parts)
        size = architecture_of(settings.recipe())
        words = max(len(qwen), len(clip))
        if words > size.vocabulary:
            raise RequestError(
                f"data.sources.architecture = {drawn.architecture!r} has room for {size.vocabulary} tokens, and the "
                f'tokenizers of {settings.model.name!r} have {words}: use "embedded", or tokenizers of that size.'
            )
        self.modules = build_modules(size, settings.run.seed, qwen, clip)
        self._begun = {"tokenizers or autoencoder": digest(self._parts / "vae", self._parts / "tokenizer")}
        if drawn.begin_from:
            folder = _folder_of(drawn.begin_from)
            take_weights(folder, self.modules)
            self._begun["data.sources.begin_from"] = digest(folder)
        if drawn.reading:
            take_reading(base / drawn.reading, self.modules.parameters())
            self._begun["data.sources.reading"] = digest(base / drawn.reading)
        for module in self.modules.all():
            module.to(self.device).train()
            cast_parameters(module, self._running.dtype)
        if settings.run.checkpointing:
            self.modules.network.enable_gradient_checkpointing()
        self.weights = self.modules.weights(settings.optimiser.name, replicas)
        say(
            f"{sum(p.numel() for p in self.modules.parameters().values()) / 1e6:.2f} million parameters learn"
        )
        tokens = task_tokens(size, qwen, clip)
        autoencoder = AutoencoderKL.from_pretrained(self._parts / "vae", dtype=torch.bfloat16)
        self._loss = NetworkLoss(self.modules, autoencoder, tokens, settings, self._running)
        self._batches = JointBatches(
            tokens, scenes, seed=settings.run.seed, unconditional=settings.objective.unconditional
        )

    def batches(self, numbers: range) -> Iterable[JointBatch]:
        """Scenes and token rows, made by worker processes."""
        return batches_from(self._batches, numbers, self._running.workers, pin=self._running.pins)

    def loss(self, batch: JointBatch, number: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """See `NetworkLoss`."""
        return self._loss(batch, number)

    def digest(self) -> Mapping[str, str]:
        """Of what it begins with; the scenes are the seed's."""
        return self._begun

    def finish(self, stepper: Stepper) -> None:
        """The folder of the model."""
        if self._leads:
            with stepper.result():
                publish(self.modules, self._parts, self._output / MODEL_FOLDER)


def _folder_of(model: str) -> Path:
    """Where the files of a model of the drawn world are. Raises RequestError for one that is in no folder here."""
    folder = resolve_model(model).folder
    if folder is None:
        raise RequestError(
            f'{model!r} is no folder, and drawn scenes are learnt from one, or from "embedded".'
        )
    return folder


def _running(settings: TrainingSettings) -> Running:
    """How these settings are carried out."""
    drawn = settings.data.drawn
    assert drawn is not None
    device, dtype = place_of(settings)
    compiled = {*drawn.compiled, *(["network"] if settings.run.compile else [])}
    return Running(device=device, dtype=dtype, workers=drawn.workers, compiled=frozenset(compiled))
