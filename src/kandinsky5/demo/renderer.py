"""Scenes become pictures: signed distance functions in torch, a whole batch at a time.

Comes in: scenes, packed to one small tensor. Goes out: pictures (B, 3, S, S), float32 in [-1, 1], on the device of
the packed tensor. Shapes are fixed and nothing depends on values, so the whole of `render` compiles to one graph.
Knows nothing of captions, of how scenes are drawn at random, or of the network.

The distance functions are in a thing's own frame: its bounding circle has radius 1, y points down, and negative
is inside. They are exact along the edges and keep corners sharp outside.
"""

import math
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from kandinsky5.demo.palette import COLOURS
from kandinsky5.demo.world import FILLS, MAX_THINGS, SHAPES, Scene

FEATURES = 9
"""x, y, radius, angle, red, green, blue (0 to 1), index into `SHAPES`, index into `FILLS`."""

LINE_WIDTH = (0.22, 0.024)
"""Width of a line: of its radius, and at least of the canvas (6 px at 256)."""
OUTLINE_WIDTH = (0.14, 0.0145)
"""Width of the band of an outlined thing, likewise (3.7 px at 256)."""
STRIPED_RIM_WIDTH = (0.1, 0.012)
"""A striped thing has a rim, likewise, which holds its stripes together (3 px at 256)."""
STRIPE_PERIOD = 0.4
"""From one stripe to the next, of the radius; half of it is coloured."""

_RING_INSIDE = 0.58
_CROSS_HALF_WIDTH = 0.29
_STAR_INSIDE = 0.47
_HALF_CIRCLE_RADIUS = 2 / math.sqrt(5)

_SHAPE_INDEX = {name: index for index, name in enumerate(SHAPES)}
_FILL_INDEX = {name: index for index, name in enumerate(FILLS)}


def pack(scenes: Sequence[Scene]) -> Tensor:
    """Scenes as (B, MAX_THINGS + 1, FEATURES) float32: a row a thing, in order; the last row is the ground.

    Rows without a thing hold zeros, so radius 0. A scene of more than `MAX_THINGS` things is a ValueError.
    """
    rows = array("f")
    for scene in scenes:
        unused = MAX_THINGS - len(scene.things)
        if unused < 0:
            raise ValueError(f"A scene has at most {MAX_THINGS} things, this one has {len(scene.things)}.")
        for thing in scene.things:
            r, g, b = COLOURS[thing.colour]
            rows.extend((thing.x, thing.y, thing.radius, thing.angle, r / 255, g / 255, b / 255))
            rows.extend((_SHAPE_INDEX[thing.shape], _FILL_INDEX[thing.fill]))
        rows.extend((0.0,) * (unused * FEATURES + 4))
        rows.extend(c / 255 for c in scene.ground.rgb)
        rows.extend((0.0, 0.0))
    if not rows:
        return torch.zeros(0, MAX_THINGS + 1, FEATURES)
    return torch.frombuffer(rows, dtype=torch.float32).reshape(-1, MAX_THINGS + 1, FEATURES).clone()


def render(packed: Tensor, size: int = 256) -> Tensor:
    """Draw packed scenes (B, MAX_THINGS + 1, FEATURES) as (B, 3, size, size), float32 in [-1, 1].

    Things cover one another in their order; edges are one pixel soft.
    """
    packed = packed.to(torch.float32)
    centres = (torch.arange(size, device=packed.device, dtype=torch.float32) + 0.5) / size
    x, y = centres[None, None, :], centres[None, :, None]
    picture = packed[:, MAX_THINGS, 4:7, None, None].expand(-1, -1, size, size)
    for index in range(MAX_THINGS):
        thing = packed[:, index, :, None, None]
        alpha = _coverage(thing, x, y, size)[:, None]
        picture = picture + alpha * (packed[:, index, 4:7, None, None] - picture)
    return picture * 2 - 1


def _coverage(thing: Tensor, x: Tensor, y: Tensor, size: int) -> Tensor:
    """How much of each pixel a thing (B, FEATURES, 1, 1) covers: (B, size, size) in [0, 1]."""
    radius = thing[:, 2]
    scale = radius.clamp_min(1e-6)
    cos, sin = torch.cos(thing[:, 3]), torch.sin(thing[:, 3])
    dx, dy = (x - thing[:, 0]) / scale, (y - thing[:, 1]) / scale
    u, v = cos * dx + sin * dy, cos * dy - sin * dx
    pixel = 1 / (scale * size)
    solid = _distance(thing[:, 7], u, v, scale)
    distance = _filled(thing[:, 8], solid, u, v, scale)
    return (0.5 - distance / pixel).clamp(0, 1) * (radius > 0)


def _filled(fill: Tensor, solid: Tensor, u: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """The distance to what a fill leaves of a solid shape."""
    outlined = torch.maximum(solid, -solid - _width(OUTLINE_WIDTH, scale))
    rim = torch.maximum(solid, -solid - _width(STRIPED_RIM_WIDTH, scale))
    phase = (u + v) * math.sqrt(0.5) / STRIPE_PERIOD
    stripes = ((phase - torch.round(phase)).abs() - 0.25) * STRIPE_PERIOD
    striped = torch.minimum(rim, torch.maximum(solid, stripes))
    distance = torch.where(fill == _FILL_INDEX["outlined"], outlined, solid)
    return torch.where(fill == _FILL_INDEX["striped"], striped, distance)


def _width(width: tuple[float, float], scale: Tensor) -> Tensor:
    of_radius, of_canvas = width
    return (of_canvas / scale).clamp_min(of_radius)


def _distance(shape: Tensor, u: Tensor, v: Tensor, scale: Tensor) -> Tensor:
    """The signed distance of points (u, v) to the shapes of this index, in units of their radius."""
    along, across = u.abs(), v.abs()
    from_centre = torch.sqrt(u * u + v * v)
    half_line = _width(LINE_WIDTH, scale) / 2
    ring_half = (1 - _RING_INSIDE) / 2
    distances = {
        "circle": from_centre - 1,
        "square": torch.maximum(along, across) - math.sqrt(0.5),
        "triangle": torch.maximum(v, along * (math.sqrt(3) / 2) - v / 2) - 0.5,
        "half-circle": _half_circle(u, v),
        "star": _star(u, v, from_centre),
        "cross": _cross(along, across),
        "ring": (from_centre - (1 - ring_half)).abs() - ring_half,
        "line": torch.maximum(along - torch.sqrt(1 - half_line * half_line), across - half_line),
    }
    chosen = distances["circle"]
    for name, distance in distances.items():
        chosen = torch.where(shape == _SHAPE_INDEX[name], distance, chosen)
    return chosen


def _half_circle(u: Tensor, v: Tensor) -> Tensor:
    """A dome whose flat side is down, half its height below the centre."""
    base = v - _HALF_CIRCLE_RADIUS / 2
    return torch.maximum(torch.sqrt(u * u + base * base) - _HALF_CIRCLE_RADIUS, base)


def _star(u: Tensor, v: Tensor, from_centre: Tensor) -> Tensor:
    """Five points, one of them up: all edges fold onto the one between that tip and the notch beside it."""
    sector = 2 * math.pi / 5
    angle = torch.atan2(u, -v)
    folded = (angle - sector * torch.round(angle / sector)).abs()
    notch_x, notch_y = _STAR_INSIDE * math.sin(sector / 2), _STAR_INSIDE * math.cos(sector / 2)
    length = math.hypot(notch_x, 1 - notch_y)
    normal_x, normal_y = (1 - notch_y) / length, notch_x / length
    return from_centre * torch.sin(folded) * normal_x + (from_centre * torch.cos(folded) - 1) * normal_y


def _cross(along: Tensor, across: Tensor) -> Tensor:
    """A plus sign: two bars."""
    half, length = _CROSS_HALF_WIDTH, math.sqrt(1 - _CROSS_HALF_WIDTH**2)
    flat = torch.maximum(along - length, across - half)
    upright = torch.maximum(along - half, across - length)
    return torch.minimum(flat, upright)
