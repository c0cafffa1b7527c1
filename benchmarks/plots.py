"""A plot of a results file, drawn with Pillow: seconds of a picture by tier of memory, or by way of drawing.

    python benchmarks/plots.py benchmarks/results/2026-11-28-memory-h100.json docs/images/memory-tiers.png
    python benchmarks/plots.py benchmarks/results/2026-11-28-drawing-h200-fast.json docs/images/drawing-ways.png

By tier, bars are drawing and editing; a line across each is what it may take at most, the target's multiple of the
resident row of its task. A tier without a row is said to be not measured. By way, lines are what products and attention
alone would take.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from memory import TARGETS
from PIL import Image, ImageDraw, ImageFont

TASKS = {"drawing": (62, 111, 176), "editing": (190, 104, 20)}
"""Each with its colour."""

WHO = {"diffusers": (126, 126, 126), "ours": (62, 111, 176)}
FLOORS = {"bfloat16": 7.2, "float8": 4.5}
"""Seconds that products and attention alone would take on an H200 (docs/performance.md)."""

LIMIT = (178, 34, 52)
INK = (34, 34, 34)
PALE = (222, 222, 222)

WIDTH, HEIGHT = 1240, 640
LEFT, RIGHT, TOP, BOTTOM = 80, 24, 76, 84
BAR = 62
TICK = 5
"""Seconds between two lines of the scale."""


class Plot:
    """A picture with a scale of seconds from 0 to `highest`."""

    def __init__(self, highest: float):
        self.highest = TICK * (int(highest) // TICK + 1)
        self.image = Image.new("RGB", (WIDTH, HEIGHT), "white")
        self.pen = ImageDraw.Draw(self.image)
        for seconds in range(0, self.highest + 1, TICK):
            y = self.y(seconds)
            self.pen.line([(LEFT, y), (WIDTH - RIGHT, y)], fill=PALE if seconds else INK)
            self.text((LEFT - 10, y), str(seconds), anchor="rm")

    def y(self, seconds: float) -> int:
        """The row of pixels that stands for so many seconds."""
        return round(HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * seconds / self.highest)

    def text(self, at: tuple[float, float], words: str, size: int = 17, **how: Any) -> None:
        """Words; `anchor` as Pillow has it."""
        how.setdefault("fill", INK)
        self.pen.text(at, words, font=ImageFont.load_default(size), **how)

    def bar(self, x: int, row: dict[str, Any] | None, task: str, limit: float | None) -> None:
        """One row's seconds around x, and its limit."""
        if row is None:
            self.text((x, self.y(0) - 8), "not\nmeasured", 13, anchor="md", align="center", fill=TASKS[task])
            return
        top = self.y(row["seconds"])
        self.pen.rectangle([(x - BAR // 2, top), (x + BAR // 2 - 4, self.y(0) - 1)], fill=TASKS[task])
        self.text((x - 2, top + 6), f"{row['seconds']:.1f}", anchor="ma", fill="white")
        if limit is not None:
            y = self.y(limit)
            self.pen.line([(x - BAR // 2 - 2, y), (x + BAR // 2 - 2, y)], fill=LIMIT, width=3)
            self.text(
                (x - 2, y - 5),
                f"{limit:.1f}",
                14,
                anchor="md",
                fill=LIMIT,
                stroke_width=3,
                stroke_fill="white",
            )

    def legend(self, title: str, kinds: dict[str, tuple[int, int, int]], limit: str) -> None:
        """What it is of, what the colours are, and what a line is."""
        self.text((LEFT, 14), title, 20)
        x = LEFT
        for words, colour in (*kinds.items(), (limit, LIMIT)):
            thick = 3 if colour == LIMIT else 14
            self.pen.rectangle([(x, 57 - thick // 2), (x + 22, 57 + thick // 2)], fill=colour)
            self.text((x + 30, 57), words, anchor="lm")
            x += 60 + round(ImageFont.load_default(17).getlength(words))


def tiers_of_memory(found: dict[str, Any]) -> Image.Image:
    """The plot of what `benchmarks/memory.py` measured, rows of one size only."""
    tiers = [None, *TARGETS]
    size = found["rows"][0]["size"]
    rows = {(row["gigabytes"], row["task"]): row for row in found["rows"] if row["size"] == size}
    limits = {
        (tier, task): times * rows[None, task]["seconds"] for tier, times in TARGETS.items() for task in TASKS
    }
    plot = Plot(max([*limits.values(), *(row["seconds"] for row in rows.values())]))
    plot.legend(
        f"Seconds from prompt to PNG by memory of the device, {size} x {size}, {found['rows'][0]['steps']} steps",
        TASKS,
        "at most (target)",
    )
    apart = (WIDTH - LEFT - RIGHT) / len(tiers)
    for place, tier in enumerate(tiers):
        middle = round(LEFT + apart * (place + 0.5))
        for task, side in zip(TASKS, (-1, 1), strict=True):
            plot.bar(middle + side * BAR // 2, rows.get((tier, task)), task, limits.get((tier, task)))
        name = (
            "all weights\non the device" if tier is None else f"{tier} GB\nat most {TARGETS[tier]:.2f} times"
        )
        plot.text((middle, plot.y(0) + 10), name, 15, anchor="ma", align="center")
    return plot.image


def ways_of_drawing(found: dict[str, Any]) -> Image.Image:
    """The plot of what `benchmarks/generate.py` measured in its sections ways and torchao, the slowest first."""
    rows = [*found["sections"]["ways"], *found["sections"].get("torchao", [])]
    rows.sort(key=lambda row: -row["seconds"])
    plot = Plot(max(row["seconds"] for row in rows))
    floors = " and ".join(f"{seconds} in {dtype}" for dtype, seconds in FLOORS.items())
    title = "Seconds from embeddings to latents, 1024 x 1024, 50 steps with guidance"
    plot.legend(title, WHO, f"products and attention alone: {floors}")
    apart = (WIDTH - LEFT - RIGHT) / len(rows)
    for place, row in enumerate(rows):
        middle = round(LEFT + apart * (place + 0.5))
        top = plot.y(row["seconds"])
        who, _, way = row["way"].partition(" ")
        plot.pen.rectangle([(middle - BAR // 2, top), (middle + BAR // 2, plot.y(0) - 1)], fill=WHO[who])
        plot.text((middle, top - 6), f"{row['seconds']:.1f}", anchor="md")
        words = f"{who}\n{way.replace(' ', chr(10), 1).replace('+ ', '')}"
        plot.text((middle, plot.y(0) + 8), words, 15, anchor="ma", align="center")
    for seconds in FLOORS.values():
        plot.pen.line([(LEFT, plot.y(seconds)), (WIDTH - RIGHT, plot.y(seconds))], fill=LIMIT, width=2)
    return plot.image


def main() -> None:
    """The command line."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("results", type=Path)
    arguments.add_argument("output", type=Path)
    given = arguments.parse_args()
    found = json.loads(given.results.read_text(encoding="utf-8"))
    if "rows" in found and "gigabytes" in found["rows"][0]:
        picture = tiers_of_memory(found)
    elif "ways" in found.get("sections", {}):
        picture = ways_of_drawing(found)
    else:
        arguments.error(f"{given.results} is neither of benchmarks/memory.py nor of benchmarks/generate.py.")
    picture.quantize(64).save(given.output, optimize=True)


if __name__ == "__main__":
    main()
