"""How a training run is carried out, as opposed to what it computes: device, dtype, workers, compilation, limits."""

from dataclasses import dataclass, field

import torch

from kandinsky5.train.replicas import ALONE, Replicas
from kandinsky5.train.run import Limits

COMPILED_PARTS = ("network", "text", "autoencoder", "renderer")

CONVOLUTIONS = {"force_layout_optimization": True}
"""Compiler options of the autoencoder: channels last. Left alone, the compiler keeps channels first as soon as one
convolution doubles its channels, and cuDNN then turns every picture round and back."""


@dataclass(frozen=True, kw_only=True)
class Running:
    """`dtype` is what modules compute in, their masters are float32; `compiled` names parts of `COMPILED_PARTS`.

    `replicas` are processes that share each step's rows; how many there are is the recipe's, which of them this is not.
    """

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    workers: int = 14
    compiled: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    replicas: Replicas = ALONE

    def compiles(self, part: str) -> bool:
        """Whether this part is to be compiled."""
        return part in self.compiled

    def generator(self, seed: int, step: int) -> torch.Generator:
        """The random numbers of one step: they depend on nothing else, so there is no state to keep."""
        return torch.Generator(self.device).manual_seed(seed * 1_000_003 + self.replicas.number(step))
