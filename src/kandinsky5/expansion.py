"""Stage: a short prompt to a longer one, written by the text encoder, which is a language model that sees.

Comes in: a prompt, for an edit its source as the vision tower takes it, Qwen2.5-VL with its vocabulary projection, its
tokenizer. Goes out: what is written so far, after each token, so that a caller can do other things in between and give
up at any time. The likeliest token is taken each time: on one machine a prompt is always written out alike. The encoder
is called at its root, so that offload hooks fire. The stage refuses to know pipelines, requests, and what is drawn.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.prompts import ENDINGS, Task, expansion_chat

MOST_TOKENS: Final = 256
"""Tokens that are written (authors)."""


@torch.no_grad()
def expand(
    prompt: str,
    task: Task,
    *,
    text_encoder: Any,
    tokenizer: Any,
    device: torch.device | str,
    seen: Any = None,
    most_tokens: int = MOST_TOKENS,
) -> Iterator[str]:
    """The longer prompt as it is being written; the last text is the answer.

    Args:
        prompt: cleaned text.
        task: whether it describes a picture, or a change of the one that is seen.
        text_encoder: Qwen2.5-VL.
        tokenizer: its tokenizer, or a processor that holds one.
        device: where the tokens are put.
        seen: a `conditioning.View` of the source, None without one.
        most_tokens: where the text is cut off.

    Raises:
        RequestError: nothing was written, the prompt holds the token that stands for a picture, or the vocabulary
            projection was left on disk.
    """
    words = getattr(tokenizer, "tokenizer", tokenizer)
    ids = _tokens(prompt, task, words, text_encoder.config.image_token_id, seen)
    ends = _ends(text_encoder, words)
    inputs: dict[str, Any] = _first_inputs(ids, seen, text_encoder, device)
    past, shift, known = None, 0, torch.tensor(ids, device=device)
    written: list[int] = []
    while len(written) < most_tokens:
        mask = torch.ones(1, len(ids) + len(written), dtype=torch.long, device=device)
        output = text_encoder(
            **inputs,
            attention_mask=mask,
            past_key_values=past,
            use_cache=True,
            logits_to_keep=1,
            return_dict=True,
        )
        if past is None and seen is not None:
            shift = int(text_encoder.model.rope_deltas)  # a picture takes fewer places than tokens
        past = output.past_key_values
        token = int(_likelihoods(output.logits[0, -1], known, text_encoder).argmax())
        if token in ends:
            break
        known = torch.cat([known, known.new_tensor([token])])
        place = len(ids) + len(written) + shift
        inputs = _inputs([token], place, device)
        written.append(token)
        yield _text(written, words)
    if not _text(written, words):
        raise RequestError("The text encoder wrote nothing for this prompt; draw it as it is.")


def _tokens(prompt: str, task: Task, tokenizer: Any, image_token: int, seen: Any) -> list[int]:
    """Ids of the whole chat; the one that stands for the picture as many times as the picture has tokens."""
    ids = tokenizer(expansion_chat(prompt, task, images=int(seen is not None)))["input_ids"]
    if ids.count(image_token) != int(seen is not None):
        raise RequestError(
            f"The prompt holds {tokenizer.decode([image_token])!r}, which stands for a picture; leave it out."
        )
    if seen is None:
        return ids
    at = ids.index(image_token)
    return ids[:at] + [image_token] * seen.tokens + ids[at + 1 :]


def _first_inputs(ids: list[int], seen: Any, text_encoder: Any, device: torch.device | str) -> dict[str, Any]:
    if seen is None:
        return _inputs(ids, 0, device)
    tokens = torch.tensor([ids], device=device)
    return {
        "input_ids": tokens,
        "pixel_values": seen.patches.to(device, text_encoder.dtype),
        "image_grid_thw": seen.grid.to(device),
        "mm_token_type_ids": (tokens == text_encoder.config.image_token_id).to(torch.long),
    }


def _inputs(ids: list[int], place: int, device: torch.device | str) -> dict[str, Any]:
    """Words from a place on. Places are given, for the encoder would take those of the prompt it saw before."""
    places = torch.arange(place, place + len(ids), device=device).expand(3, 1, -1)
    return {"input_ids": torch.tensor([ids], device=device), "position_ids": places}


def _likelihoods(logits: Tensor, known: Tensor, text_encoder: Any) -> Tensor:
    """(V) logits in float32; tokens that were there already count less, as the checkpoint says."""
    penalty = getattr(text_encoder.generation_config, "repetition_penalty", None) or 1.0
    found = logits.float()
    there = found[known]
    return found.scatter(0, known, torch.where(there < 0, there * penalty, there / penalty))


def _ends(text_encoder: Any, tokenizer: Any) -> set[int]:
    """Tokens that end a turn: the chat's, and the checkpoint's own."""
    own = getattr(text_encoder.generation_config, "eos_token_id", None)
    ids = [own] if isinstance(own, int) else list(own or ())
    vocabulary = tokenizer.get_vocab()
    return {*ids, *(vocabulary[end] for end in ENDINGS if end in vocabulary)}


def _text(written: list[int], tokenizer: Any) -> str:
    return " ".join(tokenizer.decode(written, skip_special_tokens=True).split())
