"""The embedded tokenizers: any text goes in, and training tokenises as the pipeline does."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, CLIPTokenizer, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.tokenizers import (
    QWEN_SPECIAL_TOKENS,
    load_tokenizers,
    save_tokenizers,
    train_tokenizers,
)
from kandinsky5.prompts import EDITING, TEXT_TO_IMAGE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizers")
    save_tokenizers(*train_tokenizers(900, captions=1500), path)
    return path


@pytest.fixture(scope="module")
def pair(folder: Path) -> tuple[Qwen2Tokenizer, CLIPTokenizer]:
    return load_tokenizers(folder)


def test_the_same_captions_give_the_same_tokens(pair: tuple[Qwen2Tokenizer, CLIPTokenizer]) -> None:
    again = train_tokenizers(900, captions=1500)
    assert [t.get_vocab() for t in again] == [t.get_vocab() for t in pair]
    assert max(pair[0].get_vocab().values()) < 900 and max(pair[1].get_vocab().values()) < 900


def test_any_text_survives(pair: tuple[Qwen2Tokenizer, CLIPTokenizer]) -> None:
    qwen, clip = pair

    @settings(max_examples=150, deadline=None)
    @given(st.text(max_size=40))
    def check(text: str) -> None:
        nfc = qwen.backend_tokenizer.normalizer.normalize_str(text)
        assert qwen.decode(qwen(text)["input_ids"], clean_up_tokenization_spaces=False) == nfc
        ids = clip(text)["input_ids"]
        # Nothing is unknown: an unknown character would become the end token, and the encoder would stop there.
        if "<|" not in text:
            assert ids.count(clip.eos_token_id) == 1 and ids[-1] == clip.eos_token_id

    check()


def test_special_tokens_are_single_and_distinct(pair: tuple[Qwen2Tokenizer, CLIPTokenizer]) -> None:
    qwen, clip = pair
    ids = [qwen(token)["input_ids"] for token in QWEN_SPECIAL_TOKENS]
    assert all(len(row) == 1 for row in ids) and len({row[0] for row in ids}) == len(ids)
    assert (qwen.eos_token, qwen.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert clip("A  Red\nCircle")["input_ids"] == clip("a red circle")["input_ids"]
    # 2 would make transformers pool at the largest id, the rule of OpenAI's own files.
    assert clip.eos_token_id != 2 and clip.model_max_length == 77


def test_the_editing_prefix_is_not_mistaken_for_the_published_one(trained: Path) -> None:
    """52 tokens would be cropped by 55, three tokens into the instruction (prompts.crop)."""
    qwen, _ = load_tokenizers(trained / "parts")
    assert len(qwen(EDITING.prefix)["input_ids"]) != 52


def test_rows_are_what_the_pipeline_tokenises(pair: tuple[Qwen2Tokenizer, CLIPTokenizer]) -> None:
    qwen, clip = pair
    tokens = PromptTokens(qwen, clip)
    prompts = ["a red circle to the left of a blue square", "", "Two stars!"]
    rows = tokens.rows(prompts, cuts=[(), (), ()])
    width = tokens.crop + tokens.length
    theirs = qwen(
        [TEXT_TO_IMAGE.text(p) for p in prompts],
        padding="max_length",
        max_length=width,
        padding_side="right",
        return_tensors="pt",
    )
    assert torch.equal(rows.ids, theirs["input_ids"])
    assert torch.equal(rows.mask, theirs["attention_mask"][:, tokens.crop :].bool())
    assert rows.mask[1].sum() == 1  # the empty prompt keeps its <|im_end|>
    assert tokens.crop == len(qwen(TEXT_TO_IMAGE.prefix)["input_ids"])
    assert torch.equal(
        rows.clip_ids,
        clip(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"],
    )


def test_cuts_change_the_pieces_and_not_the_text(pair: tuple[Qwen2Tokenizer, CLIPTokenizer]) -> None:
    tokens = PromptTokens(*pair)
    prompt = "a red circle"
    whole, cut = tokens.rows([prompt]), tokens.rows([prompt], cuts=[(4, 8)])
    assert not torch.equal(whole.ids, cut.ids)
    text = pair[0].decode(cut.ids[0, : tokens.crop + int(cut.mask.sum())], clean_up_tokenization_spaces=False)
    assert text == TEXT_TO_IMAGE.text(prompt)
    assert torch.equal(whole.ids[:, : tokens.crop], cut.ids[:, : tokens.crop])


def test_a_prompt_without_room_is_refused(pair: tuple[Qwen2Tokenizer, CLIPTokenizer]) -> None:
    tokens = PromptTokens(*pair, length=5)
    assert not tokens.fits("a red circle to the left of a blue square")
    with pytest.raises(ValueError, match="room for 5"):
        tokens.rows(["a red circle to the left of a blue square"])


def test_the_processor_folder_loads_without_torchvision(folder: Path) -> None:
    assert isinstance(AutoTokenizer.from_pretrained(folder / "tokenizer"), Qwen2Tokenizer)
    pictures = Qwen2VLImageProcessorPil.from_pretrained(folder / "tokenizer")
    assert (pictures.patch_size, pictures.merge_size) == (14, 2)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "make it red"}]}]
    text = Qwen2Tokenizer.from_pretrained(folder / "tokenizer").apply_chat_template(messages, tokenize=False)
    assert text == "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>make it red<|im_end|>\n"


def test_the_whole_processor_loads_where_torchvision_does(folder: Path) -> None:
    pytest.importorskip("torchvision")
    from transformers import AutoProcessor, Qwen2_5_VLProcessor

    assert isinstance(AutoProcessor.from_pretrained(folder / "tokenizer"), Qwen2_5_VLProcessor)
