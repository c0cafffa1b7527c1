"""What is wrong in a picture, in words, and a sheet of such pictures to look at.

Comes in: pictures, reports of `scorer`, captions. Goes out: short phrases, and one PIL picture. Knows nothing of how
things are recognised or counted.
"""

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from kandinsky5.demo.claims import Group
from kandinsky5.demo.recognition import Found
from kandinsky5.demo.scorer import Report

CELL_WIDTH = 256
TEXT_HEIGHT = 92
LINE_HEIGHT = 13
LINE_LENGTH = 44
"""Characters of text across a cell."""


def faults(report: Report) -> list[str]:
    """What is wrong in a picture, a phrase each; empty for one that is wholly right."""
    groups, things = report.claims.groups, report.sight.things
    found: list[str] = []
    for check in report.objects:
        if check.found is None:
            found.append(f"no {_claimed(groups[check.group])}")
        elif not check.right:
            found.append(f"{_claimed(groups[check.group])}: {_seen(things[check.found])}")
    for group, (right, number) in zip(groups, report.counts, strict=True):
        if not right:
            found.append(f"{number} of {group.count} {group.colour or ''} {group.shape}".replace("  ", " "))
    for relation in report.relations:
        if not relation.right:
            a, name, b = relation.related
            found.append(f"{_short(groups[a])} not {name} {_short(groups[b])}")
    found += [
        f"{_short(groups[index])} not {groups[index].position}"
        for index, right in report.positions
        if not right
    ]
    if not report.ground:
        found.append(f"ground {report.sight.ground or report.sight.ground_rgb}")
    return found + [f"extra {_seen(things[index])}" for index in report.extra]


def failure_grid(
    images: Sequence[NDArray[np.uint8]],
    reports: Sequence[Report],
    captions: Sequence[str],
    *,
    columns: int = 6,
    most: int = 60,
) -> Image.Image:
    """The first `most` pictures that are not wholly right, with caption and faults under each, as one RGB picture."""
    wrong = [index for index, report in enumerate(reports) if not report.whole][:most]
    height = CELL_WIDTH + TEXT_HEIGHT
    rows = max(-(-len(wrong) // columns), 1)
    sheet = Image.new("RGB", (columns * CELL_WIDTH, rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for place, index in enumerate(wrong):
        x, y = place % columns * CELL_WIDTH, place // columns * height
        sheet.paste(Image.fromarray(images[index]).resize((CELL_WIDTH, CELL_WIDTH)), (x, y))
        lines = [(line, "black") for line in textwrap.wrap(captions[index], LINE_LENGTH)[:4]]
        lines += [(line, "red") for line in textwrap.wrap("; ".join(faults(reports[index])), LINE_LENGTH)]
        for number, (line, colour) in enumerate(lines[: TEXT_HEIGHT // LINE_HEIGHT]):
            draw.text((x + 3, y + CELL_WIDTH + 1 + number * LINE_HEIGHT), line, fill=colour, font=font)
    return sheet


def _claimed(group: Group) -> str:
    return " ".join(part for part in (group.size, group.fill, group.colour, group.shape) if part)


def _short(group: Group) -> str:
    return f"{group.colour} {group.shape}" if group.colour else group.shape


def _seen(thing: Found) -> str:
    shape = thing.shape or f"shapeless ({thing.deviation:.3f})"
    return f"{thing.size} {thing.fill or 'half-filled'} {thing.colour or thing.rgb} {shape}"
