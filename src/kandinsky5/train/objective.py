"""The flow-matching objective: what is asked of a network for one batch.

Comes in: clean latents, noise, times, a function that predicts a velocity. Goes out: one float32 loss per row, and sums
by time bin for the log. The direction of time is `kandinsky5.flow`'s business; nothing here knows of text, optimisers
or files.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from kandinsky5 import flow

TIME_BINS = 8
"""Losses are logged over this many equal intervals of t: layout is decided in the last, detail in the first."""


def draw_times(
    count: int, generator: torch.Generator, *, shift: float = flow.DEFAULT_SHIFT, uniform_share: float = 0.5
) -> Tensor:
    """`count` training times in [0, 1], float32, on the generator's device.

    A share of them is uniform, the rest logit-normal (sigmoid of N(0, 1): the authors' LoRA trainer); all are then
    moved towards the noise by `shift`, as the times of a sampling run are.
    """
    device = generator.device
    uniform = torch.rand(count, generator=generator, device=device)
    logit_normal = torch.sigmoid(torch.randn(count, generator=generator, device=device))
    is_uniform = torch.rand(count, generator=generator, device=device) < uniform_share
    return flow.shift_time(torch.where(is_uniform, uniform, logit_normal), shift)


def flow_loss(predict: Callable[[Tensor, Tensor], Tensor], image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Squared error of the predicted velocity, (B,) float32, averaged over all but the first axis.

    Args:
        predict: maps a point (B, ...) float32 and its times (B,) float32 to a velocity (B, ...) of any dtype.
        image: clean latents (B, ...) float32.
        noise: N(0, 1) of the same shape.
        t: times (B,) in [0, 1].
    """
    predicted = predict(flow.interpolate(image, noise, t), t)
    return (predicted.float() - flow.velocity(image, noise)).square().flatten(1).mean(dim=1)


def by_time(values: Tensor, t: Tensor, bins: int = TIME_BINS) -> Tensor:
    """Sums and counts of `values` (B,) by interval of `t` (B,): (2, bins) float32; bin i covers [i, i + 1) / bins."""
    index = (t * bins).long().clamp_(0, bins - 1)
    rows = torch.stack([values.float(), torch.ones_like(values, dtype=torch.float32)])
    return torch.zeros(2, bins, device=values.device).index_add_(1, index, rows)
