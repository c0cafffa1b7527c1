"""Stage: noise and a prompt to latents, by following the network's velocity from t = 1 to t = 0.

Comes in: a `Run` (latents, prompts, guidance), the network, a scheduler whose times are set. Goes out: latents. What a
caller may change while it runs is in `Run` and is read at every step. The stage refuses to know pipelines, encoders,
pixels, and how often it is asked.

Shapes: B images, h and w latent rows and columns, C latent channels.
"""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kandinsky5.records import Conditioning

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """What a step works on. A step callback may replace any of it; the next step uses what it finds here.

    latents: (B, 1, h, w, C) float32.
    positive: B rows, what the images should show.
    negative: B rows to be guided away from, or None.
    guidance: v = v_negative + guidance (v_positive - v_negative); at 1 or below there is no negative branch.
    stop: set it to end after the current step.
    source: (B, 1, h, w, C + 1) source latents and mask of an editing checkpoint, or None.
    batched_guidance: evaluate both branches in one forward pass; cleared when memory does not allow it.
    """

    latents: Tensor
    positive: Conditioning
    negative: Conditioning | None
    guidance: float
    stop: bool = False
    source: Tensor | None = None
    batched_guidance: bool = True
    _both: tuple[Conditioning, Conditioning, Conditioning] | None = None

    def both_branches(self) -> Conditioning:
        """Negative rows above positive rows; put together again only when a callback has replaced one of them."""
        assert self.negative is not None
        if self._both is None or self._both[0] is not self.negative or self._both[1] is not self.positive:
            self._both = self.negative, self.positive, Conditioning.stack([self.negative, self.positive])
        return self._both[2]


OnStep = Callable[[int, Tensor, Run], None]


def set_times(scheduler: Any, steps: int, device: torch.device | str) -> Tensor:
    """Put the authors' times into a scheduler and return its timesteps (1000 t, float32).

    u runs from 1 to 1 / steps in equal steps, and the scheduler shifts it; its own default spacing would shift the
    smallest time twice. A scheduler that takes no `sigmas` uses its own times.
    """
    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        u = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).tolist()
        scheduler.set_timesteps(sigmas=u, device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    return scheduler.timesteps


@torch.no_grad()
def denoise(run: Run, *, transformer: Any, scheduler: Any, on_step: OnStep | None = None) -> Tensor:
    """Take every step of the scheduler.

    Args:
        run: where it starts; afterwards, where it ended.
        transformer: the network, called at its root.
        scheduler: its times set by `set_times`.
        on_step: called after each step with its index, its timestep and the run.

    Returns:
        (B, 1, h, w, C) float32 latents; those of the last step taken if the run was stopped.
    """
    positions = _positions(run.latents, transformer.config.patch_size)
    for i, timestep in enumerate(scheduler.timesteps):
        if run.stop:
            break
        velocity = _guided_velocity(run, transformer, timestep, positions)
        run.latents = scheduler.step(velocity, timestep, run.latents, return_dict=False)[0]
        if on_step is not None:
            on_step(i, timestep, run)
    return run.latents


def _guided_velocity(run: Run, transformer: Any, timestep: Tensor, positions: list[Tensor]) -> Tensor:
    """(B, 1, h, w, C) float32 velocity at the run's latents."""
    latents = run.latents.to(torch.float32)
    if run.source is not None:
        latents = torch.cat([latents, run.source.to(latents)], dim=-1)
    if run.guidance <= 1 or run.negative is None:
        return _velocity(transformer, latents, timestep, run.positive, positions)
    negative, positive = _both_velocities(run, transformer, latents, timestep, positions)
    return negative + run.guidance * (positive - negative)


def _both_velocities(
    run: Run, transformer: Any, latents: Tensor, timestep: Tensor, positions: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Velocities of the negative and the positive prompts, in one forward pass if it fits, else in two."""
    assert run.negative is not None
    if run.batched_guidance:
        try:
            rows = torch.cat([latents, latents])
            negative, positive = _velocity(transformer, rows, timestep, run.both_branches(), positions).chunk(
                2
            )
            return negative, positive
        except torch.OutOfMemoryError:
            logger.warning("No memory for both guidance branches in one forward pass; running them in turn.")
            run.batched_guidance = False
        torch.cuda.empty_cache()  # outside the handler, where the failed pass's tensors are still referenced
    return (
        _velocity(transformer, latents, timestep, run.negative, positions),
        _velocity(transformer, latents, timestep, run.positive, positions),
    )


def _velocity(
    transformer: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning, positions: list[Tensor]
) -> Tensor:
    return transformer(
        hidden_states=latents,
        encoder_hidden_states=conditioning.text,
        timestep=timestep.expand(len(latents)),
        pooled_projections=conditioning.pooled,
        visual_rope_pos=positions,
        text_rope_pos=torch.arange(conditioning.text.shape[1], device=latents.device),
        encoder_attention_mask=conditioning.padding_mask,
        return_dict=False,
    )[0].to(torch.float32)


def _positions(latents: Tensor, patch_size: tuple[int, int, int]) -> list[Tensor]:
    """Patch positions an axis."""
    return [
        torch.arange(size // patch, device=latents.device)
        for size, patch in zip(latents.shape[1:4], patch_size, strict=True)
    ]
