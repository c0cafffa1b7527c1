"""Pictures show their scenes: colours, areas, places, edges."""

import math
import random

import pytest
import torch
from torch import Tensor

from kandinsky5.demo.palette import Ground
from kandinsky5.demo.renderer import FEATURES, pack, render
from kandinsky5.demo.world import COLOURS, MAX_THINGS, SHAPES, Scene, Thing, draw_scene

WHITE = Ground(name="white", rgb=(255, 255, 255))


def thing(shape: str, colour: str = "blue", *, x: float = 0.5, y: float = 0.5, **changes: object) -> Thing:
    settings = {"size": "large", "fill": "solid", "radius": 0.18, "angle": 0.0} | changes
    return Thing(shape=shape, colour=colour, x=x, y=y, **settings)  # type: ignore[arg-type]


def picture(*things: Thing, size: int = 256) -> Tensor:
    return render(pack([Scene(things=things, ground=WHITE)]), size)[0]


def rgb_at(image: Tensor, x: float, y: float) -> tuple[int, int, int]:
    size = image.shape[-1]
    value = (image[:, min(int(y * size), size - 1), min(int(x * size), size - 1)] + 1) * 127.5
    r, g, b = value.round().int().tolist()
    return r, g, b


def covered(image: Tensor, ground: float = 1.0) -> Tensor:
    """Coverage by a black-ish thing on white, from its red channel: 0 where ground, 1 where thing."""
    full = COLOURS["blue"][0] / 127.5 - 1
    return (ground - image[0]) / (ground - full)


def test_pack_is_one_row_a_thing_and_the_ground_last() -> None:
    rows = pack([Scene(things=(thing("star", x=0.3),), ground=WHITE), draw_scene(random.Random(0))])
    assert rows.shape == (2, MAX_THINGS + 1, FEATURES)
    assert rows.dtype == torch.float32
    assert rows[0, 0, 0].item() == pytest.approx(0.3)
    assert (rows[0, 1:MAX_THINGS] == 0).all()
    assert rows[0, -1, 4:7].tolist() == [1, 1, 1]
    assert pack([]).shape == (0, MAX_THINGS + 1, FEATURES)


def test_too_many_things_are_refused() -> None:
    with pytest.raises(ValueError, match="7"):
        pack([Scene(things=(thing("circle"),) * 7, ground=WHITE)])


def test_solid_things_hold_their_colour_at_the_centre() -> None:
    rng = random.Random(3)
    scenes = [draw_scene(rng) for _ in range(16)]
    for scene, image in zip(scenes, render(pack(scenes)), strict=True):
        assert rgb_at(image, 0.002, 0.002) == scene.ground.rgb
        for t in scene.things:
            if t.shape == "ring":
                assert rgb_at(image, t.x, t.y) == scene.ground.rgb
                assert rgb_at(image, t.x + 0.79 * t.radius, t.y) == COLOURS[t.colour]
            elif t.fill == "solid":
                assert rgb_at(image, t.x, t.y) == COLOURS[t.colour], t
            elif t.fill == "outlined":
                assert rgb_at(image, t.x, t.y) == scene.ground.rgb, t


NOTCH = 0.47
CROSS_HALF = 0.29
AREAS = {
    "circle": math.pi,
    "square": 2.0,
    "triangle": 3 * math.sqrt(3) / 4,
    "half-circle": math.pi * 0.8 / 2,
    "star": 5 * NOTCH * math.sin(math.pi / 5),
    "cross": 8 * CROSS_HALF * math.sqrt(1 - CROSS_HALF**2) - 4 * CROSS_HALF**2,
    "ring": math.pi * (1 - 0.58**2),
    "line": 4 * 0.11 * math.sqrt(1 - 0.11**2),
}
"""In units of the squared radius, from school geometry."""


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("angle", [0.0, 0.7])
def test_areas_agree_with_geometry_and_stay_in_the_bounding_circle(shape: str, angle: float) -> None:
    coverage = covered(picture(thing(shape, angle=angle)))
    area = coverage.sum().item() / 256**2
    assert area == pytest.approx(AREAS[shape] * 0.18**2, rel=0.015)
    rows, columns = torch.nonzero(coverage > 0.5, as_tuple=True)
    distance = torch.hypot((columns + 0.5) / 256 - 0.5, (rows + 0.5) / 256 - 0.5).max().item()
    assert distance == pytest.approx(0.18, abs=0.008)


def test_outlines_and_stripes_let_the_ground_through() -> None:
    for shape in ("square", "triangle", "half-circle"):
        solid, outlined, striped = (
            covered(picture(thing(shape, fill=fill))) for fill in ("solid", "outlined", "striped")
        )
        assert outlined.sum() < 0.75 * solid.sum()
        assert outlined.sum() < striped.sum() < 0.85 * solid.sum()
        assert ((outlined <= solid + 1e-5) & (striped <= solid + 1e-5)).all(), "no wider than the solid shape"


def test_thin_parts_carry_their_colour() -> None:
    line = covered(picture(thing("line", radius=0.062)))
    assert line[:, 128].sum() >= 5, "pixels across a small line"
    square = covered(picture(thing("square", radius=0.1, fill="outlined")))
    assert square[128, :128].sum() >= 3, "pixels across a band"


def test_left_is_left_and_above_is_above() -> None:
    image = picture(thing("circle", "red", x=0.25, y=0.75), thing("square", "blue", x=0.75, y=0.25))
    reds = torch.nonzero((image[0] > 0.4) & (image[2] < 0)).float().mean(0)
    blues = torch.nonzero((image[0] < 0) & (image[2] > 0.4)).float().mean(0)
    assert reds.tolist() == pytest.approx([0.75 * 256, 0.25 * 256], abs=1)
    assert blues.tolist() == pytest.approx([0.25 * 256, 0.75 * 256], abs=1)


def test_triangles_and_stars_point_up_and_angles_turn_clockwise() -> None:
    for shape in ("triangle", "star"):
        assert rgb_at(picture(thing(shape)), 0.5, 0.5 - 0.16) == COLOURS["blue"]
        assert rgb_at(picture(thing(shape)), 0.5, 0.5 + 0.16) == (255, 255, 255)
        turned = picture(thing(shape, angle=math.pi / 2))
        assert rgb_at(turned, 0.5 + 0.16, 0.5) == COLOURS["blue"]


def test_edges_are_about_a_pixel_soft_and_values_stay_in_range() -> None:
    coverage = covered(picture(thing("circle")))
    soft = ((coverage > 0.02) & (coverage < 0.98)).sum().item()
    around = 2 * math.pi * 0.18 * 256
    assert 0.7 * around < soft < 1.6 * around
    rng = random.Random(4)
    images = render(pack([draw_scene(rng) for _ in range(16)]), 128)
    assert images.dtype == torch.float32
    assert images.min() >= -1
    assert images.max() <= 1


def test_a_batch_equals_its_scenes_alone_and_sizes_agree() -> None:
    rng = random.Random(5)
    packed = pack([draw_scene(rng) for _ in range(6)])
    batch = render(packed, 64)
    assert batch.shape == (6, 3, 64, 64)
    for row, image in zip(packed, batch, strict=True):
        torch.testing.assert_close(render(row[None], 64)[0], image, rtol=0, atol=1e-6)
    coarse = torch.nn.functional.avg_pool2d(render(packed[:2], 256), 4)
    assert (coarse - batch[:2]).abs().mean() < 0.01


def test_rendering_compiles_to_one_graph() -> None:
    packed = pack([draw_scene(random.Random(6))])
    compiled = torch.compile(render, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(packed, 32), render(packed, 32))
