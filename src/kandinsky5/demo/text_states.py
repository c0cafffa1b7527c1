"""What the network hears of captions and instructions: both encoders over the token rows of a batch.

Comes in: token rows of each task, and for edits their source pictures. Goes out: text states after the crop, the mask
that tells real tokens from padding, and pooled vectors, as the pipelines' conditioning stage gives them. Gradients
reach everything on the way. It does not know of times, noise or losses.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, Qwen2_5_VLForConditionalGeneration

from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.vision_patches import vision_patches
from kandinsky5.demo.vision_tower import seen_tokens
from kandinsky5.prompts import Task

Rows = Mapping[str, Tensor]
"""`ids`, `mask`, `clip_ids` as `PromptRows`; of edits also `positions`. Any integer dtype."""


@dataclass(frozen=True, kw_only=True)
class TextStates:
    """`text` (B, L, E), `mask` (B, L) bool, `pooled` (B, P); the tasks' rows one below the other."""

    text: Tensor
    mask: Tensor
    pooled: Tensor

    def repeated(self, times: int) -> "TextStates":
        """All rows, so many times over."""
        return TextStates(
            text=self.text.repeat(times, 1, 1),
            mask=self.mask.repeat(times, 1),
            pooled=self.pooled.repeat(times, 1),
        )


class TextReader:
    """Encodes rows of both tasks in one pass of each encoder: all are padded on the right to the longest template's.

    Both encoders are causal, so padding cannot reach a real token and needs no mask here; the network gets one.
    """

    def __init__(
        self,
        text_encoder: Qwen2_5_VLForConditionalGeneration,
        pooled_encoder: CLIPTextModel,
        tokens: Mapping[Task, PromptTokens],
    ):
        self._model = text_encoder.model
        self._pooled_encoder = pooled_encoder
        self._tokens = tokens
        self._see: Callable[[Any, Tensor], Tensor] = seen_tokens

    def compile(self) -> None:
        """Compile what is worth it; every shape is fixed."""
        self._see = torch.compile(seen_tokens, dynamic=False)
        for layer in self._model.language_model.layers:
            layer.compile(dynamic=False)

    def __call__(self, rows: Mapping[Task, Rows], sources: Tensor | None = None) -> TextStates:
        """States of the rows, in the order of the tasks; `sources` (B, 3, S, S) in [-1, 1] are those of the edits."""
        width = max(part["ids"].shape[1] for part in rows.values())
        words = torch.cat([self._embedded(part, width, sources) for part in rows.values()])
        positions = torch.cat([_positions(part, width) for part in rows.values()])
        states = self._model.language_model(
            inputs_embeds=words, position_ids=positions.movedim(0, 1), use_cache=False
        ).last_hidden_state
        text = []
        for task, of_task in zip(
            rows, states.split([len(part["ids"]) for part in rows.values()]), strict=True
        ):
            crop, length = self._tokens[task].crop, self._tokens[task].length
            text.append(of_task[:, crop : crop + length])
        clip_ids = torch.cat([part["clip_ids"] for part in rows.values()])
        return TextStates(
            text=torch.cat(text),
            mask=torch.cat([part["mask"] for part in rows.values()]),
            pooled=self._pooled_encoder(input_ids=clip_ids.long()).pooler_output,
        )

    def _embedded(self, rows: Rows, width: int, sources: Tensor | None) -> Tensor:
        """Embeddings (B, width, E) of a task's rows, with what the tower sees where tokens stand for a picture."""
        ids = rows["ids"].long()
        ids = functional.pad(ids, (0, width - ids.shape[1]))
        words = self._model.language_model.embed_tokens(ids)
        if "positions" not in rows:
            return words
        assert sources is not None
        patches, _ = vision_patches(sources)
        patches = patches.to(words.dtype).unflatten(0, (len(sources), -1))
        seen = self._see(self._model.visual, patches)
        of_picture = ids == self._tokens["editing"].picture_token
        number = (of_picture.cumsum(1) - 1).clamp(0, seen.shape[1] - 1)
        placed = seen.gather(1, number[..., None].expand(-1, -1, seen.shape[2]))
        return torch.where(of_picture[..., None], placed, words)


def _positions(rows: Rows, width: int) -> Tensor:
    """Qwen's rotary positions (B, 3, width) int64; those of rows without a picture count on."""
    if "positions" in rows:
        positions = rows["positions"].long()
        return functional.pad(positions, (0, width - positions.shape[2]))
    return torch.arange(width, device=rows["ids"].device).expand(len(rows["ids"]), 3, -1)
