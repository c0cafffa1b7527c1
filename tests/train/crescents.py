"""Forty drawn pictures of a shape that the embedded model's world does not have, and the scorer taught to see it."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from kandinsky5.demo import recognition, silhouettes
from kandinsky5.demo.palette import COLOURS, GROUNDS, neutral
from kandinsky5.demo.renderer import pack, render
from kandinsky5.demo.world import Ground, Scene, Thing

WORD = "crescent"
NAMED = [colour for colour in COLOURS if colour != "white"]
COMPANIONS = ("circle", "square", "triangle", "half-circle", "star", "cross", "ring")
CORNERS = ((0.27, 0.27), (0.73, 0.27), (0.27, 0.73), (0.73, 0.73))
BITES = {WORD: (0.8, 0.65), "thin": (0.85, 0.45), "middle": (0.75, 0.6), "thick": (0.7, 0.85)}
"""Radius of the circle that is bitten out of the unit circle, and how far right its centre is; the first is drawn, the
others are crescents too."""


def outline(bite: tuple[float, float]) -> NDArray[np.float64]:
    """(P, 2) points of a crescent whose outer circle has radius 1."""
    radius, right = bite
    meet = (1 - radius * radius + right * right) / (2 * right)
    outer, inner = math.acos(meet), math.acos((meet - right) / radius)
    far = [(math.cos(a), math.sin(a)) for a in np.linspace(outer, 2 * math.pi - outer, 360)]
    near = [
        (right + radius * math.cos(a), radius * math.sin(a))
        for a in np.linspace(2 * math.pi - inner, inner, 360)
    ]
    return np.array(far + near)


def paint(
    base: Image.Image,
    points: NDArray[np.float64],
    x: float,
    y: float,
    radius: float,
    rgb: tuple[int, int, int],
) -> None:
    """Lay a crescent over a picture, lengths as fractions of its side."""
    placed = (points * radius + np.array([x, y])) * base.width
    ImageDraw.Draw(base).polygon([tuple(point) for point in placed], fill=rgb)


def a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def scene(number: int, rng: random.Random) -> tuple[Image.Image, str]:
    """A crescent, often among things that the model knows, and its caption."""
    colour = NAMED[number % len(NAMED)]
    large = number % 3 > 0
    name = rng.choice([None, None, "white", "pale blue"])
    ground = neutral(rng.random()) if name is None else Ground(name=name, rgb=GROUNDS[name])
    corners = list(CORNERS)
    rng.shuffle(corners)
    spots = [(x + rng.uniform(-0.05, 0.05), y + rng.uniform(-0.05, 0.05)) for x, y in corners]
    captions, things = [a(f"{'large ' if large else ''}{colour} {WORD}")], []
    for other in range(number % 3):
        shape = COMPANIONS[(number // 2 + 3 * other) % len(COMPANIONS)]
        shade = rng.choice([c for c in NAMED if c != colour])
        x, y = spots[other + 1]
        things.append(
            Thing(shape=shape, colour=shade, size="medium", fill="solid", x=x, y=y, radius=0.11, angle=0.0)
        )
        captions.append(a(f"{shade} {shape}"))
    drawn = render(pack([Scene(things=tuple(things), ground=ground)]), 1024)[0].permute(1, 2, 0).numpy()
    picture = Image.fromarray(((drawn + 1) * 127.5).round().clip(0, 255).astype(np.uint8))
    radius = rng.uniform(0.155, 0.185) if large else rng.uniform(0.105, 0.12)
    paint(picture, outline(BITES[WORD]), *spots[0], radius, COLOURS[colour])
    if number % 4 == 3:
        captions.reverse()
    words = " and ".join(captions) + (f" on {a(name)} ground" if name else "")
    return picture.resize((256, 256), Image.Resampling.BOX), words


def write_folder(folder: Path, count: int = 40) -> None:
    """Pictures with captions in .txt files."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for number in range(count):
        picture, words = scene(number, rng)
        picture.save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(words + "\n")


@contextmanager
def crescents_recognised() -> Iterator[None]:
    """Inside, the scorer knows crescents of every thickness as a shape of their own, beside those of its world."""
    ideals, drawn = silhouettes._ideals, silhouettes._drawn

    def with_crescents(shape: str) -> NDArray[np.float32]:
        if shape not in BITES:
            return drawn(shape)
        side = silhouettes._DRAWN * 4
        canvas = Image.new("RGB", (side, side), "white")
        paint(canvas, outline(BITES[shape]), 0.5, 0.5, silhouettes._DRAWN_RADIUS, (0, 0, 0))
        small = canvas.resize((silhouettes._DRAWN, silhouettes._DRAWN), Image.Resampling.BOX)
        return (1 - np.asarray(small)[..., 0] / 255).astype(np.float32)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(silhouettes, "PERIODS", {**silhouettes.PERIODS, **dict.fromkeys(BITES, 2 * math.pi)})
        patch.setattr(silhouettes, "_drawn", with_crescents)
        ideals.cache_clear()
        known = ideals()
        ideals.cache_clear()
        named = replace(known, shapes=tuple(WORD if shape in BITES else shape for shape in known.shapes))
        patch.setattr(silhouettes, "_ideals", lambda: named)
        yield


def shows(picture: Image.Image, shape: str, colour: str) -> bool:
    """Whether the scorer finds such a thing."""
    things = recognition.look(np.asarray(picture)).things
    return any(thing.shape == shape and thing.colour == colour for thing in things)
