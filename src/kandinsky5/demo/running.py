"""How a training is carried out, as opposed to what it computes: device, dtype, workers, compilation; who is told."""

import logging
import os
from dataclasses import dataclass

import torch

from kandinsky5.train.settings import COMPILED_PARTS

logger = logging.getLogger(__name__)

COMPILED = ("network", *COMPILED_PARTS)

CONVOLUTIONS = {"force_layout_optimization": True}
"""Compiler options of the autoencoder: channels last. Left alone, the compiler keeps channels first as soon as one
convolution doubles its channels, and cuDNN then turns every picture round and back."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """`dtype` is what modules compute in, their masters are float32; `compiled` names parts of `COMPILED`.

    `workers` processes make batches; -1 is all cores of this process but two beside a GPU, and none without.
    """

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    workers: int = -1
    compiled: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.workers < 0:
            cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            beside_gpu = max(1, cores - 2) if self.pins else 0
            object.__setattr__(self, "workers", beside_gpu)

    @property
    def pins(self) -> bool:
        """Whether batches lie in memory that a GPU copies from while it computes."""
        return self.device.type == "cuda"

    def compiles(self, part: str) -> bool:
        """Whether this part is to be compiled."""
        return part in self.compiled

    def generator(self, seed: int, number: int) -> torch.Generator:
        """The random numbers of one micro-batch: they depend on nothing else, so there is no state to keep."""
        return torch.Generator(self.device).manual_seed(seed * 1_000_003 + number)


class Remarks:
    """Is told of a run, and writes it to the log of the process; numbers have lines of their own there."""

    def say(self, text: str) -> None:
        """Something happened."""
        logger.info("%s", text)

    def on_step(self, step: int, steps: int, loss: float | None) -> None:
        """Nothing to add."""
