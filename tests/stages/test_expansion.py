"""Prompts that the text encoder writes out: as transformers' own generation, token by token, whatever comes between."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from kandinsky5.conditioning import encode_prompts, view
from kandinsky5.errors import RequestError
from kandinsky5.expansion import expand
from kandinsky5.pipelines.processor_files import build_picture_processor
from kandinsky5.prompts import EDITING, EXPANSION, TEXT_TO_IMAGE, expansion_chat

from ..pipelines.conftest import components, picture

__all__ = ["components"]

MOST = 24


@pytest.fixture(params=[1.0, 1.3], ids=["plain", "penalty"])
def parts(components: dict[str, Any], request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """Encoder and tokenizer, with and without a penalty for words that were there already."""
    encoder = components["text_encoder"]
    encoder.generation_config.repetition_penalty = request.param
    yield {"text_encoder": encoder, "tokenizer": components["tokenizer"], "device": "cpu"}
    encoder.generation_config.repetition_penalty = 1.0


def seen_by(parts: dict[str, Any]) -> Any:
    encoder, tokenizer = parts["text_encoder"], parts["tokenizer"]
    return view(picture(60, 40), build_picture_processor(tokenizer, None, encoder.config.vision_config))


def written(prompt: str, task: Any, **settings: Any) -> str:
    *_, text = expand(prompt, task, **settings, most_tokens=MOST)
    return text


def generated(parts: dict[str, Any], prompt: str, seen: Any = None) -> str:
    """The same by transformers."""
    encoder, tokenizer = parts["text_encoder"], parts["tokenizer"]
    task = "text-to-image" if seen is None else "editing"
    ids = tokenizer(expansion_chat(prompt, task, images=int(seen is not None)))["input_ids"]
    image = encoder.config.image_token_id
    ids = [i for token in ids for i in ([token] * (seen.tokens if token == image else 1))]
    tokens = torch.tensor([ids])
    shown = {}
    if seen is not None:
        shown = {"pixel_values": seen.patches, "image_grid_thw": seen.grid}
        shown["mm_token_type_ids"] = (tokens == image).long()
    found = encoder.generate(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=MOST,
        do_sample=False,
        **shown,
    )
    return " ".join(tokenizer.decode(found[0, len(ids) :], skip_special_tokens=True).split())


def test_words_are_written_as_transformers_writes_them(parts: dict[str, Any]) -> None:
    assert written("a red circle", "text-to-image", **parts) == generated(parts, "a red circle")


def test_a_picture_is_seen_as_transformers_sees_it(parts: dict[str, Any]) -> None:
    seen = seen_by(parts)
    text = written("make it blue", "editing", **parts, seen=seen)
    assert text == generated(parts, "make it blue", seen)
    assert text != written("make it blue", "editing", **parts)


def test_what_is_encoded_between_two_tokens_changes_nothing(
    parts: dict[str, Any], components: dict[str, Any]
) -> None:
    """The encoder remembers the places of the last picture that it saw; a server shows it others meanwhile."""
    seen = seen_by(parts)
    alone = written("make it blue", "editing", **parts, seen=seen)
    shared = {name: components[name] for name in ("text_encoder_2", "tokenizer_2")}
    other = view(
        picture(120, 90),
        build_picture_processor(parts["tokenizer"], None, parts["text_encoder"].config.vision_config),
    )
    texts = []
    for text in expand("make it blue", "editing", **parts, seen=seen, most_tokens=MOST):
        texts.append(text)
        encode_prompts(
            ["a blue square"], TEXT_TO_IMAGE, **parts, **shared, max_tokens=50, dtype=torch.float32
        )
        parts["text_encoder"].model.rope_deltas = torch.tensor([[other.tokens]])
    assert texts[-1] == alone


def test_texts_grow_until_the_end(parts: dict[str, Any]) -> None:
    texts = list(expand("a red circle", "text-to-image", **parts, most_tokens=MOST))
    assert len(texts) == MOST and texts == sorted(texts, key=len)


def test_an_end_at_once_is_refused_and_so_is_a_stray_picture(parts: dict[str, Any]) -> None:
    encoder = parts["text_encoder"]
    before, encoder.generation_config.eos_token_id = (
        encoder.generation_config.eos_token_id,
        list(range(encoder.config.text_config.vocab_size)),
    )
    try:
        with pytest.raises(RequestError, match="wrote nothing"):
            list(expand("a red circle", "text-to-image", **parts))
    finally:
        encoder.generation_config.eos_token_id = before
    with pytest.raises(RequestError, match="stands for a picture"):
        list(expand("a <|image_pad|>", "text-to-image", **parts))


def test_the_chat_holds_instruction_and_prompt_as_the_encoder_was_trained_to_read_them() -> None:
    assert expansion_chat("a cat", "text-to-image") == (
        f"<|im_start|>system\n{EXPANSION['text-to-image']}<|im_end|>\n"
        "<|im_start|>user\na cat<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "<|vision_start|><|image_pad|><|vision_end|>make it red<" in expansion_chat(
        "make it red", "editing", 1
    )
    assert EDITING.prefix not in expansion_chat("make it red", "editing", 1)
