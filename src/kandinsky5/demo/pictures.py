"""The pictures of `docs/demo.md`: prompts, one prompt over guidance and steps, edits, failures; and its score table.

Comes in: a loaded pipeline. Goes out: sheets, and the part of the page between its two marks. What is drawn is fixed,
so that two checkpoints can be compared picture by picture.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from PIL import Image

from kandinsky5.demo.examination import Examined, true_picture
from kandinsky5.demo.failures import failure_sheet
from kandinsky5.demo.sampling import OnStep, Pipeline, Sampling, draw_edits, draw_prompts, side_of
from kandinsky5.demo.scorecard import score_markdown, write_whole
from kandinsky5.demo.sheets import Cell, sheet_of
from kandinsky5.demo.withheld import withheld_edits
from kandinsky5.errors import RequestError

GRID_PROMPTS = (
    "a red circle to the left of a blue square",
    "a large blue circle",
    "three small yellow triangles",
    "a green star above a red ring",
    "two black lines and a yellow circle",
    "a white square on a black ground",
    "a small white circle on a pale blue ground",
    "an orange half-circle below a purple cross",
    "four green squares",
    "five red circles",
    "a striped blue triangle",
    "an outlined red square next to a solid yellow star",
    "a black circle in the centre",
    "a red triangle in the top left corner",
    "a blue ring in the bottom right corner",
    "two yellow stars above three blue circles",
    "a large purple square to the right of a small green circle",
    "a composition of a red line, a blue circle and a yellow triangle",
    "a brown half-circle and a pink star",
    "one tiny red square and one huge black ring",
    "a green circle, a red square and a blue star on a yellow ground",
    "A yellow circle!",
    "red square left, blue circle right",
    "a photograph of a cat",
)
"""What a person might type, from one thing to four, and one sentence from outside the world."""

OVER_PROMPT = "a red circle to the left of a blue square, and a yellow star above the square"
GUIDANCES = (1.0, 2.0, 3.0, 5.0, 8.0)
STEPS = (4, 8, 15, 30, 50)
EDITS_SHOWN = 15
FAILURES_SHOWN = 12

BEGIN, END = "<!-- scores: begin -->", "<!-- scores: end -->"
"""Between these the page holds what `write_page` puts there."""


def prompt_grid(pipeline: Pipeline, sampling: Sampling, on_step: OnStep | None = None) -> Image.Image:
    """`GRID_PROMPTS`, each under its picture."""
    pictures = draw_prompts(pipeline, GRID_PROMPTS, sampling, on_step)
    cells = [
        Cell(pictures=(picture,), text=prompt) for picture, prompt in zip(pictures, GRID_PROMPTS, strict=True)
    ]
    return sheet_of(cells, columns=6, lines=2)


def guidance_and_steps(pipeline: Pipeline, sampling: Sampling, on_step: OnStep | None = None) -> Image.Image:
    """`OVER_PROMPT` from the same noise: a row a guidance, a column a number of steps."""
    done, total = 0, len(GUIDANCES) * sum(STEPS)

    def counted(step: int, of: int) -> None:
        if on_step is not None:
            on_step(done + step, total)

    cells = []
    for guidance in GUIDANCES:
        for steps in STEPS:
            settings = replace(sampling, guidance=guidance, steps=steps)
            (picture,) = draw_prompts(pipeline, [OVER_PROMPT], settings, counted)
            cells.append(Cell(pictures=(picture,), text=f"guidance {guidance:g}, {steps} steps"))
            done += steps
    return sheet_of(cells, columns=len(STEPS), lines=1)


def edit_grid(pipeline: Pipeline, sampling: Sampling, on_step: OnStep | None = None) -> Image.Image:
    """The first withheld edits: source, result, and the instruction under them."""
    questions = withheld_edits(EDITS_SHOWN)
    texts = [question.text for question in questions]
    sources = [true_picture(question.edit.source, side_of(pipeline)) for question in questions]
    results = draw_edits(pipeline, sources, texts, sampling, on_step)
    cells = [
        Cell(pictures=(source, result), text=text)
        for source, result, text in zip(sources, results, texts, strict=True)
    ]
    return sheet_of(cells, columns=3, lines=2)


def few_failures(examined: Examined) -> Image.Image:
    """The first failures of a set, as many as a page shows."""
    return failure_sheet(examined.failing, most=FAILURES_SHOWN)


def write_page(page: Path, cards: Sequence[Examined]) -> None:
    """Replace what stands between the page's marks by the score tables. RequestError for a page without them."""
    before, after = around_marks(page)
    written = f"{before}{BEGIN}\n{score_markdown(cards)}\n{END}{after}"
    write_whole(page, lambda path: path.write_text(written, encoding="utf-8"))


def around_marks(page: Path) -> tuple[str, str]:
    """The page before and after its marks. RequestError for one that does not exist or has none."""
    if not page.is_file():
        raise RequestError(f"There is no page {page}.")
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise RequestError(f"{page} has no lines {BEGIN} and {END} to write the scores between.")
    return before, after
