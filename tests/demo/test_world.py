"""Scenes keep their promises: what is withheld, what stays apart, what can be told from the ground."""

import itertools
import math
import random
import time

import pytest

from kandinsky5.demo.layout import position_of
from kandinsky5.demo.palette import MIN_CONTRAST, lab, lab_distance, neutral
from kandinsky5.demo.world import (
    COLOURS,
    FILLS,
    GROUNDS,
    MAX_THINGS,
    POSITIONS,
    RELATIONS,
    SHAPES,
    SIZES,
    WITHHELD,
    WITHHELD_SIDES,
    Scene,
    draw_scene,
    is_withheld,
    withheld_relations,
)

SCENES = 3000


def drawn(split: str, seed: int, n: int = SCENES) -> list[Scene]:
    rng = random.Random(seed)
    return [draw_scene(rng, split=split) for _ in range(n)]


@pytest.fixture(scope="module")
def train() -> list[Scene]:
    return drawn("train", 1)


@pytest.fixture(scope="module")
def withheld() -> list[Scene]:
    return drawn("withheld", 2)


@pytest.fixture(scope="module")
def related() -> list[Scene]:
    return drawn("related", 3, 300)


def sides_of(scene: Scene) -> set[tuple[str, str, str]]:
    """(shape, relation, shape) of a scene, found without the world's own way to look for withheld ones."""
    groups = scene.groups()
    return {
        (a[0].shape, name, b[0].shape)
        for a, b in itertools.permutations(groups, 2)
        for name, relation in RELATIONS.items()
        if relation.holds([(t.x, t.y) for t in a], [(t.x, t.y) for t in b])
    }


def centres_apart(scene: Scene) -> None:
    """Things keep a gap between them and to the edges."""
    for a, b in itertools.combinations(scene.things, 2):
        assert math.hypot(a.x - b.x, a.y - b.y) - a.radius - b.radius >= 0.03
    for thing in scene.things:
        assert min(thing.x, thing.y, 1 - thing.x, 1 - thing.y) - thing.radius >= 0.02


def pairs_of(scene: Scene) -> set[tuple[str, str]]:
    return {(thing.colour, thing.shape) for thing in scene.things}


def test_withheld_pairs_are_an_eighth_and_cover_every_colour_and_shape() -> None:
    assert len(WITHHELD) >= 0.12 * len(COLOURS) * len(SHAPES)
    assert {colour for colour, _ in WITHHELD} == set(COLOURS)
    assert {shape for _, shape in WITHHELD} == set(SHAPES)


def test_training_sees_every_pair_but_the_withheld(train: list[Scene]) -> None:
    seen = set().union(*map(pairs_of, train))
    assert seen == set(itertools.product(COLOURS, SHAPES)) - WITHHELD


def test_withheld_scenes_hold_nothing_else_and_two_groups_or_more(withheld: list[Scene]) -> None:
    assert set().union(*map(pairs_of, withheld)) == WITHHELD
    assert min(len(scene.groups()) for scene in withheld) == 2


def test_withheld_sides_leave_every_shape_most_partners_and_both_axes_alike() -> None:
    assert len(WITHHELD_SIDES) == 32
    for shape in SHAPES:
        for name in RELATIONS:
            partners = {b for a, held, b in WITHHELD_SIDES if (a, held) == (shape, name)}
            assert len(partners) == 1 and shape not in partners
    for a, name, b in WITHHELD_SIDES:
        assert {(a, RELATIONS[name].inverse, b), (b, name, a)} <= WITHHELD_SIDES


def test_training_sees_every_side_but_the_withheld(train: list[Scene]) -> None:
    seen = set().union(*map(sides_of, train))
    assert seen == set(itertools.product(SHAPES, RELATIONS, SHAPES)) - WITHHELD_SIDES
    assert not any(map(is_withheld, train))


def test_related_scenes_hold_a_withheld_side_of_trained_pairs(related: list[Scene]) -> None:
    for scene in related:
        assert sides_of(scene) & WITHHELD_SIDES
        assert not pairs_of(scene) & WITHHELD
        assert is_withheld(scene)
    assert set().union(*map(sides_of, related)) >= WITHHELD_SIDES


def test_scenes_of_withheld_pairs_are_withheld(withheld: list[Scene]) -> None:
    assert all(map(is_withheld, withheld))
    assert withheld_relations(["circle", "star"], [[(0.2, 0.5)], [(0.8, 0.5)]]) == [
        (0, "left of", 1),
        (1, "right of", 0),
    ]
    assert withheld_relations(["circle", "star"], [[(0.5, 0.2)], [(0.5, 0.8)]]) == []


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="test"):
        draw_scene(random.Random(0), split="test")  # type: ignore[arg-type]


@pytest.mark.parametrize("split", ["train", "withheld", "related"])
def test_things_keep_apart_and_on_the_canvas(split: str, request: pytest.FixtureRequest) -> None:
    for scene in request.getfixturevalue(split):
        assert 1 <= len(scene.things) <= MAX_THINGS
        centres_apart(scene)


@pytest.mark.parametrize("split", ["train", "withheld", "related"])
def test_things_stand_out_against_the_ground(split: str, request: pytest.FixtureRequest) -> None:
    for scene in request.getfixturevalue(split):
        assert scene.ground.name is None or scene.ground.rgb == GROUNDS[scene.ground.name]
        for colour, _ in pairs_of(scene):
            assert lab_distance(COLOURS[colour], scene.ground.rgb) >= MIN_CONTRAST


def test_groups_are_equal_things_and_fill_the_world(train: list[Scene]) -> None:
    kinds = set()
    for scene in train:
        assert 1 <= len(scene.groups()) <= 4
        for group in scene.groups():
            assert len({(t.shape, t.colour, t.size, t.fill, t.radius) for t in group}) == 1
            thing = group[0]
            low, high = SIZES[thing.size]
            assert low <= thing.radius <= high
            shapes, sizes = FILLS[thing.fill]
            assert thing.shape in shapes
            assert thing.size in sizes
            kinds |= {thing.size, thing.fill, len(group)}
    assert kinds == {*SIZES, *FILLS, 1, 2, 3, 4, 5}
    assert {scene.ground.name for scene in train} == {*GROUNDS, None}


def test_sizes_leave_gaps_and_survive_the_autoencoder() -> None:
    bounds = sorted(SIZES.values())
    assert bounds[0][0] * 256 >= 14
    assert all(after[0] / before[1] > 1.25 for before, after in itertools.pairwise(bounds))


def test_the_nearest_colour_is_a_safe_reading() -> None:
    assert min(lab_distance(a, b) for a, b in itertools.combinations(COLOURS.values(), 2)) > 35
    grounds = [*GROUNDS.values(), neutral(0.5).rgb]
    assert min(lab_distance(a, b) for a, b in itertools.combinations(grounds, 2)) > 14
    for end in (neutral(0.0), neutral(1.0)):
        lightness, a, b = lab(end.rgb)
        assert lightness > 80
        assert math.hypot(a, b) < 12
        assert min(lab_distance(end.rgb, colour) for colour in COLOURS.values()) >= MIN_CONTRAST


def test_lab_agrees_with_published_values() -> None:
    """SRGB primaries under D65, as tabulated by Lindbloom's calculator."""
    assert lab((255, 255, 255)) == pytest.approx((100, 0, 0), abs=0.02)
    assert lab((255, 0, 0)) == pytest.approx((53.24, 80.09, 67.20), abs=0.03)
    assert lab((0, 0, 255)) == pytest.approx((32.30, 79.19, -107.86), abs=0.03)


def test_relations_need_distance_and_a_clear_axis() -> None:
    left, right = [(0.2, 0.5)], [(0.7, 0.55)]
    assert {name for name, r in RELATIONS.items() if r.holds(left, right)} == {"left of"}
    assert {name for name, r in RELATIONS.items() if r.holds(right, left)} == {"right of"}
    assert {name for name, r in RELATIONS.items() if r.holds([(0.5, 0.2)], [(0.5, 0.6)])} == {"above"}
    assert not any(r.holds([(0.2, 0.2)], [(0.6, 0.6)]) for r in RELATIONS.values()), "a diagonal is no side"
    assert not any(r.holds([(0.5, 0.5)], [(0.6, 0.5)]) for r in RELATIONS.values()), "too near"
    assert not any(r.holds([(0.1, 0.5), (0.6, 0.5)], [(0.55, 0.5)] * 2) for r in RELATIONS.values()), (
        "astride"
    )
    for name, relation in RELATIONS.items():
        assert RELATIONS[relation.inverse].inverse == name


def test_positions_are_a_grid_of_nine() -> None:
    assert {
        name: position_of([(0.2 + 0.3 * column, 0.2 + 0.3 * row)])
        for name, (column, row) in POSITIONS.items()
    } == {name: name for name in POSITIONS}
    assert position_of([(0.365, 0.5)]) is None
    assert position_of([(0.05, 0.5), (0.55, 0.5)]) is None, "spread over both halves"


def test_scenes_of_several_groups_mostly_hold_a_relation(train: list[Scene]) -> None:
    several = [scene.groups() for scene in train if len(scene.groups()) > 1]
    centres = [[[(t.x, t.y) for t in group] for group in groups] for groups in several]
    counts = dict.fromkeys(RELATIONS, 0)
    related = 0
    for groups in centres:
        held = {
            n for n, r in RELATIONS.items() for a, b in itertools.permutations(groups, 2) if r.holds(a, b)
        }
        related += bool(held)
        for a, b in itertools.combinations(groups, 2):
            for name, relation in RELATIONS.items():
                counts[name] += relation.holds(a, b)
    assert related > 0.8 * len(several)
    assert max(counts.values()) < 1.2 * min(counts.values())


def test_the_same_seed_draws_the_same_scene() -> None:
    assert drawn("train", 5, 20) == drawn("train", 5, 20)
    assert drawn("train", 5, 20) != drawn("train", 6, 20)


def test_drawing_keeps_up_with_training() -> None:
    rng = random.Random(0)
    draw_scene(rng)
    start = time.process_time()
    for _ in range(500):
        draw_scene(rng)
    assert (time.process_time() - start) / 500 < 0.5e-3
