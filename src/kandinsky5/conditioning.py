"""Stage: prompts to `Conditioning`.

Comes in: prompts, a template, both encoders with their tokenizers. Goes out: one row a prompt, which does not depend on
the other prompts of the call. Encoders are called at their root, so that offload hooks fire. The stage refuses to know
pipelines, guidance and pictures.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.prompts import Template, crop
from kandinsky5.records import Conditioning

logger = logging.getLogger(__name__)

CLIP_TOKENS = 77
"""Positions of CLIP's text encoder."""


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
) -> Conditioning:
    """Encode each prompt by itself, however long its neighbours are.

    Args:
        prompts: cleaned texts.
        template: the words around each prompt.
        text_encoder: Qwen2.5-VL; its last hidden state is used.
        tokenizer: its tokenizer, or a processor that holds one. Its padding side plays no part.
        text_encoder_2: CLIP's text model; its pooled output is used.
        tokenizer_2: its tokenizer.
        max_tokens: limit of text tokens after the template's prefix is cut off; a longer prompt loses its end, with
            a warning that quotes it.
        device: where the tokens are put and the result is left.
        dtype: of the result.

    Raises:
        RequestError: `max_tokens` leaves no room for the template's suffix.
    """
    tokens = [_tokenise(getattr(tokenizer, "tokenizer", tokenizer), template, p, max_tokens) for p in prompts]
    states, mask = _last_hidden_states(text_encoder, [ids for ids, _ in tokens], device)
    start = tokens[0][1]
    pooled = _pooled(text_encoder_2, tokenizer_2, prompts, device)
    return Conditioning(text=states[:, start:], mask=mask[:, start:], pooled=pooled).to(device, dtype)


def _tokenise(tokenizer: Any, template: Template, prompt: str, max_tokens: int) -> tuple[list[int], int]:
    """Token ids of the full text, cut to the limit without touching the suffix, and the length of the crop."""
    ids: list[int] = tokenizer(template.text(prompt))["input_ids"]
    start = crop(len(tokenizer(template.prefix)["input_ids"]))
    suffix: list[int] = tokenizer(template.suffix)["input_ids"]
    if max_tokens < len(suffix):
        raise RequestError(
            f"max_sequence_length={max_tokens} leaves no room for a prompt; it must be at least {len(suffix)} "
            "for this tokenizer."
        )
    excess = len(ids) - start - max_tokens
    if excess > 0:
        end = len(ids) - len(suffix)
        removed = tokenizer.decode(ids[end - excess : end])
        logger.warning("The prompt is longer than %d tokens; its end was cut off: %r", max_tokens, removed)
        ids = ids[: end - excess] + suffix
    return ids, start


def _last_hidden_states(
    text_encoder: Any, rows: Sequence[list[int]], device: torch.device | str
) -> tuple[Tensor, Tensor]:
    """(B, L, E) states and (B, L) mask of token rows, padded on the right, where a causal encoder cannot see it."""
    length = max(len(row) for row in rows)
    input_ids = torch.tensor([row + [0] * (length - len(row)) for row in rows], device=device)
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows], device=device)
    output = text_encoder(
        input_ids=input_ids,
        attention_mask=mask.to(torch.long),
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=torch.empty(0, dtype=torch.long, device=device),  # none: it may be on disk
        return_dict=True,
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
