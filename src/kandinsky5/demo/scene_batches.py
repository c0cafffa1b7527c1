"""Endless scenes as numbered batches, drawn, captioned and tokenised by worker processes.

Comes in: a seed and a batch number. Goes out: packed scenes, and token rows of their captions. A batch depends on
nothing else, so a run on any number of workers, or a resumed one, sees the same batches. Pictures are not drawn here:
a packed scene is a hundred times smaller, and the GPU draws faster.
"""

import os
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kandinsky5.demo.captions import Caption, describe
from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.renderer import pack
from kandinsky5.demo.strange_words import with_strange_words
from kandinsky5.demo.world import Scene, draw_scene

_T = TypeVar("_T")

CUT_SHARE = 0.2
CUT_CHANCE = 0.06
"""This share of captions is tokenised in pieces, each gap between two characters being cut with this chance."""


class PackedScenes(Dataset[Tensor]):
    """Batch `index` is (B, MAX_THINGS + 1, features) float32, as `renderer.render` takes them."""

    def __init__(self, *, seed: int, batch: int):
        self._seed = seed
        self._batch = batch

    def __getitem__(self, index: int) -> Tensor:
        rng = random.Random(f"scenes {self._seed} {index}")
        return pack([draw_scene(rng) for _ in range(self._batch)])


class CaptionedScenes(Dataset[dict[str, Tensor]]):
    """Batch `index` has `packed` as `PackedScenes`, and `ids`, `mask`, `clip_ids` as `PromptRows`.

    A share `unconditional` of the captions is the empty prompt, in the template: what guidance compares with.
    """

    def __init__(self, tokens: PromptTokens, *, seed: int, batch: int, unconditional: float):
        self._tokens = tokens
        self._seed = seed
        self._batch = batch
        self._unconditional = unconditional

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = random.Random(f"captioned scenes {self._seed} {index}")
        scenes: list[Scene] = []
        prompts: list[str] = []
        cuts: list[tuple[int, ...]] = []
        for _ in range(self._batch):
            scenes.append(draw_scene(rng))
            if rng.random() < self._unconditional:
                prompts.append("")
                cuts.append(())
            else:
                caption, at = draw_caption(scenes[-1], rng, self._tokens)
                prompts.append(caption.text)
                cuts.append(at)
        rows = self._tokens.rows(prompts, cuts)
        return {
            "packed": pack(scenes),
            **rows.columns(),
        }


def draw_caption(scene: Scene, rng: random.Random, tokens: PromptTokens) -> tuple[Caption, tuple[int, ...]]:
    """A caption that fits, drawn again until it does, and the characters to cut it at."""
    while True:
        caption = describe(scene, rng)
        caption = replace(caption, text=with_strange_words(caption.text, rng))
        cuts = random_cuts(caption.text, rng)
        if tokens.fits(caption.text, cuts):
            return caption, cuts


def random_cuts(text: str, rng: random.Random) -> tuple[int, ...]:
    """The characters at which to cut a text before it is tokenised, mostly none."""
    if rng.random() >= CUT_SHARE:
        return ()
    return tuple(i for i in range(1, len(text)) if rng.random() < CUT_CHANCE)


def batches_from(dataset: Dataset[_T], numbers: range, workers: int, *, pin: bool) -> Iterable[_T]:
    """The numbered batches in order, made ahead by `workers` processes (0: in this one)."""
    return DataLoader(
        dataset,
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_begin_worker,
        pin_memory=pin,
    )


def _begin_worker(worker: int) -> None:
    # Each worker fills one core; the tokenizers' own threads would fight over them.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
