"""Pairing claims with what is seen, and the table and the sheet of failures."""

import random

import numpy as np
import pytest

from kandinsky5.demo.captions import describe
from kandinsky5.demo.claims import Claims, Group, Related
from kandinsky5.demo.examination import true_picture
from kandinsky5.demo.failures import failing_cells, failure_sheet, faults
from kandinsky5.demo.recognition import NEUTRAL, Found, Sight, look
from kandinsky5.demo.scorer import Report, checked, score
from kandinsky5.demo.sheets import BACKGROUND, BETWEEN, CELL_WIDTH
from kandinsky5.demo.tables import MEASURES, Tally, as_json, as_text, tabulate
from kandinsky5.demo.world import Scene, draw_scene


def seen(colour: str, shape: str | None, x: float = 0.5, y: float = 0.5, **changes: str) -> Found:
    settings: dict[str, str] = {"fill": "solid", "size": "medium"} | changes
    return Found(
        colour=colour,
        shape=shape,
        x=x,
        y=y,
        radius=0.11,
        rgb=(1, 2, 3),
        deviation=0.01,
        fill=settings["fill"],
        size=settings["size"],
    )


def said(count: int, colour: str | None, shape: str, **changes: str) -> Group:
    return Group(
        count=count,
        colour=colour,
        shape=shape,
        size=changes.get("size"),
        fill=changes.get("fill"),
        position=changes.get("position"),
    )


def report(
    things: list[Found], groups: list[Group], *relations: Related, ground: str | None = None
) -> Report:
    sight = Sight(ground=NEUTRAL, ground_rgb=(210, 202, 186), things=tuple(things))
    return checked(sight, Claims(groups=tuple(groups), relations=relations, ground=ground))


def test_claims_are_paired_with_what_suits_them_best() -> None:
    # In the order found, the first red thing would take the place of the second.
    result = report(
        [seen("red", "square"), seen("blue", "circle"), seen("red", "circle")],
        [said(1, "red", "circle"), said(1, "red", "square"), said(1, "blue", "circle")],
    )
    assert [check.found for check in result.objects] == [2, 0, 1]
    assert result.whole


def test_unclaimed_attributes_do_not_matter_and_no_fill_means_solid() -> None:
    assert report([seen("red", "star", size="large")], [said(1, None, "star")]).whole
    assert not report([seen("red", "star", size="large")], [said(1, None, "star", size="small")]).whole
    assert not report([seen("red", "star", fill="outlined")], [said(1, "red", "star")]).whole
    assert report([seen("red", "star", fill="outlined")], [said(1, "red", "star", fill="outlined")]).whole


def test_a_thing_that_agrees_in_nothing_is_extra() -> None:
    result = report([seen("green", "cross")], [said(1, "red", "star")])
    assert result.objects[0].found is None
    assert result.extra == (0,)
    shapeless = report([seen("green", None)], [said(1, None, "star")])
    assert shapeless.objects[0].found is None, "no shape, and no colour was claimed"


def test_counts_are_of_the_kind_wherever_it_is() -> None:
    two = [seen("red", "star", 0.2), seen("red", "star", 0.5)]
    for number, right in ((1, False), (2, True), (3, False)):
        assert report(two, [said(number, "red", "star")]).counts == ((right, 2),)
    sized = report([*two, seen("red", "star", 0.8, size="small")], [said(2, "red", "star", size="medium")])
    assert sized.counts == ((False, 3),), "two medium stars, but three stars"


@pytest.mark.parametrize(
    ("ax", "ay", "right"),
    [
        (0.2, 0.5, True),
        (0.44, 0.5, True),
        (0.46, 0.5, False),
        (0.7, 0.5, False),
        (0.4, 0.31, True),
        (0.4, 0.29, False),
    ],
)
def test_a_side_need_not_be_square_on_but_must_be_that_side(ax: float, ay: float, right: bool) -> None:
    things = [seen("red", "star", ax, ay), seen("blue", "ring", 0.5, 0.5)]
    groups = [said(1, "red", "star"), said(1, "blue", "ring")]
    for a, b, name in ((0, 1, "left of"), (1, 0, "right of")):
        [check] = report(things, groups, (a, name, b)).relations
        assert (check.right, check.sure) == (right, True)
    turned = [seen("red", "star", ay, ax), seen("blue", "ring", 0.5, 0.5)]
    for a, b, name in ((0, 1, "above"), (1, 0, "below")):
        assert report(turned, groups, (a, name, b)).relations[0].right == right


def test_a_relation_is_judged_of_what_was_meant_and_said_to_be_unsure() -> None:
    groups = [said(1, "red", "star"), said(1, "blue", "ring")]
    of_another_colour = [seen("orange", "star", 0.2), seen("blue", "ring", 0.8)]
    [check] = report(of_another_colour, groups, (0, "left of", 1)).relations
    assert check.right
    assert not check.sure
    [check] = report(of_another_colour[1:], groups, (0, "left of", 1)).relations
    assert not check.right, "there is nothing to stand anywhere"


def test_places_overlap_a_little_but_not_more() -> None:
    for x, names in (
        (0.2, {"left"}),
        (0.4, {"left", "centre"}),
        (0.5, {"centre"}),
        (0.6, {"centre", "right"}),
    ):
        held = {
            name
            for name in ("left", "centre", "right")
            if report([seen("red", "star", x)], [said(1, "red", "star", position=name)]).whole
        }
        assert held == names
    corner = [seen("red", "star", 0.8, 0.2)]
    assert report(corner, [said(1, "red", "star", position="top right")]).whole
    assert not report(corner, [said(1, "red", "star", position="right")]).whole


def test_the_table_counts_every_judgement_once() -> None:
    groups = [said(2, "red", "star", size="large"), said(1, None, "ring", position="left")]
    things = [
        seen("red", "star", 0.7, size="large"),
        seen("red", "ring", 0.2),
        seen("red", "cross", 0.2, 0.9),
    ]
    table = tabulate([report(things, groups, (1, "left of", 0), ground="white"), report([], [])])
    assert list(table) == list(MEASURES)
    expected = {
        "objects": (2, 3),
        "counts": (1, 2),
        "relations": (1, 1),
        "positions": (1, 1),
        "ground": (1, 2),
        "whole": (1, 2),
        "found": (3, 3),
        "colours": (2, 2),
        "shapes": (2, 3),
        "fills": (3, 3),
        "sizes": (1, 2),
        "counts of several": (0, 1),
        "relations, strictly": (1, 1),
        "named grounds": (0, 1),
        "nothing extra": (2, 2),
    }
    assert {name: (tally.right, tally.cases) for name, tally in table.items()} == expected
    assert "objects               66.7%      2 of 3" in as_text(table)
    assert as_json(table)["counts"] == {"right": 1, "cases": 2, "share": 0.5}
    assert Tally().share is None
    assert " -  " in as_text(tabulate([]))


def test_the_sheet_shows_failures_only() -> None:
    rng = random.Random(9)
    scenes = [draw_scene(rng, split="withheld") for _ in range(7)]
    captions = [describe(scene, rng) for scene in scenes]
    scenes[5] = Scene(things=(), ground=scenes[5].ground)
    images = [true_picture(scene, 256) for scene in scenes]
    reports = [score(image, caption.claims) for image, caption in zip(images, captions, strict=True)]
    assert [bool(faults(one)) for one in reports] == [not one.whole for one in reports]
    assert faults(reports[5])[0].startswith("no ")
    cells = failing_cells(images, reports, [caption.text for caption in captions])
    sheet = np.asarray(failure_sheet(cells))
    assert sheet.shape[1] == 6 * CELL_WIDTH + 5 * BETWEEN
    np.testing.assert_array_equal(sheet[:CELL_WIDTH, :CELL_WIDTH], images[5])
    assert (sheet[:CELL_WIDTH, CELL_WIDTH:] == BACKGROUND).all(), "only one is wrong"
    assert (sheet[CELL_WIDTH:, :CELL_WIDTH] != BACKGROUND).any(), "with words under it"


def test_every_fault_has_words() -> None:
    things = [
        seen("red", "star", 0.7, fill="outlined"),
        seen("blue", None, 0.2),
        seen("grey", "cross", 0.2, 0.9),
    ]
    groups = [said(2, "red", "star", position="left"), said(1, "blue", "ring")]
    assert faults(report(things, groups, (0, "left of", 1), ground="white")) == [
        "red star: medium outlined red star",
        "no red star",
        "blue ring: medium solid blue shapeless (0.010)",
        "1 of 2 red star",
        "0 of 1 blue ring",
        "red star not left of blue ring",
        "red star not left",
        "ground neutral",
        "extra medium solid grey cross",
    ]


def test_an_empty_picture_shows_nothing_of_what_is_claimed() -> None:
    claims = Claims(groups=(said(2, "red", "star", position="left"),), relations=(), ground="white")
    white = np.full((64, 64, 3), 255, dtype=np.uint8)
    result = checked(look(white), claims)
    assert result.ground
    assert not any(check.found is not None or check.right for check in result.objects)
    assert result.positions == ((0, False),)
