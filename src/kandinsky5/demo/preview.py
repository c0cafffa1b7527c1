"""Pictures from an exported folder, to look at and to score: a contact sheet, withheld scenes.

Comes in: a published-layout folder, drawn from by the pipeline that everybody uses. Goes out: PNG files and the claims
that a scorer checks them against. It refuses to know how pictures are scored.
"""

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kandinsky5.demo.pictures import GRID_PROMPTS
from kandinsky5.demo.sampling import Sampling, draw_prompts
from kandinsky5.demo.withheld import composed_scenes
from kandinsky5.pipelines import Kandinsky5T2IPipeline


def load_exported(folder: Path, device: torch.device) -> Kandinsky5T2IPipeline:
    """The pipeline of an exported folder, in bfloat16 as it is published."""
    pipeline = Kandinsky5T2IPipeline.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: Kandinsky5T2IPipeline, prompts: Sequence[str], *, steps: int, guidance: float, seed: int
) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1], drawn at once; the noise of row i depends on `seed` and i alone."""
    sampling = Sampling(steps=steps, guidance=guidance, seed=seed, batch=len(prompts))
    drawn = [torch.from_numpy(picture) for picture in draw_prompts(pipeline, prompts, sampling)]
    return torch.stack(drawn).permute(0, 3, 1, 2) / 255


def save_grid(pipeline: Kandinsky5T2IPipeline, path: Path, *, steps: int, guidance: float, seed: int) -> None:
    """Draw `GRID_PROMPTS` on one sheet of six columns, and list them in a text file beside it, row by row."""
    save_sheet(draw(pipeline, GRID_PROMPTS, steps=steps, guidance=guidance, seed=seed), path, columns=6)
    path.with_suffix(".txt").write_text("\n".join(GRID_PROMPTS) + "\n", encoding="utf-8")


def save_withheld(
    pipeline: Kandinsky5T2IPipeline,
    folder: Path,
    *,
    count: int,
    steps: int,
    guidance: float,
    seed: int,
    columns: int = 10,
) -> None:
    """Draw the first `count` withheld compositions: sheets `withheld-N.png` of `columns` squared pictures, and
    `withheld.json`, a list of {"sheet", "row", "column", "prompt", "claims", "scene"} in their order.
    """
    _, scenes, captions = zip(*itertools.islice(composed_scenes(), count), strict=True)
    folder.mkdir(parents=True, exist_ok=True)
    entries, a_sheet = [], columns * columns
    for first in range(0, count, a_sheet):
        rows = captions[first : first + a_sheet]
        texts = [caption.text for caption in rows]
        pictures = draw(pipeline, texts, steps=steps, guidance=guidance, seed=seed + first)
        save_sheet(pictures, folder / f"withheld-{first // a_sheet}.png", columns=columns)
        for index, caption in enumerate(rows):
            entries.append(
                {
                    "sheet": first // a_sheet,
                    "row": index // columns,
                    "column": index % columns,
                    "prompt": caption.text,
                    "claims": asdict(caption.claims),
                    "scene": asdict(scenes[first + index]),
                }
            )
    (folder / "withheld.json").write_text(json.dumps(entries), encoding="utf-8")


def save_sheet(pictures: Tensor, path: Path, *, columns: int) -> None:
    """Pictures (B, 3, S, S) in [0, 1] side by side, without gaps, as one PNG; cells left over are black."""
    size = pictures.shape[-1]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * size, rows * size))
    values = (pictures.float() * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    for index, value in enumerate(values):
        sheet.paste(Image.fromarray(value), (index % columns * size, index // columns * size))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
