"""A reading of what stands where, trained along and thrown away.

A loss on the velocity tells the network little of layout: near t = 1, where places are decided, what a word adds to the
best guess of a picture is a faint blob. What is asked here is the same at every time and loud: of each token, which
shape stands there, in which colour and fill, or that it is ground; where that thing's centre is and how large it is,
which tells two equal things side by side from one. At t = 1 only the caption can tell.

Comes in: token states of one block, and packed scenes. Goes out: a loss a row. It does not know what else is trained.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from kandinsky5.demo.palette import COLOURS
from kandinsky5.demo.world import FILLS, MAX_THINGS, SHAPES, SIZES

KINDS = {"shape": len(SHAPES), "colour": len(COLOURS), "fill": len(FILLS)}
"""What is asked of a token, and how many answers there are beside "ground", which is answer 0."""

FRAME = 3
"""Numbers beside them: the way to the thing's centre in x and in y, and its radius, in units of `UNIT`."""

UNIT = max(radius for _, radius in SIZES.values())
"""Of the canvas: the largest radius, so that these numbers lie within about 1."""

REACH = 0.02
"""A thing stands at a token whose middle is inside its bounding circle, or this near to it (of the canvas)."""


class ThingMap(nn.Module):
    """Reads from token states of width `dim` what stands at each token."""

    def __init__(self, dim: int):
        super().__init__()
        answers = sum(count + 1 for count in KINDS.values()) + FRAME
        self.reading = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, answers)
        )

    def forward(self, states: Tensor, packed: Tensor) -> Tensor:
        """What a row pays, (B,) float32: mean cross-entropy, and the mean error of the frames where things stand.

        Args:
            states: (B, N, dim), of a square grid of N tokens.
            packed: scenes (b, MAX_THINGS + 1, features) as `renderer.pack` gives them. B is a multiple of b: the rows
                of `states` go through the scenes so many times over.
        """
        times = len(states) // len(packed)
        labels, frames = (rows.repeat(times, 1, 1) for rows in things_at(packed, math.isqrt(states.shape[1])))
        states = states.to(next(self.reading.parameters()).dtype)
        *answers, framed = (
            self.reading(states).float().split([*(count + 1 for count in KINDS.values()), FRAME], dim=-1)
        )
        losses = [
            functional.cross_entropy(answer.flatten(0, 1), label.flatten(), reduction="none")
            for answer, label in zip(answers, labels.unbind(-1), strict=True)
        ]
        kinds = torch.stack(losses).mean(0).unflatten(0, states.shape[:2]).mean(1)
        astray = (framed - frames).abs().mean(-1) * (labels[..., 0] > 0)
        return kinds + astray.mean(1)


def things_at(packed: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """What stands at each token of a grid.

    Returns:
        Answers (B, side squared, 3) int64, by `KINDS`, 0 for the ground; and frames (B, side squared, `FRAME`) float32,
        of the nearest thing also where none stands.
    """
    middles = (torch.arange(side, device=packed.device) + 0.5) / side
    things = packed[:, :MAX_THINGS]
    to_x = things[:, :, 0, None, None] - middles[None, :]
    to_y = things[:, :, 1, None, None] - middles[:, None]
    radius = things[:, :, 2, None, None]
    inside = torch.where(radius > 0, torch.hypot(to_x, to_y) - radius, math.inf)
    nearest, which = inside.min(dim=1)
    table = torch.tensor(list(COLOURS.values()), device=packed.device) / 255
    colour = torch.cdist(things[..., 4:7], table.expand(len(packed), -1, -1)).argmin(-1)
    kinds = torch.stack([things[..., 7].long(), colour, things[..., 8].long()], dim=-1)
    found = kinds.gather(1, which.flatten(1)[..., None].expand(-1, -1, len(KINDS))) + 1
    frame = (
        torch.stack([to_x.expand_as(inside), to_y.expand_as(inside), radius.expand_as(inside)], dim=-1) / UNIT
    )
    framed = frame.gather(1, which[:, None, ..., None].expand(-1, -1, -1, -1, FRAME)).squeeze(1)
    return found * (nearest < REACH).flatten(1)[..., None], framed.flatten(1, 2)
