"""What is asked of a token is what the renderer drew there, and the answer is paid for row by row."""

import random

import pytest
import torch

from kandinsky5.demo.palette import COLOURS
from kandinsky5.demo.renderer import pack
from kandinsky5.demo.thing_map import FRAME, KINDS, REACH, UNIT, ThingMap, things_at
from kandinsky5.demo.world import FILLS, SHAPES, draw_scene


def test_labels_say_what_stands_at_a_token() -> None:
    rng = random.Random(3)
    scenes = [draw_scene(rng) for _ in range(40)]
    labels, frames = things_at(pack(scenes), 16)
    assert labels.shape == frames.shape == (40, 256, 3)
    asked = 0
    grids = (rows.reshape(40, 16, 16, 3).tolist() for rows in (labels, frames))
    for scene, grid, framed in zip(scenes, *grids, strict=True):
        for row in range(16):
            for column in range(16):
                x, y = (column + 0.5) / 16, (row + 0.5) / 16
                near = {
                    ((thing.x - x) ** 2 + (thing.y - y) ** 2) ** 0.5 - thing.radius: thing
                    for thing in scene.things
                }
                inside, thing = min(near.items(), key=lambda pair: pair[0])
                said = grid[row][column]
                if inside >= REACH:
                    assert said == [0, 0, 0]
                    continue
                asked += 1
                assert said == [
                    1 + list(SHAPES).index(thing.shape),
                    1 + list(COLOURS).index(thing.colour),
                    1 + list(FILLS).index(thing.fill),
                ]
                expected = [(thing.x - x) / UNIT, (thing.y - y) / UNIT, thing.radius / UNIT]
                assert framed[row][column] == pytest.approx(expected, abs=1e-5)
    assert asked > 1000


def test_a_row_pays_for_its_own_scene() -> None:
    """Rows go through the scenes in turn; a reading that is sure of the truth pays nothing, one of a lie a lot."""
    rng = random.Random(4)
    packed = pack([draw_scene(rng) for _ in range(2)])
    labels, frames = things_at(packed, 4)
    width = sum(count + 1 for count in KINDS.values()) + FRAME
    reading = ThingMap(1)

    class Sure(torch.nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            said = labels[[0, 1, 1, 1]]
            answers = [
                20.0 * torch.nn.functional.one_hot(one, count + 1)
                for one, count in zip(said.unbind(-1), KINDS.values(), strict=True)
            ]
            return torch.cat([*answers, frames[[0, 1, 1, 1]]], -1)

    reading.reading = torch.nn.Sequential(Sure(), torch.nn.Linear(width, width, bias=False))
    with torch.no_grad():
        reading.reading[1].weight.copy_(torch.eye(width))
        losses = reading(torch.zeros(4, 16, 1), packed)
    assert losses.shape == (4,)
    assert losses[[0, 1, 3]].max() < 1e-4
    assert losses[2] > 1
