"""What is wrong in a picture, in words, and sheets of such pictures to look at.

Comes in: pictures, reports of `scorer` or `edit_scorer`, captions. Goes out: short phrases, and one PIL picture. Knows
nothing of how things are recognised or counted.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kandinsky5.demo.claims import Group
from kandinsky5.demo.edit_scorer import EditReport
from kandinsky5.demo.recognition import Found
from kandinsky5.demo.scorer import Report
from kandinsky5.demo.sheets import Cell, sheet_of

MOST = 60
"""Cells on a sheet."""
COLUMNS = 6
"""Pictures across it."""
LINES = 7
"""Lines of words under each."""


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


def edit_faults(report: EditReport) -> list[str]:
    """What is wrong in an edit: what was not done, then what else changed."""
    return [*report.undone, *report.lost]


def failing_cells(
    images: Sequence[NDArray[np.uint8]], reports: Sequence[Report], captions: Sequence[str]
) -> list[Cell]:
    """The pictures that are not wholly right, with caption and faults."""
    return [
        Cell(pictures=(image,), text=caption, remark="; ".join(faults(report)))
        for image, report, caption in zip(images, reports, captions, strict=True)
        if not report.whole
    ]


def failing_edit_cells(
    sources: Sequence[NDArray[np.uint8]],
    results: Sequence[NDArray[np.uint8]],
    reports: Sequence[EditReport],
    instructions: Sequence[str],
) -> list[Cell]:
    """The edits that are not wholly right, source beside result, with instruction and faults."""
    return [
        Cell(pictures=(source, result), text=text, remark="; ".join(edit_faults(report)))
        for source, result, report, text in zip(sources, results, reports, instructions, strict=True)
        if not report.whole
    ]


def failure_sheet(cells: Sequence[Cell], *, most: int = MOST) -> Image.Image:
    """The first `most` of these as one RGB picture."""
    columns = COLUMNS // max((len(cell.pictures) for cell in cells), default=1)
    return sheet_of(cells[:most], columns=columns, lines=LINES)


def _claimed(group: Group) -> str:
    return " ".join(part for part in (group.size, group.fill, group.colour, group.shape) if part)


def _short(group: Group) -> str:
    return f"{group.colour} {group.shape}" if group.colour else group.shape


def _seen(thing: Found) -> str:
    shape = thing.shape or f"shapeless ({thing.deviation:.3f})"
    return f"{thing.size} {thing.fill or 'half-filled'} {thing.colour or thing.rgb} {shape}"
