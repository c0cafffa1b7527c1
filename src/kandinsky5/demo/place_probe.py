"""A linear reading of where a token stands, trained along and thrown away.

The network turns queries and keys by their positions and so knows how far apart two tokens are, never where they are;
that has to be found out from what is missing beyond the edges. A loss on the velocity alone gives almost no reason to:
the first 3.7 M training rows of the embedded model left named places and relations at chance. Asked for a token's row
and column after a few blocks, a network of this kind learns to tell them from pure noise within a hundred steps
(docs/decisions/places.md), and has them when a caption speaks of a corner.

Comes in: token states of one block. Goes out: a scalar loss. It does not know what else is trained.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class PlaceProbe(nn.Module):
    """Reads row and column from token states of width `dim`."""

    def __init__(self, dim: int):
        super().__init__()
        self.reading = nn.Linear(dim, 2)

    def forward(self, states: Tensor) -> Tensor:
        """States (B, N, dim) of a square grid of N tokens -> mean squared error, a float32 scalar.

        Rows and columns have mean 0 and deviation 1, so 1 is what a probe that knows nothing pays.
        """
        read = functional.linear(states.float(), self.reading.weight.float(), self.reading.bias.float())
        return (read - places(math.isqrt(states.shape[1]), states.device)).square().mean()


def places(side: int, device: torch.device | None = None) -> Tensor:
    """Row and column of each token of a grid, (side squared, 2) float32 with mean 0 and deviation 1 an axis."""
    line = torch.arange(side, dtype=torch.float32, device=device)
    line = (line - line.mean()) / line.std(correction=0)
    return torch.stack(torch.meshgrid(line, line, indexing="ij"), dim=-1).reshape(-1, 2)
