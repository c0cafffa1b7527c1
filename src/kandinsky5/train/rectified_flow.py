"""The gradient of one micro-batch: times and noise of each row, the network's velocity, the loss.

In: rows from the cache, a network, settings of the objective. Out: losses with their times, having left gradients in
the network's parameters. A row's chance depends on its seed alone: not on its neighbours, nor on how many processes
train. It refuses to know optimisers and files.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kandinsky5 import flow
from kandinsky5.records import Conditioning
from kandinsky5.train.data.rows import Rows
from kandinsky5.train.objective import draw_times, flow_loss
from kandinsky5.train.settings import TIME_DENSITIES, ObjectiveSettings


def losses(
    network: Any, rows: Rows, settings: ObjectiveSettings, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Loss and time of each row, (B,) float32.

    Args:
        network: a `Kandinsky5Transformer3DModel`.
        rows: of one size.
        settings: of the objective.
        device: where the network is.
        dtype: that its blocks run in.
    """
    drawn = [
        _chance(seed, rows.mean.shape[1:], rows.source_mean is not None, settings, device)
        for seed in rows.seeds
    ]
    t = torch.cat([one[0] for one in drawn])
    noise, sample, of_source = (torch.stack([one[i] for one in drawn]) for i in (1, 2, 3))
    clean = _sample(rows.mean, rows.deviation, sample)
    source = None
    if rows.source_mean is not None and rows.source_deviation is not None:
        source = _sample(rows.source_mean, rows.source_deviation, of_source)
    predict = velocity_of(network, rows.conditioning.to(device, dtype), source)
    return flow_loss(predict, clean, noise, t), t


def velocity_of(
    network: Any, conditioning: Conditioning, source: Tensor | None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network as a function of points (B, 1, h, w, C) and times (B,). Without a source it sees zeros, if any.

    Args:
        network: a `Kandinsky5Transformer3DModel`.
        conditioning: B rows, where the network is.
        source: (B, 1, h, w, C) latents of the pictures to be edited, or None.
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        height, width = x.shape[2:4]
        _, rows, columns = network.config.patch_size
        shown = x
        if network.config.visual_cond:
            mask = x.new_full((*x.shape[:-1], 1), float(source is not None))
            shown = torch.cat([x, torch.zeros_like(x) if source is None else source, mask], dim=-1)
        return network(
            hidden_states=shown,
            encoder_hidden_states=conditioning.text,
            timestep=flow.MODEL_TIME_SCALE * t,
            pooled_projections=conditioning.pooled,
            visual_rope_pos=[torch.arange(n, device=x.device) for n in (1, height // rows, width // columns)],
            text_rope_pos=torch.arange(conditioning.text.shape[1], device=x.device),
            encoder_attention_mask=conditioning.padding_mask,
            return_dict=False,
        )[0]

    return predict


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
