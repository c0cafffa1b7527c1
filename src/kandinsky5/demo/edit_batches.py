"""Endless edits as numbered batches, drawn, instructed and tokenised by worker processes.

Comes in: a seed and a batch number. Goes out: packed source and target scenes, and token rows of the instructions
beside their picture. As in `scene_batches`, a batch depends on nothing else, and pictures are drawn on the GPU: the
source's patches by `vision_patches`, its latent by the autoencoder.
"""

import random

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPTokenizer, Qwen2Tokenizer

from kandinsky5.demo.edits import draw_edit
from kandinsky5.demo.instructions import instruct
from kandinsky5.demo.prompt_tokens import TEXT_LENGTH, PromptTokens
from kandinsky5.demo.renderer import pack
from kandinsky5.demo.scene_batches import random_cuts
from kandinsky5.demo.strange_words import with_strange_words
from kandinsky5.demo.vision_patches import picture_tokens
from kandinsky5.demo.world import Scene
from kandinsky5.prompts import EDITING


def edit_tokens(
    qwen: Qwen2Tokenizer, clip: CLIPTokenizer, size: int, length: int = TEXT_LENGTH
) -> PromptTokens:
    """Tokenises instructions for pictures of `size` pixels a side."""
    return PromptTokens(qwen, clip, length, template=EDITING, picture_tokens=picture_tokens(size))


class InstructedEdits(Dataset[dict[str, Tensor]]):
    """Batch `index` of training edits:

    * `source`, `target` (B, MAX_THINGS + 1, features) float32, as `renderer.render` takes them;
    * `ids` (B, prefix + length), `mask`, `clip_ids`, as `PromptRows`, small integers as int32;
    * `positions` (B, 3, prefix + length) int32, see `text_positions`.

    A share `unconditional` of the instructions is empty, with the picture still there: what guidance compares with.
    `tokens` are those of `edit_tokens`.
    """

    def __init__(self, tokens: PromptTokens, *, seed: int, batch: int, unconditional: float):
        self._tokens = tokens
        self._seed = seed
        self._batch = batch
        self._unconditional = unconditional

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = random.Random(f"instructed edits {self._seed} {index}")
        sources: list[Scene] = []
        targets: list[Scene] = []
        prompts: list[str] = []
        cuts: list[tuple[int, ...]] = []
        while len(prompts) < self._batch:
            edit = draw_edit(rng)
            empty = rng.random() < self._unconditional
            prompt = "" if empty else with_strange_words(instruct(edit, rng), rng)
            at = random_cuts(prompt, rng)
            if not self._tokens.fits(prompt, at):
                continue
            sources.append(edit.source)
            targets.append(edit.target)
            prompts.append(prompt)
            cuts.append(at)
        rows = self._tokens.rows(prompts, cuts)
        return {
            "source": pack(sources),
            "target": pack(targets),
            **rows.columns(),
            "positions": text_positions(rows.ids, self._tokens.picture_token).movedim(0, 1).to(torch.int32),
        }


def text_positions(ids: Tensor, picture_token: int) -> Tensor:
    """Qwen2.5-VL's rotary positions (3, B, L) int64 of rows (B, L) with one square picture each.

    What its `get_rope_index` finds row by row: words count on; the picture's tokens share a time and count rows and
    columns from there; the words after it go on behind its longer side.
    """
    of_picture = ids == picture_token
    side = round(int(of_picture[0].sum()) ** 0.5)
    number = of_picture.cumsum(1)
    start = of_picture.int().argmax(1, keepdim=True)
    steps = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    # After the picture a row has used `side` positions for side * side tokens.
    after = steps - (number == side * side).long() * (side * side - side)
    place = (number - 1).clamp_min(0)
    axes = (start, start + place // side, start + place % side)
    return torch.stack([torch.where(of_picture, axis.expand_as(ids), after) for axis in axes])
