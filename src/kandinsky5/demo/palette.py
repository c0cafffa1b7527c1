"""The colours of the embedded model's world, and how far apart they look.

Comes in: nothing, or colours as (r, g, b) of 0 to 255. Goes out: the twelve named colours of things, the named
grounds, the range of the unnamed one, and distances in CIE Lab (D65). Any two named colours are at least 36 apart,
any two grounds at least 14, so the nearest name is a safe reading. Knows nothing of shapes, scenes, words or tensors.
"""

import functools
import math
from dataclasses import dataclass

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 34, 40),
    "orange": (246, 134, 22),
    "yellow": (252, 218, 40),
    "green": (42, 150, 62),
    "blue": (28, 84, 206),
    "purple": (140, 44, 158),
    "pink": (246, 132, 186),
    "brown": (116, 68, 36),
    "black": (18, 18, 20),
    "white": (255, 255, 255),
    "grey": (128, 130, 134),
    "turquoise": (38, 196, 190),
}
"""Colours of things: exactly these values are drawn, with no jitter."""

GROUNDS: dict[str, RGB] = {
    "white": (255, 255, 255),
    "cream": (255, 243, 210),
    "grey": (148, 150, 154),
    "black": (18, 18, 20),
    "pale blue": (176, 210, 242),
    "blue": (44, 96, 204),
    "dark blue": (22, 34, 92),
    "pale green": (190, 228, 184),
    "green": (52, 148, 76),
    "dark green": (18, 66, 44),
    "pale yellow": (252, 238, 146),
    "yellow": (250, 212, 48),
    "pink": (248, 190, 208),
    "lilac": (202, 184, 234),
    "red": (204, 40, 42),
    "orange": (242, 140, 40),
}
"""Grounds that a caption names."""

GROUND_WEIGHTS: dict[str, float] = {
    "white": 5.0,
    "black": 3.0,
    "cream": 2.0,
    "grey": 1.5,
    "pale blue": 1.5,
    "dark blue": 1.5,
    "pale yellow": 1.5,
    "pink": 1.2,
    "pale green": 1.2,
    "lilac": 1.2,
}
"""How often a ground is drawn, relative to the others; 0.7 where it is not listed."""

NEUTRAL_ENDS: tuple[RGB, RGB] = ((214, 204, 184), (205, 200, 188))
"""The ground that is not named: a pale linen between these two, dark enough that white things stand out."""

MIN_CONTRAST = 20.0
"""The least Lab distance between a thing and the ground."""


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What a scene is drawn on. `name` is a key of `GROUNDS`, or None for the pale neutral."""

    name: str | None
    rgb: RGB


def lab(rgb: RGB) -> tuple[float, float, float]:
    """CIE L*a*b* of an sRGB colour (IEC 61966-2-1, white point D65, 2 degrees)."""
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in rgb))
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    fx, fy, fz = (t ** (1 / 3) if t > 216 / 24389 else (24389 / 27 * t + 16) / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def lab_distance(a: RGB, b: RGB) -> float:
    """Euclidean distance of two sRGB colours in Lab (CIE 1976); about 2 is just noticeable."""
    return math.dist(lab(a), lab(b))


@functools.cache
def grounds_for(colours: frozenset[str]) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The named grounds on which each of these colours keeps `MIN_CONTRAST`, and their weights."""
    names = tuple(
        name
        for name, rgb in GROUNDS.items()
        if all(lab_distance(COLOURS[colour], rgb) >= MIN_CONTRAST for colour in colours)
    )
    return names, tuple(GROUND_WEIGHTS.get(name, 0.7) for name in names)


def neutral(t: float) -> Ground:
    """The unnamed ground, `t` in [0, 1] of the way along its narrow range."""
    low, high = NEUTRAL_ENDS
    r, g, b = (round(p + (q - p) * t) for p, q in zip(low, high, strict=True))
    return Ground(name=None, rgb=(r, g, b))
