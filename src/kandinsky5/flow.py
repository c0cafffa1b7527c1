"""The one place that knows which way time runs.

Rectified flow between an image at t = 0 and noise at t = 1: `x_t = (1 - t) x_0 + t noise`, and the network predicts
`dx/dt = noise - x_0` (Kandinsky 5.0 technical report, arXiv 2511.14993, section 5). Comes in: images or latents, noise,
times in [0, 1]. Goes out: points on the path, the target, the times of a sampling run. Nothing here knows of networks,
guidance, pixels or schedulers.
"""

import torch
from torch import Tensor

MODEL_TIME_SCALE = 1000.0
"""The network is fed `1000 t`, in float32 (authors' repository, `models/dit.py`)."""

DEFAULT_SHIFT = 3.0
"""`scheduler_scale` of the authors' image pipelines: more steps near the noise."""


def shift_time(u: Tensor, shift: float = DEFAULT_SHIFT) -> Tensor:
    """Move times `u` in [0, 1] towards the noise: `shift u / (1 + (shift - 1) u)`; 0 and 1 stay where they are."""
    return shift * u / (1 + (shift - 1) * u)


def times(steps: int, shift: float = DEFAULT_SHIFT) -> Tensor:
    """The `steps + 1` times of a sampling run, from 1 (noise) down to 0 (image), float32, on the CPU."""
    if steps < 1:
        raise ValueError(f"A run needs at least one step, got {steps}.")
    return shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).to(torch.float32)


def interpolate(image: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The point at time `t` (B,) on the straight path from `image` to `noise`, both (B, ...)."""
    t = _per_row(t, image)
    return (1 - t) * image + t * noise


def velocity(image: Tensor, noise: Tensor) -> Tensor:
    """What the network is trained to predict: the derivative of `interpolate` in t."""
    return noise - image


def step(x: Tensor, predicted_velocity: Tensor, t: float | Tensor, t_next: float | Tensor) -> Tensor:
    """One Euler step from time `t` to `t_next`; exact where the true path is straight."""
    return x + (t_next - t) * predicted_velocity


def _per_row(t: Tensor, like: Tensor) -> Tensor:
    return t.reshape(-1, *[1] * (like.ndim - 1)).to(like)
