"""Muon: momentum whose singular values are made equal, for the matrices inside repeated blocks.

Comes in: parameters with gradients. Goes out: updated parameters. `torch.optim.Muon` computes the same of one matrix
after another, 23 operations each, 3,726 a step for the 162 of the embedded model; here equal shapes go through one
batched product, which makes 299. Nothing here knows of schedules or files.
"""

import math
from typing import Any, Final

import torch
from torch import Tensor, nn

COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
ITERATIONS: Final = 5
"""Of the quintic that takes singular values in (0, 1] to about 1 (Keller Jordan's, as in `torch.optim.Muon`)."""

LEAST_NORM: Final = 1e-7

MOMENTUM: Final = 0.95
RMS: Final = 0.2
"""Of an update's entries at rate 1: about AdamW's, so that its rates and decay carry over (arXiv 2502.16982)."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps a first group by Muon, with Nesterov momentum and decoupled weight decay, and all others by AdamW.

    The parameters of the first have shape (m, n), or (count, m, n) for matrices of one shape, stepped together.
    """

    def __init__(self, groups: list[dict[str, Any]], rate: float, **of_adamw: Any):
        super().__init__(groups, {"lr": rate, "fused": of_adamw["fused"]})
        self._adamw = torch.optim.AdamW(self.param_groups[1:], lr=rate, **of_adamw)
        self._adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take in the gradients of one step."""
        hidden = self.param_groups[0]
        rate = hidden["lr"]
        for matrices in hidden["params"]:
            state = self.state[matrices]
            if not state:
                state["momentum"] = torch.zeros_like(matrices)
            state["momentum"].lerp_(matrices.grad, 1 - MOMENTUM)
            ahead = matrices.grad.lerp(state["momentum"], MOMENTUM)
            matrices.mul_(1 - rate * hidden["weight_decay"])
            direction = orthogonal(ahead.view(-1, *ahead.shape[-2:])).view(matrices.shape)
            matrices.add_(direction, alpha=-rate * RMS * math.sqrt(max(matrices.shape[-2:])))
        self._adamw.step()


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
