"""Many pictures on one sheet: with words under them, to look at, or edge to edge, to be taken apart again.

Comes in: pictures, or cells of one or more pictures, a text, and remarks. Goes out: one PIL picture. Knows nothing of
what the pictures show.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

CELL_WIDTH = 256
LINE_HEIGHT = 13
LINE_LENGTH = 44
"""Characters of text across one picture."""
BACKGROUND = (234, 234, 234)
"""Not white, as many pictures are."""
BETWEEN = 4
"""Pixels between the pictures of one cell."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """Pictures (S, S, 3) uint8 side by side, a text under them, and a remark in red."""

    pictures: tuple[NDArray[np.uint8], ...]
    text: str
    remark: str = ""


def tiled(pictures: Sequence[NDArray[np.uint8]], *, columns: int) -> Image.Image:
    """Pictures (S, S, 3) uint8 row by row without gaps, at their own size; cells left over are black."""
    side = len(pictures[0])
    sheet = Image.new("RGB", (columns * side, -(-len(pictures) // columns) * side))
    for place, picture in enumerate(pictures):
        sheet.paste(Image.fromarray(picture), (place % columns * side, place // columns * side))
    return sheet


def untiled(sheet: Image.Image, *, columns: int, count: int) -> list[NDArray[np.uint8]]:
    """The pictures of a sheet that `tiled` made. Raises ValueError for a sheet that is not of so many."""
    side = sheet.width // columns
    if sheet.size != (columns * side, -(-count // columns) * side):
        raise ValueError(
            f"{sheet.width}x{sheet.height} is no sheet of {count} pictures in {columns} columns."
        )
    pixels = np.asarray(sheet.convert("RGB"))
    places = (divmod(number, columns) for number in range(count))
    return [pixels[row * side : (row + 1) * side, at * side : (at + 1) * side] for row, at in places]


def sheet_of(cells: Sequence[Cell], *, columns: int, lines: int) -> Image.Image:
    """An RGB picture of all cells, row by row, with room for so many lines of words; longer texts are cut.

    Cells hold as many pictures each; a sheet without cells is one empty row.
    """
    pictures = max((len(cell.pictures) for cell in cells), default=1)
    width = pictures * CELL_WIDTH + (pictures - 1) * BETWEEN
    height = CELL_WIDTH + lines * LINE_HEIGHT + 2
    rows = max(-(-len(cells) // columns), 1)
    sheet = Image.new("RGB", (columns * (width + BETWEEN) - BETWEEN, rows * height), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for place, cell in enumerate(cells):
        x, y = place % columns * (width + BETWEEN), place // columns * height
        for number, picture in enumerate(cell.pictures):
            at = (x + number * (CELL_WIDTH + BETWEEN), y)
            sheet.paste(Image.fromarray(picture).resize((CELL_WIDTH, CELL_WIDTH)), at)
        across = LINE_LENGTH * pictures
        # At least one line is left to the remark.
        words = [(line, "black") for line in textwrap.wrap(cell.text, across)[: lines - bool(cell.remark)]]
        words += [(line, "red") for line in textwrap.wrap(cell.remark, across)]
        for number, (line, colour) in enumerate(words[:lines]):
            draw.text((x + 3, y + CELL_WIDTH + 1 + number * LINE_HEIGHT), line, fill=colour, font=font)
    return sheet
