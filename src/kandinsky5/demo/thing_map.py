"""A reading of what stands where, trained along and thrown away.

A loss on the velocity tells the network little of layout: near t = 1, where places are decided, what a word adds to the
best guess of a picture is a faint blob. What is asked here is the same at every time and loud: of each token, which
shape stands there, in which colour and fill, or that it is ground. At t = 1 only the caption can tell.

Comes in: token states of one block, and packed scenes. Goes out: a loss a row. It does not know what else is trained.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kandinsky5.demo.palette import COLOURS
from kandinsky5.demo.world import FILLS, MAX_THINGS, SHAPES

KINDS = {"shape": len(SHAPES), "colour": len(COLOURS), "fill": len(FILLS)}
"""What is asked of a token, and how many answers there are beside "ground", which is answer 0."""

REACH = 0.02
"""A thing stands at a token whose middle is inside its bounding circle, or this near to it (of the canvas)."""


class ThingMap(nn.Module):
    """Reads from token states of width `dim` what stands at each token."""

    def __init__(self, dim: int):
        super().__init__()
        answers = sum(count + 1 for count in KINDS.values())
        self.reading = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, answers)
        )

    def forward(self, states: Tensor, packed: Tensor) -> Tensor:
        """Mean cross-entropy of a row, (B,) float32.

        Args:
            states: (B, N, dim), of a square grid of N tokens.
            packed: scenes (b, MAX_THINGS + 1, features) as `renderer.pack` gives them. B is a multiple of b: the rows
                of `states` go through the scenes so many times over.
        """
        labels = thing_labels(packed, math.isqrt(states.shape[1])).repeat(len(states) // len(packed), 1, 1)
        states = states.to(next(self.reading.parameters()).dtype)
        answers = self.reading(states).float().split([n + 1 for n in KINDS.values()], dim=-1)
        losses = [
            functional.cross_entropy(answer.flatten(0, 1), label.flatten(), reduction="none")
            for answer, label in zip(answers, labels.unbind(-1), strict=True)
        ]
        return torch.stack(losses).mean(0).unflatten(0, states.shape[:2]).mean(1)


def thing_labels(packed: Tensor, side: int) -> Tensor:
    """What stands at each token of a grid: (B, side squared, 3) int64, by `KINDS`, 0 for the ground."""
    middles = (torch.arange(side, device=packed.device) + 0.5) / side
    things = packed[:, :MAX_THINGS, None, None]
    away = torch.hypot(things[..., 0] - middles[None, :], things[..., 1] - middles[:, None])
    radius = things[..., 2]
    inside = torch.where(radius > 0, away - radius, math.inf)
    nearest, which = inside.min(dim=1)
    table = torch.tensor(list(COLOURS.values()), device=packed.device) / 255
    colour = torch.cdist(packed[:, :MAX_THINGS, 4:7], table.expand(len(packed), -1, -1)).argmin(-1)
    kinds = torch.stack([packed[:, :MAX_THINGS, 7].long(), colour, packed[:, :MAX_THINGS, 8].long()], dim=-1)
    found = kinds.gather(1, which.flatten(1)[..., None].expand(-1, -1, len(KINDS))) + 1
    return found * (nearest < REACH).flatten(1)[..., None]
