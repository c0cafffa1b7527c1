"""Many pictures from one pipeline: of prompts, or of source pictures and instructions.

Comes in: a loaded pipeline of either task, texts, settings. Goes out: pictures as bytes, each from noise of its own, so
that how many are drawn at once changes nothing but speed. It knows nothing of scenes and scores.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline

Picture = NDArray[np.uint8]
"""(S, S, 3)."""

Pipeline = Kandinsky5T2IPipeline | Kandinsky5I2IPipeline
_P = TypeVar("_P", Kandinsky5T2IPipeline, Kandinsky5I2IPipeline)

OnStep = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all)."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How pictures are drawn. None is the checkpoint's own; `batch` pictures at once."""

    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    batch: int = 16

    def seed_of(self, index: int) -> int:
        """The seed of picture `index` of a set."""
        return self.seed * 1_000_003 + index


def for_task(pipeline: Pipeline, kind: type[_P]) -> _P:
    """The same components as a pipeline of another task. Raises RequestError where the network cannot do that task."""
    if isinstance(pipeline, kind):
        return pipeline
    settings = {name: pipeline.config[name] for name in ("default_steps", "default_guidance", "template")}
    other = kind(**pipeline.components, **settings)
    other.set_progress_bar_config(disable=True)
    return other


def can_edit(pipeline: Pipeline) -> bool:
    """Whether the network takes a source picture."""
    return bool(pipeline.transformer.config.visual_cond)


def side_of(pipeline: Pipeline) -> int:
    """The side of the square pictures that are drawn: the checkpoint's smaller one."""
    return min(pipeline.default_size)


def draw_prompts(
    pipeline: Pipeline, prompts: Sequence[str], sampling: Sampling, on_step: OnStep | None = None
) -> Iterator[Picture]:
    """A picture of each prompt. Picture i depends on its prompt, i and the settings alone."""
    drawing, side = for_task(pipeline, Kandinsky5T2IPipeline), side_of(pipeline)
    for first in range(0, len(prompts), sampling.batch):
        chunk = list(prompts[first : first + sampling.batch])
        (drawn,) = drawing(
            chunk, height=side, width=side, **_settings(sampling, first, len(chunk), len(prompts), on_step)
        )
        yield from as_bytes(drawn)


def draw_edits(
    pipeline: Pipeline,
    sources: Sequence[Picture],
    instructions: Sequence[str],
    sampling: Sampling,
    on_step: OnStep | None = None,
) -> Iterator[Picture]:
    """An edit of each source, likewise. Raises RequestError for a network that does not take a source."""
    drawing, side = for_task(pipeline, Kandinsky5I2IPipeline), side_of(pipeline)
    for first in range(0, len(sources), sampling.batch):
        chunk = list(instructions[first : first + sampling.batch])
        images = [Image.fromarray(source) for source in sources[first : first + sampling.batch]]
        (drawn,) = drawing(
            images,
            chunk,
            height=side,
            width=side,
            **_settings(sampling, first, len(chunk), len(sources), on_step),
        )
        yield from as_bytes(drawn)


def as_bytes(pictures: Tensor) -> Picture:
    """Pictures (B, 3, S, S) in [0, 1] as uint8 (B, S, S, 3)."""
    return (pictures.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def _settings(
    sampling: Sampling, first: int, count: int, total: int, on_step: OnStep | None
) -> dict[str, Any]:
    """What both pipelines take for `count` of `total` pictures, beginning with picture `first`."""
    batches = -(-total // sampling.batch)

    def after_step(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if on_step is not None:
            steps = pipe.num_timesteps
            on_step(first // sampling.batch * steps + index + 1, batches * steps)
        return tensors

    return {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance,
        "generator": [
            torch.Generator("cpu").manual_seed(sampling.seed_of(first + row)) for row in range(count)
        ],
        "callback_on_step_end": after_step,
        "output_type": "pt",
        "return_dict": False,
    }
