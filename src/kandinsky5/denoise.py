"""Stage: noise and a prompt to latents, by following the network's velocity from t = 1 to t = 0.

Comes in: a `Run` (latents, prompts, guidance), the network, a scheduler whose times are set. Goes out: latents. What a
caller may change while it runs is in `Run` and is read at every step. Several runs of one size can share a forward pass
(`RunGroup`), each at its own time. The stage refuses to know pipelines, encoders, pixels, and how often it is asked.

Shapes: B images, h and w latent rows and columns, C latent channels.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, Final

import torch
from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.out_of_memory import is_out_of_memory
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
    batched_guidance: evaluate both branches in one forward pass; cleared when memory, or a network that cannot be told
        of padding, does not allow it.
    """

    latents: Tensor
    positive: Conditioning
    negative: Conditioning | None
    guidance: float
    stop: bool = False
    source: Tensor | None = None
    batched_guidance: bool = True
    _both: tuple[Conditioning, Conditioning, Conditioning] | None = None

    @property
    def guided(self) -> bool:
        """Whether there are two branches."""
        return self.guidance > 1 and self.negative is not None

    @property
    def network_input(self) -> Tensor:
        """(B, 1, h, w, C or 2 C + 1) float32: the latents, with source and mask where there are any."""
        latents = self.latents.to(torch.float32)
        return latents if self.source is None else torch.cat([latents, self.source.to(latents)], dim=-1)

    def rows(self) -> "list[Run]":
        """A run for each image, which no longer waits for the others. Each of them owns its latents."""
        return [
            replace(
                self,
                latents=self.latents[i : i + 1].clone(),
                positive=self.positive.rows(i, i + 1),
                negative=None if self.negative is None else self.negative.rows(i, i + 1),
                source=None if self.source is None else self.source[i : i + 1],
                _both=None,
            )
            for i in range(len(self.latents))
        ]

    def both_branches(self) -> Conditioning:
        """Negative rows above positive rows; put together again only when a callback has replaced one of them."""
        assert self.negative is not None
        if self._both is None or self._both[0] is not self.negative or self._both[1] is not self.positive:
            self._both = self.negative, self.positive, Conditioning.stack([self.negative, self.positive])
        return self._both[2]


OnStep = Callable[[int, Tensor, Run], None]

FLOW_PREDICTION: Final = "flow_prediction"
"""What a scheduler that serves several kinds of networks calls a velocity."""


def predicts(scheduler: Any) -> str:
    """What a scheduler takes the network's output for; one that does not say is made for velocities alone."""
    return str(getattr(getattr(scheduler, "config", None), "prediction_type", FLOW_PREDICTION))


def set_times(scheduler: Any, steps: int, device: torch.device | str) -> Tensor:
    """Put the authors' times into a scheduler and return its timesteps (1000 t, float32).

    u runs from 1 to 1 / steps in equal steps, and the scheduler shifts it; its own default spacing would shift the
    smallest time twice. A scheduler that takes no `sigmas` uses its own times.
    """
    if "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
        # An array: some schedulers compute with what they are given, which a list cannot do.
        u = torch.linspace(1, 1 / steps, steps, dtype=torch.float64).numpy()
        scheduler.set_timesteps(sigmas=u, device=device)
    else:
        scheduler.set_timesteps(steps, device=device)
    if hasattr(scheduler, "set_begin_index"):
        # It would look for the first timestep; where times are rounded, many steps begin with the same one twice, and
        # diffusers' schedulers then take the second.
        scheduler.set_begin_index(0)
    return scheduler.timesteps


@torch.no_grad()
def denoise(run: Run, *, transformer: Any, scheduler: Any, on_step: OnStep | None = None) -> Tensor:
    """Take every step of the scheduler.

    Args:
        run: where it starts; afterwards, where it ended.
        transformer: the network, called at its root. Where its `takes_text_mask` is False, no pass has padded text.
        scheduler: its times set by `set_times`.
        on_step: called after each step with its index, its timestep and the run.

    Returns:
        (B, 1, h, w, C) float32 latents; those of the last step taken if the run was stopped.

    Raises:
        RequestError: prompts of different lengths, and a network that cannot be told of padding.
    """
    positions = _positions(run.latents, transformer.config.patch_size)
    with _expected(transformer, scheduler.timesteps):
        for i, timestep in enumerate(scheduler.timesteps):
            if run.stop:
                break
            velocity = _guided_velocity(run, transformer, timestep, positions)
            run.latents = scheduler.step(velocity, timestep, run.latents, return_dict=False)[0]
            if on_step is not None:
                on_step(i, timestep, run)
    return run.latents


def expect(transformer: Any, times: Tensor) -> None:
    """Tell a network that can prepare for it which times it will see next; none when it will see them no more.

    Times (1000 t) of all rows are (S,), those of each row (S, B).
    """
    prepare = getattr(transformer, "expect_times", None)  # another's network of the same signature has none
    if prepare is not None:
        prepare(times)


@contextmanager
def _expected(transformer: Any, times: Tensor) -> Iterator[None]:
    """Expect these times inside, and none afterwards."""
    expect(transformer, times)
    try:
        yield
    finally:
        expect(transformer, times[:0])


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Runs of one size that take a step together; times, prompts, guidance and number of steps are each run's own.

    A run's velocity does not depend on the others: text is padded behind a mask, and nothing else crosses rows.
    """

    runs: Sequence[Run]

    @cached_property
    def _conditioning(self) -> Conditioning:
        """The negative rows of the runs that are guided, above the positive rows of all."""
        negatives = [run.negative for run in self.runs if run.guided and run.negative is not None]
        return Conditioning.stack([*negatives, *(run.positive for run in self.runs)])

    @property
    def _branches(self) -> list[int]:
        """Which run each part of a pass is of: those that are guided, for their negative rows, then all."""
        return [*(i for i, run in enumerate(self.runs) if run.guided), *range(len(self.runs))]

    def times(self, schedules: Sequence[Tensor]) -> Tensor:
        """What to expect (`expect`) while all of the runs are on their way.

        Args:
            schedules: the timesteps (1000 t) that each run has before it, (S,), of whatever length.

        Returns:
            (S,) of a run alone; of several (S, rows of a pass), as long as the shortest.
        """
        if len(self.runs) == 1:
            return schedules[0]
        together = min(map(len, schedules))
        columns = [
            schedules[i][:together, None].expand(-1, len(self.runs[i].latents)) for i in self._branches
        ]
        return torch.cat(columns, dim=1)

    @torch.no_grad()
    def velocities(
        self, timesteps: Sequence[Tensor], *, transformer: Any, row_times: Tensor | None = None
    ) -> list[Tensor]:
        """The (B, 1, h, w, C) float32 velocity of each run at its own timestep (1000 t), from one forward pass.

        A run alone is evaluated as by `denoise`, in two passes where one does not fit; so is each in turn where the
        network cannot be told of the padding between them. Raises what the device raises when the pass of several does
        not fit.

        Args:
            timesteps: of each run.
            transformer: the network.
            row_times: the same for each row of a pass of several, where they are a row of `times`.
        """
        positions = _positions(self.runs[0].latents, transformer.config.patch_size)
        if len(self.runs) == 1 or not _can_pass(transformer, self._conditioning):
            each = zip(self.runs, timesteps, strict=True)
            return [_guided_velocity(run, transformer, time, positions) for run, time in each]
        branches = [self.runs[i] for i in self._branches]
        if row_times is None:
            (row_times,) = self.times([time.reshape(1) for time in timesteps])
        rows = torch.cat([run.network_input for run in branches])
        found = _velocity(transformer, rows, row_times, self._conditioning, positions)
        parts = list(found.split([len(run.latents) for run in branches]))
        negatives = iter(parts[: len(branches) - len(self.runs)])
        positives = parts[len(branches) - len(self.runs) :]
        return [
            positive if not run.guided else _guided(next(negatives), positive, run.guidance)
            for run, positive in zip(self.runs, positives, strict=True)
        ]


def _guided(negative: Tensor, positive: Tensor, guidance: float) -> Tensor:
    return negative + guidance * (positive - negative)


def _guided_velocity(run: Run, transformer: Any, timestep: Tensor, positions: list[Tensor]) -> Tensor:
    """(B, 1, h, w, C) float32 velocity at the run's latents."""
    latents = run.network_input
    _check_padding(transformer, run)
    if not run.guided:
        return _velocity(transformer, latents, timestep, run.positive, positions)
    negative, positive = _both_velocities(run, transformer, latents, timestep, positions)
    return _guided(negative, positive, run.guidance)


def _both_velocities(
    run: Run, transformer: Any, latents: Tensor, timestep: Tensor, positions: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Velocities of the negative and the positive prompts, in one forward pass if it fits, else in two."""
    assert run.negative is not None
    if run.batched_guidance and not _can_pass(transformer, run.both_branches()):
        logger.info("The attention back end takes no mask; running the guidance branches in turn.")
        run.batched_guidance = False
    if run.batched_guidance:
        try:
            rows = torch.cat([latents, latents])
            negative, positive = _velocity(transformer, rows, timestep, run.both_branches(), positions).chunk(
                2
            )
            return negative, positive
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            logger.warning("No memory for both guidance branches in one forward pass; running them in turn.")
            run.batched_guidance = False
        # Outside the handler, where the failed pass's tensors are still referenced.
        _empty_cache(latents.device)
    return (
        _velocity(transformer, latents, timestep, run.negative, positions),
        _velocity(transformer, latents, timestep, run.positive, positions),
    )


def _empty_cache(device: torch.device) -> None:
    """Give the device what its allocator keeps without using it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _check_padding(transformer: Any, run: Run) -> None:
    """Refuse a branch whose own rows need padding that the network cannot be told of."""
    branches = [run.positive] if run.negative is None or not run.guided else [run.negative, run.positive]
    if not all(_can_pass(transformer, branch) for branch in branches):
        raise RequestError(
            "These prompts differ in length, and the attention back end that set_attention_backend() chose cannot be "
            'told of the padding between them. Draw them in calls of their own, or choose one that can: "native", or '
            '"flash_varlen" where flash-attn is installed.'
        )


def _can_pass(transformer: Any, conditioning: Conditioning) -> bool:
    """Whether these rows can go through the network together: none is padded, or it can be told of padding."""
    return conditioning.padding_mask is None or getattr(transformer, "takes_text_mask", True)


def _velocity(
    transformer: Any, latents: Tensor, timestep: Tensor, conditioning: Conditioning, positions: list[Tensor]
) -> Tensor:
    return transformer(
        hidden_states=latents,
        encoder_hidden_states=conditioning.text,
        timestep=timestep.expand(len(latents)),
        pooled_projections=conditioning.pooled,
        visual_rope_pos=positions,
        text_rope_pos=_text_positions(conditioning.text.shape[1], latents.device),
        encoder_attention_mask=conditioning.padding_mask,
        return_dict=False,
    )[0].to(torch.float32)


@lru_cache(maxsize=16)
def _text_positions(length: int, device: torch.device) -> Tensor:
    """0, 1, ... of the text tokens: the same tensor for every step, so that a network can tell without comparing."""
    return torch.arange(length, device=device)


def _positions(latents: Tensor, patch_size: tuple[int, int, int]) -> list[Tensor]:
    """Patch positions an axis."""
    return [
        torch.arange(size // patch, device=latents.device)
        for size, patch in zip(latents.shape[1:4], patch_size, strict=True)
    ]
