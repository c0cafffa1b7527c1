"""What one micro-batch is asked: times and noise of each row, the network's velocity there, the loss.

In: rows from the cache, a network, settings of the objective. Out: points on the rows' paths, and losses. A row's
chance depends on its seed alone: not on its neighbours, nor on how many processes train. It refuses to know optimisers
and files.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kandinsky5 import flow
from kandinsky5.train.data.rows import Rows
from kandinsky5.train.objective import draw_times, flow_loss
from kandinsky5.train.settings import TIME_DENSITIES, ObjectiveSettings


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """B rows of one size with their chance: where on its path each is looked at, and what leads there.

    clean, noise: (B, 1, h, w, C) float32, the ends of the path; t: (B,) float32, the time. source:
    (B, 1, h, w, C + 1) of the pictures to be edited, and one where there is one, or None; a network that takes none
    does not look at it. text: (B, L, E), mask: (B, L) bool or None, pooled: (B, P), in the dtype of the
    network's blocks.
    """

    clean: Tensor
    noise: Tensor
    t: Tensor
    source: Tensor | None
    text: Tensor
    mask: Tensor | None
    pooled: Tensor


def points_of(
    rows: Rows,
    settings: ObjectiveSettings,
    device: torch.device,
    dtype: torch.dtype,
    *,
    text_multiple: int = 1,
) -> Points:
    """The rows on the device, at times and with noise of their own.

    Args:
        rows: of one size.
        settings: of the objective.
        device: where the network is.
        dtype: that its blocks run in.
        text_multiple: of tokens, up to which texts are padded, so that few lengths occur.
    """
    drawn = [
        _chance(seed, rows.mean.shape[1:], rows.source_mean is not None, settings, device)
        for seed in rows.seeds
    ]
    t = torch.cat([one[0] for one in drawn])
    noise, sample, of_source = (torch.stack([one[i] for one in drawn]) for i in (1, 2, 3))
    source = None
    if rows.source_mean is not None and rows.source_deviation is not None:
        source = _sample(rows.source_mean, rows.source_deviation, of_source)
        source = torch.cat([source, torch.ones_like(source[..., :1])], dim=-1)
    length = rows.conditioning.text.shape[1]
    texts = rows.conditioning.pad(math.ceil(length / text_multiple) * text_multiple)
    mask = texts.padding_mask  # here on the CPU, where looking at it waits for nothing
    texts = texts.to(device, dtype)
    return Points(
        clean=_sample(rows.mean, rows.deviation, sample),
        noise=noise,
        t=t,
        source=source,
        text=texts.text,
        mask=None if mask is None else texts.mask,
        pooled=texts.pooled,
    )


def losses(network: Any, points: Points) -> Tensor:
    """Loss of each row, (B,) float32, with its graph."""
    return flow_loss(partial(_velocity, network, points), points.clean, points.noise, points.t)


def _velocity(network: Any, points: Points, x: Tensor, t: Tensor) -> Tensor:
    """The network at x (B, 1, h, w, C) and times (B,). Without a source it sees zeros, if it takes one."""
    height, width = x.shape[2:4]
    _, rows, columns = network.config.patch_size
    shown = x
    if network.config.visual_cond:
        none = x.new_zeros(*x.shape[:-1], x.shape[-1] + 1)
        shown = torch.cat([x, none if points.source is None else points.source], dim=-1)
    velocity: Tensor = network(
        hidden_states=shown,
        encoder_hidden_states=points.text,
        timestep=flow.MODEL_TIME_SCALE * t,
        pooled_projections=points.pooled,
        visual_rope_pos=[torch.arange(n, device=x.device) for n in (1, height // rows, width // columns)],
        text_rope_pos=torch.arange(points.text.shape[1], device=x.device),
        encoder_attention_mask=points.mask,
        return_dict=False,
    )[0]
    return velocity


def _chance(
    seed: int, shape: torch.Size, edit: bool, settings: ObjectiveSettings, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A row's time (1,), and the noise of its path, of its latents' sample and of its source's (1, h, w, C)."""
    generator = torch.Generator(device).manual_seed(seed)
    t = draw_times(1, generator, shift=settings.shift, uniform_share=TIME_DENSITIES[settings.times])
    noise, sample = (torch.randn(shape, generator=generator, device=device) for _ in range(2))
    return t, noise, sample, torch.randn(shape, generator=generator, device=device) if edit else sample


def _sample(mean: Tensor, deviation: Tensor, noise: Tensor) -> Tensor:
    return mean.to(noise.device, torch.float32) + deviation.to(noise.device, torch.float32) * noise
