"""A running average of weights, for sampling and for what is published.

Comes in: float32 tensors by name, after each update. Goes out: their exponential moving average. Nothing here knows
which parameters they are.
"""

from collections.abc import Mapping

import torch
from torch import Tensor


def warmed_decay(decay: float, updates: int) -> float:
    """The decay after `updates` updates: `min(decay, (1 + n) / (10 + n))`.

    The warm-up keeps a short run's average from remembering its random start (the rule of TensorFlow's
    `ExponentialMovingAverage`); with 0.999 it ends after about 9,000 updates, so short runs average over roughly the
    last tenth of themselves.
    """
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """`average = d average + (1 - d) value`, float32, with `d = warmed_decay(decay, updates)`."""

    def __init__(self, values: Mapping[str, Tensor], decay: float):
        if not 0 <= decay < 1:
            raise ValueError(f"A decay lies in [0, 1), got {decay}.")
        self.decay = decay
        self.updates = 0
        self.average = {name: value.detach().float().clone() for name, value in values.items()}

    @torch.no_grad()
    def update(self, values: Mapping[str, Tensor]) -> None:
        """Take in the values after one more optimiser update."""
        self.updates += 1
        weight = 1 - warmed_decay(self.decay, self.updates)
        if self.average:
            taken = [values[name].detach() for name in self.average]
            torch._foreach_lerp_(list(self.average.values()), taken, weight)
