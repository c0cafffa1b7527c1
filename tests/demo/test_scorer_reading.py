"""Reading a picture: ground, pieces, outlines; what is near enough to a shape of the world and what is not."""

import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from kandinsky5.demo.palette import COLOURS, GROUNDS, RGB, Ground, lab, neutral
from kandinsky5.demo.pieces import cut, lab_of
from kandinsky5.demo.recognition import NEUTRAL, Found, look
from kandinsky5.demo.renderer import pack, render
from kandinsky5.demo.world import Scene, Thing, draw_scene

Picture = NDArray[np.uint8]
Distance = NDArray[np.float64]

ROWS, COLUMNS = np.mgrid[:256, :256] + 0.5


def ground(rgb: RGB = (255, 255, 255)) -> Picture:
    return np.full((256, 256, 3), rgb, dtype=np.uint8)


def painted(image: Picture, distance: Distance, colour: str = "blue") -> Picture:
    """A picture with everything at a negative distance painted, edges one pixel soft."""
    coverage = (0.5 - distance).clip(0, 1)[..., None]
    return (image * (1 - coverage) + np.array(COLOURS[colour]) * coverage).round().astype(np.uint8)


def disc(x: float, y: float, radius: float) -> Distance:
    return np.hypot(COLUMNS - x, ROWS - y) - radius


def box(x: float, y: float, half_width: float, half_height: float) -> Distance:
    return np.maximum(np.abs(COLUMNS - x) - half_width, np.abs(ROWS - y) - half_height)


def polygon(x: float, y: float, radius: float, corners: int) -> Distance:
    dx, dy = COLUMNS - x, ROWS - y
    sector = 2 * np.pi / corners
    angle = np.arctan2(dx, dy)
    folded = angle - sector * np.round(angle / sector)
    return np.hypot(dx, dy) * np.cos(folded) - radius * np.cos(sector / 2)


def oval(x: float, y: float, half_width: float, half_height: float) -> Distance:
    """Not a true distance, but near the edge close to one."""
    return (np.hypot((COLUMNS - x) / half_width, (ROWS - y) / half_height) - 1) * half_height


def only(image: Picture) -> Found:
    [thing] = look(image).things
    return thing


def test_lab_is_that_of_the_palette() -> None:
    colours = [*COLOURS.values(), *GROUNDS.values(), (1, 2, 3)]
    np.testing.assert_allclose(
        lab_of(np.array(colours, dtype=np.uint8)), [lab(c) for c in colours], atol=2e-3
    )


def test_places_sizes_and_radii_are_those_drawn() -> None:
    rng = random.Random(3)
    for scene in [draw_scene(rng) for _ in range(12)]:
        picture = ((render(pack([scene]))[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        sight = look(picture)
        assert (sight.ground or NEUTRAL) == (scene.ground.name or NEUTRAL)
        assert len(sight.things) == len(scene.things)
        for thing in scene.things:
            seen = min(sight.things, key=lambda s: np.hypot(s.x - thing.x, s.y - thing.y))
            assert (seen.shape, seen.colour, seen.fill, seen.size) == (
                *(thing.shape, thing.colour, thing.fill, thing.size),
            )
            assert seen.rgb == COLOURS[thing.colour]
            assert np.hypot(seen.x - thing.x, seen.y - thing.y) * 256 < 0.3
            assert seen.radius == pytest.approx(thing.radius, rel=0.02)
            assert seen.deviation < 0.025


@pytest.mark.parametrize("size", [128, 512])
def test_other_sizes_read_alike(size: int) -> None:
    rng = random.Random(4)
    scenes = [s for s in (draw_scene(rng) for _ in range(40)) if all(t.size != "small" for t in s.things)][:6]
    for scene in scenes:
        picture = ((render(pack([scene]), size)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        seen = sorted((t.shape, t.colour, t.size) for t in look(picture).things)
        assert seen == sorted((t.shape, t.colour, t.size) for t in scene.things)


@pytest.mark.parametrize(
    "distance",
    [
        pytest.param(polygon(128, 128, 34, 5), id="pentagon"),
        pytest.param(oval(128, 128, 38, 28), id="oval"),
        pytest.param(oval(128, 128, 50, 25), id="longer oval"),
        pytest.param(box(128, 128, 34, 26), id="rectangle"),
        pytest.param(box(128, 128, 50, 25), id="longer rectangle"),
        pytest.param(np.minimum(box(128, 100, 40, 10), box(128, 130, 10, 40)), id="letter T"),
        pytest.param(np.minimum(disc(128, 128, 20), box(150, 128, 30, 6)), id="lollipop"),
        pytest.param(np.maximum(disc(128, 128, 34), -disc(150, 128, 24)), id="crescent"),
        pytest.param(
            ((np.abs(COLUMNS - 128) ** 3 + np.abs(ROWS - 128) ** 3) ** (1 / 3) - 30),
            id="between circle and square",
        ),
        pytest.param(np.minimum(oval(128, 128, 44, 22), disc(105, 120, 24)), id="bean"),
    ],
)
def test_other_shapes_are_none_of_the_world(distance: Distance) -> None:
    assert only(painted(ground(), distance)).shape is None


@pytest.mark.parametrize(
    ("distance", "shape"),
    [
        pytest.param(oval(128, 128, 32, 29), "circle", id="nearly round"),
        pytest.param(box(128, 128, 29, 26), "square", id="nearly square"),
        pytest.param(
            disc(128, 128, 30) + 1.5 * np.sin(COLUMNS / 5) * np.sin(ROWS / 5), "circle", id="wobbly"
        ),
        pytest.param(np.maximum(disc(128, 128, 30), -disc(131, 126, 15)), "ring", id="crooked ring"),
        pytest.param(np.maximum(disc(128, 128, 30), 130 - ROWS), "half-circle", id="short half-circle"),
        pytest.param(box(128, 128, 45, 8) + 1.5 * np.sin(COLUMNS / 6), "line", id="wavy line"),
        pytest.param(polygon(128, 128, 30, 3), "triangle", id="triangle"),
    ],
)
def test_imperfect_drawings_keep_their_names(distance: Distance, shape: str) -> None:
    thing = only(painted(ground(), distance))
    assert (thing.shape, thing.colour, thing.fill) == (shape, "blue", "solid")


def test_fills_are_told_by_gaps() -> None:
    square, inner = box(128, 128, 30, 30), box(128, 128, 22, 22)
    bars = np.abs((COLUMNS + ROWS) % 16 - 8) - 4
    for inside, fill in (
        (inner, "outlined"),
        (np.maximum(inner, bars), "striped"),
        (disc(128, 128, 4), "solid"),
    ):
        assert only(painted(ground(), np.maximum(square, -inside))).fill == fill
    half_hollow = np.maximum(square, -disc(128, 128, 11))
    assert only(painted(ground(), half_hollow)).fill is None
    broken = np.maximum(np.maximum(square, -inner), -box(128, 98, 1, 12))
    assert only(painted(ground(), broken)).fill == "outlined"


def test_colours_and_grounds_have_their_nearest_name_within_reason() -> None:
    assert only(painted(ground((20, 60, 40)), disc(90, 90, 30), "turquoise")).colour == "turquoise"
    patch = ground()
    for rgb, name in (((248, 172, 186), "pink"), ((170, 30, 36), "red"), ((232, 92, 32), None)):
        patch[60:100, 60:100] = rgb
        assert only(patch).colour == name, "the last is halfway from red to orange"
    for name, rgb in {**GROUNDS, NEUTRAL: neutral(0.3).rgb}.items():
        assert look(ground(rgb)).ground == name
        assert look(ground(tuple(min(c + 4, 255) for c in rgb))).ground == name  # type: ignore[arg-type]
    assert look(ground((120, 60, 160))).ground is None
    assert look(ground()).things == ()


def test_things_that_touch_are_told_apart() -> None:
    both = painted(painted(ground(), disc(100, 128, 22)), disc(141, 128, 22))
    assert [t.shape for t in look(both).things] == ["circle", "circle"]
    two_colours = painted(painted(ground(), box(100, 128, 20, 20)), disc(139, 128, 20), "red")
    assert {(t.colour, t.shape) for t in look(two_colours).things} == {("blue", "square"), ("red", "circle")}


def test_a_gap_between_things_is_none() -> None:
    """Sharp and 2 px apart on a slant: the gap is bridged, and where they are parted a bit of it belongs to neither."""
    sharp = np.sign(np.minimum(disc(100, 100, 18), disc(127, 73, 18)))
    assert [t.shape for t in look(painted(ground(), sharp)).things] == ["circle", "circle"]


def test_a_crack_parts_nothing() -> None:
    cracked = np.maximum(disc(128, 128, 30), 1 - np.abs(COLUMNS - 128))
    assert only(painted(ground(neutral(0.5).rgb), cracked, "white")).shape == "circle"


@pytest.mark.parametrize(
    ("colour", "shape", "fill", "on"),
    [
        ("black", "half-circle", "striped", "white"),
        ("black", "circle", "striped", "white"),
        ("brown", "triangle", "striped", "blue"),
        ("white", "star", "outlined", "black"),
        ("brown", "ring", "solid", "black"),
        ("blue", "line", "solid", "dark blue"),
        ("white", "ring", "solid", "yellow"),
        ("blue", "square", "solid", "dark green"),
    ],
)
def test_a_bad_decoder_is_forgiven(colour: str, shape: str, fill: str, on: str) -> None:
    """Blur of 1 px and noise of 5/255: half as much again as in a decoder that is worth having."""
    thing = Thing(shape=shape, colour=colour, size="medium", fill=fill, x=0.5, y=0.5, radius=0.101, angle=0.1)
    things = tuple(replace(thing, x=x, y=y) for x in (0.25, 0.6) for y in (0.3, 0.7))
    scene = Scene(things=things, ground=Ground(name=on, rgb=GROUNDS[on]))
    true = ((render(pack([scene]))[0] + 1) * 127.5).permute(1, 2, 0).numpy()
    noise = np.random.default_rng(0).normal(0, 5, true.shape)
    bad = (ndimage.gaussian_filter(true, (1, 1, 0)) + noise).round().clip(0, 255).astype(np.uint8)
    assert [(t.colour, t.shape, t.fill) for t in look(bad).things] == [(colour, shape, fill)] * 4


def test_shades_of_one_colour_are_one_thing_and_colours_are_not() -> None:
    black, brown = np.array(COLOURS["black"]), np.array(COLOURS["brown"])

    def shaded(inside: float, outside: float) -> Picture:
        image = painted(ground(), disc(128, 128, 34))
        for radius, share in ((36, outside), (20, inside)):
            within = disc(128, 128, radius) < 0
            image[within] = (black + share * (brown - black)).round()
        return image

    one = only(shaded(0.4, 0.6))
    assert one.shape == "circle"
    assert [(t.colour, t.shape) for t in look(shaded(0.0, 1.0)).things] == [
        ("brown", "ring"),
        ("black", "circle"),
    ]


def test_specks_and_soiled_borders_are_overlooked() -> None:
    image = painted(painted(ground(), disc(128, 128, 30)), disc(40, 40, 3))
    image[:3] = image[:, -3:] = (120, 140, 150)
    assert only(image).shape == "circle"
    assert len(look(painted(image, disc(40, 40, 8))).things) == 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda image: image[..., 0],
        lambda image: image[:100],
        lambda image: image.astype(np.float32),
        lambda image: np.concatenate((image, image), axis=2),
    ],
)
def test_what_is_no_picture_is_refused(spoil: Callable[[Picture], Picture]) -> None:
    with pytest.raises(ValueError, match="uint8"):
        cut(spoil(ground()))
