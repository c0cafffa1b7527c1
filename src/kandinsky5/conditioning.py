"""Stage: prompts, with or without source pictures, to `Conditioning`.

Comes in: prompts, a template, both encoders with their tokenizers; for editing one picture a prompt and Qwen's picture
processor. Goes out: one row a prompt, which does not depend on the other prompts of the call. Encoders are called at
their root, so that offload hooks fire. The stage refuses to know pipelines, guidance, and how pictures came to their
size.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.prompts import IMAGE_PLACEHOLDER, Template, crop
from kandinsky5.records import Conditioning

logger = logging.getLogger(__name__)

CLIP_TOKENS = 77
"""Positions of CLIP's text encoder."""

QUOTED_TOKENS = 30
"""Of what is cut off, in the warning."""


def encode_prompts(
    prompts: Sequence[str],
    template: Template,
    *,
    text_encoder: Any,
    tokenizer: Any,
    text_encoder_2: Any,
    tokenizer_2: Any,
    max_tokens: int,
    device: torch.device | str,
    dtype: torch.dtype,
    pictures: Sequence[Image.Image] = (),
    picture_processor: Any = None,
) -> Conditioning:
    """Encode each prompt by itself, however long its neighbours are.

    Args:
        prompts: cleaned texts.
        template: the words around each prompt.
        text_encoder: Qwen2.5-VL; its last hidden state is used.
        tokenizer: its tokenizer, or a processor that holds one. Its padding side plays no part.
        text_encoder_2: CLIP's text model; its pooled output is used.
        tokenizer_2: its tokenizer.
        max_tokens: limit of tokens after the template's prefix is cut off, those of the picture among them; a longer
            prompt loses the end of its words, with a warning that quotes where.
        device: where the tokens are put and the result is left.
        dtype: of the result.
        pictures: none, or one a prompt, RGB and as large as the vision tower is to see it.
        picture_processor: Qwen's image processor; needed with pictures.

    Raises:
        RequestError: `max_tokens` leaves no room for the picture and the template's suffix, or a prompt holds the
            token that stands for a picture.
    """
    image_token = text_encoder.config.image_token_id
    seen = [view(picture, picture_processor) for picture in pictures]
    words = _Words(
        tokenizer=getattr(tokenizer, "tokenizer", tokenizer), template=template, image_token=image_token
    )
    rows = [
        words.tokens(prompt, max_tokens, seen[i].tokens if seen else 0) for i, prompt in enumerate(prompts)
    ]
    states, mask = _last_hidden_states(text_encoder, rows, seen, image_token, device)
    start = words.start
    pooled = _pooled(text_encoder_2, tokenizer_2, prompts, device)
    return Conditioning(text=states[:, start:], mask=mask[:, start:], pooled=pooled).to(device, dtype)


@dataclass(frozen=True, kw_only=True)
class View:
    """A picture as the vision tower takes it: N flattened patches (N, D) and their grid (1, 3) of times, rows, columns.

    tokens: how many the language model sees of it.
    """

    patches: Tensor
    grid: Tensor
    tokens: int


def view(picture: Image.Image, processor: Any) -> View:
    """A picture as Qwen's image processor prepares it for the vision tower."""
    inputs = processor(images=[picture], return_tensors="pt")
    grid = inputs["image_grid_thw"]
    return View(patches=inputs["pixel_values"], grid=grid, tokens=int(grid.prod()) // processor.merge_size**2)


@dataclass(frozen=True, kw_only=True)
class _Words:
    """A tokenizer with the template around each prompt. `image_token` is the id that stands for a part of a picture."""

    tokenizer: Any
    template: Template
    image_token: int

    @cached_property
    def start(self) -> int:
        """How many tokens are cut off the front of the states."""
        return crop(len(self._ids(self.template.prefix)))

    def tokens(self, prompt: str, max_tokens: int, of_picture: int) -> list[int]:
        """Token ids of the full text. Above the limit the prompt loses its end; picture and suffix stay whole."""
        pictures = 1 if of_picture else 0
        ids = self._ids(self.template.text(prompt, images=pictures))
        tail = self._ids(IMAGE_PLACEHOLDER * pictures + self.template.suffix)
        head = ids[: len(ids) - len(tail)]
        if pictures:
            tail = self._with_room(tail, of_picture)
            if self.image_token in head:
                raise RequestError(
                    f"The instruction holds {self.tokenizer.decode([self.image_token])!r}, which stands for a picture; "
                    "leave it out."
                )
        if max_tokens < len(tail):
            kept = f"the picture's {of_picture} tokens" if pictures else "a prompt"
            raise RequestError(
                f"max_sequence_length={max_tokens} leaves no room for {kept}; it must be at least {len(tail)} here."
            )
        excess = len(head) + len(tail) - self.start - max_tokens
        if excess > 0:
            removed = self.tokenizer.decode(head[-excess:][:QUOTED_TOKENS])
            logger.warning(
                "The prompt is longer than %d tokens; its end was cut off: %d tokens, from %r on.",
                *(max_tokens, excess, removed),
            )
            head = head[:-excess]
        return head + tail

    def _with_room(self, tail: list[int], of_picture: int) -> list[int]:
        """The one token that stands for the picture, as many times as the picture has tokens."""
        if tail.count(self.image_token) != 1:
            raise CheckpointError(
                f"The tokenizer has no single token for {IMAGE_PLACEHOLDER}, or another than the text encoder's "
                f"image_token_id {self.image_token}."
            )
        at = tail.index(self.image_token)
        return tail[:at] + [self.image_token] * of_picture + tail[at + 1 :]

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"]


def _last_hidden_states(
    text_encoder: Any,
    rows: Sequence[list[int]],
    seen: Sequence[View],
    image_token: int,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """(B, L, E) states and (B, L) mask of token rows, padded on the right, where a causal encoder cannot see it."""
    length = max(len(row) for row in rows)
    input_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows], device=device)
    pictures: dict[str, Tensor] = {}
    if seen:
        pictures = {
            "pixel_values": torch.cat([view.patches for view in seen]).to(device, text_encoder.dtype),
            "image_grid_thw": torch.cat([view.grid for view in seen]).to(device),
            # Without it the pictures' tokens would get the positions of words.
            "mm_token_type_ids": (input_ids == image_token).to(torch.long),
        }
    output = text_encoder(
        input_ids=input_ids,
        attention_mask=mask.to(torch.long),
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=torch.empty(0, dtype=torch.long, device=device),  # none: it may be on disk
        return_dict=True,
        **pictures,
    )
    return output.hidden_states[-1], mask


def _pooled(
    text_encoder_2: Any, tokenizer_2: Any, prompts: Sequence[str], device: torch.device | str
) -> Tensor:
    """(B, P) pooled output of CLIP, whose context is always filled to its 77 tokens."""
    inputs = tokenizer_2(
        list(prompts), padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
    ).to(device)
    return text_encoder_2(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], return_dict=True
    ).pooler_output
