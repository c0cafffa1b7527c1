"""Muon: momentum whose singular values are made equal, for the matrices inside repeated blocks.

Comes in: masters with gradients. Goes out: updated masters. `torch.optim.Muon` computes the same of one matrix after
another, 23 operations each, 3,726 a step for the 162 of the embedded model; here equal shapes go through one batched
product, which makes 263. Nothing here knows of schedules or files.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn

from kandinsky5.train.masters import Masters

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
ITERATIONS: Final = 5
"""Of the quintic that takes singular values in (0, 1] to about 1 (Keller Jordan's, as in `torch.optim.Muon`)."""

LEAST_NORM: Final = 1e-7

MOMENTUM: Final = 0.95
RMS: Final = 0.2
"""Of an update's entries at rate 1: about AdamW's, so that its rates and decay carry over (arXiv 2502.16982)."""


class Muon:
    """Steps the hidden matrices of `masters`, with Nesterov momentum and decoupled weight decay."""

    def __init__(self, masters: Masters):
        self.momentum = torch.zeros_like(masters.flat["hidden"])
        self._masters = masters

    @torch.no_grad()
    def step(self, rate: float, weight_decay: float) -> None:
        """Take in the gradients of one step."""
        hidden, gradients = self._masters.flat["hidden"], self._masters.gradients["hidden"]
        self.momentum.lerp_(gradients, 1 - MOMENTUM)
        ahead = gradients.lerp(self.momentum, MOMENTUM)
        hidden.mul_(1 - rate * weight_decay)
        for matrices, direction in zip(*map(self._masters.stacks, (hidden, ahead)), strict=True):
            matrices.add_(orthogonal(direction), alpha=-rate * RMS * math.sqrt(max(matrices.shape[-2:])))


def orthogonal(matrices: Tensor) -> Tensor:
    """Each of (B, m, n) with its singular values moved near 1, bfloat16; a matrix of zeros stays one."""
    a, b, c = COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.bfloat16()
    if tall:
        x = x.mT
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=LEAST_NORM)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def hidden_matrices(module: nn.Module, but_not: tuple[type[nn.Module], ...] = ()) -> list[str]:
    """Names of the weights that Muon is for: of linear layers in lists of blocks, outside modules of some types."""
    inside = {
        layer.weight
        for blocks in module.modules()
        if isinstance(blocks, nn.ModuleList)
        for layer in blocks.modules()
        if isinstance(layer, nn.Linear)
    }
    outside = {p for part in module.modules() if isinstance(part, but_not) for p in part.parameters()}
    return [name for name, parameter in module.named_parameters() if parameter in inside - outside]
