"""Forward and backward passes of an adapter's training, replayed as CUDA graphs: no launch waits for Python.

Comes in: points, weights. Goes out: losses, and gradients that the weights have taken. At 1024 x 1024 a pass of the
published network launches some ten thousand kernels, and a GPU is through with them long before Python has named them.
Refuses to know: rows, optimisers, who decides.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kandinsky5.model.graph import CapturedCall, Replays
from kandinsky5.train.rectified_flow import Points, losses
from kandinsky5.train.tuning.holders import ReplicatedWeights, Weights

TEXT_MULTIPLE: Final = 64
"""Tokens up to which texts are padded where passes are replayed: a graph has one length."""

KEPT: Final = 32
"""Shapes of micro-batches that are replayed without a new capture: sizes times lengths of texts. Graphs compute in the
same memory, so another one costs its list of kernels, by estimate 20 MB."""

NAMES: Final = tuple(field.name for field in fields(Points))

Capture = Callable[[Callable[..., Tensor], Sequence[Tensor | None], Any], Callable[..., Tensor]]


class Passes:
    """Maps points and a share to losses (B,), detached; the share of their mean's gradient goes to the weights.

    Args:
        network: a `Kandinsky5Transformer3DModel`.
        weights: that learn.
        replayed: whether passes of a shape that comes a third time are captured.
        capture: (function, inputs, pool) -> the captured call.
    """

    def __init__(
        self,
        network: Any,
        weights: Weights,
        *,
        replayed: bool,
        capture: Capture = CapturedCall,
    ):
        self._network = network
        self._weights = weights
        self._capture = capture
        self._replays = Replays(insisted=False, kept=KEPT, capture=self._captured) if replayed else None

    @property
    def text_multiple(self) -> int:
        """Of tokens, to which the texts of points should be padded."""
        return 1 if self._replays is None else TEXT_MULTIPLE

    def __call__(self, points: Points, share: float) -> Tensor:
        """See the class."""
        inputs = [getattr(points, name) for name in NAMES]
        call: Callable[..., Tensor] = partial(self._pass, share)
        if self._replays is not None:
            call = self._replays.of(call, inputs, share)
        return call(*inputs)

    def _pass(self, share: float, *inputs: Any) -> Tensor:
        loss = losses(self._network, Points(**dict(zip(NAMES, inputs, strict=True))))
        (loss.mean() * share).backward()
        self._weights.take_gradients()
        return loss.detach()

    def _captured(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor | None], pool: Any
    ) -> Callable[..., Tensor]:
        """As `capture`, which leaves nothing half done behind where it fails: passes go on plainly.

        Also where memory ended, since a graph needs more of it than the plain passes that went before.
        """
        try:
            return self._capture(function, inputs, pool)
        except RuntimeError as error:
            self._network.zero_grad(set_to_none=True)
            raise RuntimeError(str(error)) from error


def recomputed(block: nn.Module, *inputs: Any) -> Any:
    """A block whose activations are computed again in the backward pass; for blocks that draw no random numbers.

    Keeping the state of a device's random numbers, as diffusers' own way does, is what no graph can hold.
    """
    return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)


def why_not_replayed(weights: Weights, device: torch.device, *, dropout: float, compiled: bool) -> str | None:
    """Why passes are not replayed, in words; None where they are."""
    if device.type != "cuda":
        return f"CUDA graphs need a CUDA device, not {device.type}"
    if not isinstance(weights, ReplicatedWeights):
        return "weights that are gathered from several pieces move"
    if dropout:
        return "dropout draws random numbers between the passes"
    if compiled:
        return "blocks are compiled"
    return None
