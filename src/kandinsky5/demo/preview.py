"""Pictures of an exported folder, to look at and to be scored at home.

Comes in: a published-layout folder, drawn from by the pipelines that everybody uses. Goes out: one sheet of prompts and
edits, and the answers to withheld sets. It refuses to know how pictures are scored.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from kandinsky5.demo.drawn_sets import DrawnSets, save_drawn
from kandinsky5.demo.examination import draw_set, sets_for
from kandinsky5.demo.pictures import edit_grid, prompt_grid
from kandinsky5.demo.sampling import Pipeline, Sampling, can_edit
from kandinsky5.demo.sheets import BACKGROUND
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline


def load_exported(folder: Path, device: torch.device) -> Pipeline:
    """The pipeline of an exported folder, in bfloat16 as it is published: one that edits if its network does."""
    network = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
    kind = Kandinsky5I2IPipeline if network["visual_cond"] else Kandinsky5T2IPipeline
    pipeline = kind.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_preview(pipeline: Pipeline, path: Path, sampling: Sampling) -> None:
    """Draw the grid of prompts, and below it that of edits where the network edits."""
    grids = [prompt_grid(pipeline, sampling)]
    if can_edit(pipeline):
        grids.append(edit_grid(pipeline, sampling))
    size = max(grid.width for grid in grids), sum(grid.height for grid in grids)
    sheet = Image.new("RGB", size, BACKGROUND)
    top = 0
    for grid in grids:
        sheet.paste(grid, (0, top))
        top += grid.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def save_withheld(
    pipeline: Pipeline, folder: Path, *, sets: Sequence[str], count: int | None, sampling: Sampling
) -> list[Path]:
    """Draw the first `count`, or all, of these sets as far as the network can, for `kandinsky5 demo judge`."""
    possible = [name for name in sets_for(pipeline) if name in sets]
    pictures = {name: draw_set(pipeline, name, count, sampling) for name in possible}
    facts = {
        "steps": pipeline.default_steps if sampling.steps is None else sampling.steps,
        "guidance": pipeline.default_guidance if sampling.guidance is None else sampling.guidance,
        "seed": sampling.seed,
        "dtype": str(pipeline.transformer.dtype).removeprefix("torch."),
        "device": str(pipeline.device),
    }
    return save_drawn(DrawnSets(pictures=pictures, facts=facts), folder)
