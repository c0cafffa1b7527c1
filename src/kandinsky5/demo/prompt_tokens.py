"""Prompts become token rows of fixed shape, exactly as the pipeline tokenises them.

Comes in: prompts, the two tokenizers, one of the official templates. Goes out: ids and masks for both encoders, padded
to one length so that compiled training sees one shape; for editing with the tokens that stand for a picture. It does
not know where prompts come from.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import CLIPTokenizer, Qwen2Tokenizer

from kandinsky5.demo.architecture import CLIP_POSITIONS
from kandinsky5.prompts import IMAGE_PLACEHOLDER, TEXT_TO_IMAGE, Template, crop

TEXT_LENGTH = 88
"""Tokens after the crop that training has room for, those of a picture among them; captions that need more are drawn
again."""

PICTURE_TOKEN = "<|image_pad|>"
"""What stands for one token of a picture."""


@dataclass(frozen=True, kw_only=True)
class PromptRows:
    """`ids` (B, prefix + length) and `clip_ids` (B, 77) int64; `mask` (B, length) bool, True where a token is real."""

    ids: Tensor
    mask: Tensor
    clip_ids: Tensor

    def columns(self) -> dict[str, Tensor]:
        """By name, as a batch that travels between processes: indices as int32."""
        return {
            "ids": self.ids.to(torch.int32),
            "mask": self.mask,
            "clip_ids": self.clip_ids.to(torch.int32),
        }


class PromptTokens:
    """Tokenises for one pair of tokenizers, one text length and one template.

    With `picture_tokens`, each prompt is followed by the placeholder of one picture of so many tokens.
    """

    def __init__(
        self,
        qwen: Qwen2Tokenizer,
        clip: CLIPTokenizer,
        length: int = TEXT_LENGTH,
        *,
        template: Template = TEXT_TO_IMAGE,
        picture_tokens: int = 0,
    ):
        self._qwen = qwen
        self._clip = clip
        self._prefix = template.prefix
        picture = IMAGE_PLACEHOLDER.replace(PICTURE_TOKEN, PICTURE_TOKEN * picture_tokens)
        self._suffix = (picture if picture_tokens else "") + template.suffix
        self.length = length
        self.crop = crop(len(qwen(template.prefix)["input_ids"]))
        """Tokens at the front of every row whose states are dropped after encoding."""
        self.picture_token: int = qwen.convert_tokens_to_ids(PICTURE_TOKEN)
        """The id that stands for one token of a picture."""

    def fits(self, prompt: str, cuts: Sequence[int] = ()) -> bool:
        """Whether a prompt, in the pieces that `cuts` make of it, has room in a row."""
        (ids,) = self._cut_ids([prompt], [cuts])
        return len(ids) <= self.crop + self.length

    def rows(self, prompts: Sequence[str], cuts: Sequence[Sequence[int]] | None = None) -> PromptRows:
        """Token rows of prompts.

        Args:
            prompts: plain sentences, cleaned as the pipeline cleans them.
            cuts: for each prompt, ascending character positions that no token may cross. None of them is tokenisation
                as at inference; some show the encoder words in unusual pieces, as typing errors will.
        """
        ids = self._cut_ids(prompts, cuts or [()] * len(prompts))
        width = self.crop + self.length
        lengths = torch.tensor([len(row) for row in ids])
        if int(lengths.max()) > width:
            raise ValueError(
                f"A prompt takes {int(lengths.max()) - self.crop} tokens; there is room for {self.length}."
            )
        padded = [row + [self._qwen.pad_token_id] * (width - len(row)) for row in ids]
        clip = self._clip(list(prompts), padding="max_length", truncation=True, max_length=CLIP_POSITIONS)
        return PromptRows(
            ids=torch.tensor(padded),
            mask=torch.arange(self.crop, width)[None] < lengths[:, None],
            clip_ids=torch.tensor(clip["input_ids"]),
        )

    def _cut_ids(self, prompts: Sequence[str], cuts: Sequence[Sequence[int]]) -> list[list[int]]:
        pieces: list[str] = []
        owners: list[int] = []
        for index, (prompt, at) in enumerate(zip(prompts, cuts, strict=True)):
            edges = [0, *at, len(prompt)]
            parts = [prompt[first:last] for first, last in itertools.pairwise(edges)]
            parts[0] = self._prefix + parts[0]
            parts[-1] += self._suffix
            pieces += parts
            owners += [index] * len(parts)
        rows: list[list[int]] = [[] for _ in prompts]
        for owner, ids in zip(owners, self._qwen(pieces)["input_ids"], strict=True):
            rows[owner] += ids
        return rows
