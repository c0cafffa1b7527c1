"""Pictures from an exported folder, to look at and to score: a contact sheet, withheld scenes.

Comes in: a published-layout folder, drawn from by the pipeline that everybody uses. Goes out: PNG files and the claims
that a scorer checks them against. It refuses to know how pictures are scored.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from kandinsky5.demo.captions import describe
from kandinsky5.demo.world import draw_scene
from kandinsky5.pipelines import Kandinsky5T2IPipeline

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


def load_exported(folder: Path, device: torch.device) -> Kandinsky5T2IPipeline:
    """The pipeline of an exported folder, in bfloat16 as it is published."""
    pipeline = Kandinsky5T2IPipeline.from_pretrained(folder, dtype=torch.bfloat16).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: Kandinsky5T2IPipeline, prompts: Sequence[str], *, steps: int, guidance: float, seed: int
) -> Tensor:
    """Pictures (B, 3, S, S) in [0, 1]; the noise of row i depends on `seed` and i alone."""
    (pictures,) = pipeline(
        list(prompts),
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed * 1_000_003 + row) for row in range(len(prompts))],
        output_type="pt",
        return_dict=False,
    )
    return pictures


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
    """Draw `count` scenes of withheld pairs only: sheets `withheld-N.png` of `columns` squared pictures, and
    `withheld.json`, a list of {"sheet", "row", "column", "prompt", "claims", "scene"} in the order of the scenes.
    """
    rng = random.Random(f"withheld {seed}")
    scenes = [draw_scene(rng, split="withheld") for _ in range(count)]
    captions = [describe(scene, rng) for scene in scenes]
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
