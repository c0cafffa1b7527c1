"""What a run shows of itself: pictures from fixed noise, and the loss on rows held back.

In: a model whose network has the weights to be judged. Out: pictures as files, and numbers. It refuses to know when
this is due.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from kandinsky5.train.data.order import Pick
from kandinsky5.train.data.rows import RowReader, conditioning_of
from kandinsky5.train.preparing import Data, Model
from kandinsky5.train.rectified_flow import losses, points_of
from kandinsky5.train.replicas import Replicas
from kandinsky5.train.settings import ObjectiveSettings, WatchSettings

VALIDATION_SEED = 20_221
"""Of the times and noise of rows held back, so that one loss can be compared with the next."""


@torch.no_grad()
def draw_prompts(model: Model, data: Data, settings: WatchSettings) -> list[Image.Image]:
    """A picture of each watched prompt; picture i is drawn from seed i, whatever the step."""
    *prompts, empty = data.prompts
    pictures = []
    network = model.network
    network.eval()
    model.drawing.vae.to(model.device)
    negative = _embedded(data, empty, "negative_prompt")
    for number, key in enumerate(prompts):
        drawn: Any = model.drawing(
            **_embedded(data, key, "prompt"),
            **negative,
            num_inference_steps=settings.steps,
            guidance_scale=settings.guidance,
            generator=torch.Generator().manual_seed(number),
        )
        pictures += drawn.images
    model.drawing.vae.to("cpu")
    network.train()
    return pictures


@torch.no_grad()
def validation_loss(model: Model, data: Data, objective: ObjectiveSettings, replicas: Replicas) -> float:
    """The mean loss of the rows held back, every one with its first words, at times and noise that never change.

    Processes share the rows. Each makes as many forward passes as the others, which cut up weights need; what it
    makes beyond the rows does not count.
    """
    reader = RowReader(data.held_back, data.cache, unconditional=0.0, seed=VALIDATION_SEED)
    count = len(data.held_back)
    model.network.eval()
    total = torch.zeros((), dtype=torch.float64, device=model.device)
    for first in range(0, count, replicas.count):
        number = first + replicas.rank
        rows = reader.read((Pick(row=number % count, text=0),), number)
        points = points_of(rows, objective, model.device, model.dtype)
        loss = losses(model.network, points).double().mean()
        total += loss if number < count else 0
    model.network.train()
    replicas.add_up([total])
    return float(total) / count


def save_pictures(pictures: Sequence[Image.Image], folder: Path, step: int) -> list[Path]:
    """Write them as step-0000100-1.png and so on; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"step-{step:07d}-{number}.png" for number in range(1, len(pictures) + 1)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    return paths


def _embedded(data: Data, key: str, name: str) -> dict[str, Any]:
    """A text of the cache as the pipeline's arguments."""
    entry = data.cache.get(key)
    assert entry is not None, "encoded in this process"
    row = conditioning_of(entry)
    return {
        f"{name}_embeds_qwen": row.text,
        f"{name}_embeds_clip": row.pooled,
        f"{name.replace('prompt', 'prompt_cu_seqlens')}": row.cu_seqlens,
    }
