"""Training edits are conditioned as the editing pipeline conditions: the same tokens, patches and positions."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer, Qwen2Tokenizer, Qwen2VLImageProcessorPil

from kandinsky5.conditioning import encode_prompts
from kandinsky5.demo.architecture import Architecture, build_pooled_encoder, build_text_encoder
from kandinsky5.demo.edit_batches import InstructedEdits, edit_tokens, text_positions
from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.renderer import pack, render
from kandinsky5.demo.tokenizers import load_tokenizers, save_processor_files
from kandinsky5.demo.vision_patches import STD, picture_tokens, tower_side, vision_patches
from kandinsky5.demo.world import MAX_THINGS, draw_scene
from kandinsky5.pictures import halved
from kandinsky5.prompts import EDITING
from kandinsky5.variants import embedded_folder

ONE_BYTE = 1 / 255 / min(STD)


@pytest.fixture(scope="module")
def tokenizers() -> tuple[Qwen2Tokenizer, CLIPTokenizer]:
    return load_tokenizers(embedded_folder())


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Qwen2VLImageProcessorPil:
    folder = tmp_path_factory.mktemp("processor")
    save_processor_files(folder)
    return Qwen2VLImageProcessorPil.from_pretrained(folder)


def pictures(count: int, size: int) -> torch.Tensor:
    rng = random.Random(4)
    return render(pack([draw_scene(rng) for _ in range(count)]), size)


def as_images(values: torch.Tensor) -> list[Image.Image]:
    arrays = ((values + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]


@pytest.mark.parametrize("size", [256, 64, 224])
def test_patches_are_the_processors(processor: Qwen2VLImageProcessorPil, size: int) -> None:
    """Of six pictures of 256 one value in a hundred thousand was one byte apart, at 64 one in a thousand."""
    drawn = pictures(6, size)
    expected = processor(
        images=[halved(image, size * size) for image in as_images(drawn)], return_tensors="pt"
    )
    patches, grid = vision_patches(drawn)
    assert torch.equal(grid, expected["image_grid_thw"])
    assert patches.shape == expected["pixel_values"].shape
    apart = (patches - expected["pixel_values"]).abs()
    assert apart.max() < 1.01 * ONE_BYTE
    assert (apart > 1e-4).float().mean() < 2e-3
    assert picture_tokens(size) == int(grid[0].prod()) // processor.merge_size**2


@pytest.mark.parametrize("side", [16, 32, 56, 69, 70, 98, 112, 128, 512, 3500])
def test_the_towers_side_is_the_processors(processor: Qwen2VLImageProcessorPil, side: int) -> None:
    assert tower_side(side) ** 2 == processor.get_number_of_image_patches(side, side) * 14**2


def test_pictures_of_random_noise_agree_too(processor: Qwen2VLImageProcessorPil) -> None:
    values = np.random.default_rng(2).integers(0, 256, (2, 256, 256, 3), dtype=np.uint8)
    images = [halved(Image.fromarray(value), 256 * 256) for value in values]
    expected = processor(images=images, return_tensors="pt")["pixel_values"]
    patches, _ = vision_patches(torch.from_numpy(values).permute(0, 3, 1, 2) / 127.5 - 1)
    assert (patches - expected).abs().max() < 2.01 * ONE_BYTE


@pytest.fixture(scope="module")
def batch(tokenizers: tuple[Qwen2Tokenizer, CLIPTokenizer]) -> dict[str, torch.Tensor]:
    return InstructedEdits(edit_tokens(*tokenizers, 256), seed=3, batch=64, unconditional=0.25)[7]


def test_a_batch_depends_on_its_seed_and_number_alone(
    batch: dict[str, torch.Tensor], tokenizers: tuple[Qwen2Tokenizer, CLIPTokenizer]
) -> None:
    tokens = edit_tokens(*tokenizers, 256)
    again = InstructedEdits(tokens, seed=3, batch=64, unconditional=0.25)
    assert all(torch.equal(batch[name], value) for name, value in again[7].items())
    assert not torch.equal(batch["target"], again[8]["target"])
    other = InstructedEdits(tokens, seed=4, batch=64, unconditional=0.25)
    assert not torch.equal(batch["target"], other[7]["target"])


def test_rows_hold_source_target_and_the_pictures_tokens(
    batch: dict[str, torch.Tensor], tokenizers: tuple[Qwen2Tokenizer, CLIPTokenizer]
) -> None:
    qwen, clip = tokenizers
    tokens = edit_tokens(qwen, clip, 256)
    assert batch["source"].shape == batch["target"].shape == (64, MAX_THINGS + 1, 9)
    assert (batch["source"] != batch["target"]).flatten(1).any(1).all()
    assert batch["ids"].shape == (64, tokens.crop + tokens.length)
    assert batch["mask"].shape == (64, tokens.length)
    assert ((batch["ids"] == tokens.picture_token).sum(1) == 25).all()
    empty = (batch["mask"].sum(1) == 25 + 3).float().mean()
    assert 0.1 < empty < 0.4, "what guidance compares with has no words, but the picture"
    texts = qwen.batch_decode(
        [row[mask] for row, mask in zip(batch["ids"][:, tokens.crop :], batch["mask"], strict=True)]
    )
    for text in texts:
        assert text.endswith("<|vision_start|>" + "<|image_pad|>" * 25 + "<|vision_end|><|im_end|>")


def test_source_and_target_are_pictures_of_one_edit(batch: dict[str, torch.Tensor]) -> None:
    before, after = render(batch["source"][:16], 64), render(batch["target"][:16], 64)
    changed = ((before - after).abs() > 0.05).any(1).flatten(1).float().mean(1)
    assert (changed > 0).all()
    assert changed.median() < 0.3


def test_a_text_that_does_not_fit_is_drawn_again(tokenizers: tuple[Qwen2Tokenizer, CLIPTokenizer]) -> None:
    tight = edit_tokens(*tokenizers, 256, length=40)
    rows = InstructedEdits(tight, seed=3, batch=16, unconditional=0.0)[0]
    assert rows["ids"].shape[1] == tight.crop + 40


def test_training_conditions_on_an_edit_as_the_pipeline_does(
    tokenizers: tuple[Qwen2Tokenizer, CLIPTokenizer], processor: Qwen2VLImageProcessorPil
) -> None:
    """Rows, patches and positions of training, through Qwen2.5-VL's parts, give the conditioning stage's states."""
    torch.manual_seed(0)
    qwen, clip = tokenizers
    size = Architecture(
        text_dim=64, text_ff_dim=96, text_layers=2, text_heads=2, vision_dim=32, pooled_dim=48
    )
    encoder = build_text_encoder(size, qwen).eval()
    pooled = build_pooled_encoder(size, clip).eval()
    prompts = [
        "make the red circle blue",
        "",
        "Move the large striped turquoise squares to the top left corner.",
    ]
    drawn = pictures(3, 256)
    tokens = edit_tokens(qwen, clip, 256)
    rows = tokens.rows(prompts)
    patches, grid = vision_patches(drawn)
    with torch.no_grad():
        expected = encode_prompts(
            prompts,
            EDITING,
            text_encoder=encoder,
            tokenizer=qwen,
            text_encoder_2=pooled,
            tokenizer_2=clip,
            max_tokens=1024,
            device="cpu",
            dtype=torch.float32,
            pictures=[halved(image, 256 * 256) for image in as_images(drawn)],
            picture_processor=processor,
        )
        seen = encoder.model.visual(patches, grid_thw=grid)
        seen = getattr(seen, "pooler_output", seen)
        words = encoder.model.language_model.embed_tokens(rows.ids)
        of_picture = rows.ids == tokens.picture_token
        states = encoder.model.language_model(
            inputs_embeds=words.masked_scatter(of_picture[..., None], torch.cat(list(seen)).to(words)),
            position_ids=text_positions(rows.ids, tokens.picture_token),
            use_cache=False,
        ).last_hidden_state[:, tokens.crop :]
    length = expected.text.shape[1]
    assert torch.equal(rows.mask[:, :length], expected.mask)
    assert not rows.mask[:, length:].any()
    torch.testing.assert_close(
        states[:, :length][expected.mask], expected.text[expected.mask], atol=2e-4, rtol=1e-3
    )


def test_positions_are_qwens_own(tokenizers: tuple[Qwen2Tokenizer, CLIPTokenizer]) -> None:
    qwen, clip = tokenizers
    encoder = build_text_encoder(Architecture(text_dim=64, text_heads=2, text_layers=1, vision_dim=32), qwen)
    for size in (64, 256):
        tokens = edit_tokens(qwen, clip, size)
        rows = tokens.rows(["remove the star", "", "turn the blue ring into a square, please"])
        lengths = tokens.crop + rows.mask.sum(1)
        real = torch.arange(rows.ids.shape[1]) < lengths[:, None]
        _, grid = vision_patches(pictures(3, size))
        expected, _ = encoder.model.get_rope_index(
            rows.ids, (rows.ids == tokens.picture_token).int(), grid, attention_mask=real.long()
        )
        assert torch.equal(text_positions(rows.ids, tokens.picture_token)[:, real], expected[:, real])


def test_without_a_picture_tokens_are_those_of_text_to_image(
    tokenizers: tuple[Qwen2Tokenizer, CLIPTokenizer], batch: dict[str, torch.Tensor]
) -> None:
    """Both halves of a mixed run see one text length, so that the network compiles once."""
    plain = PromptTokens(*tokenizers)
    assert plain.length == batch["mask"].shape[1]
    assert plain.crop != edit_tokens(*tokenizers, 256).crop
    assert not (plain.rows(["a red circle"]).ids == plain.picture_token).any()


def test_the_weights_processor_files_are_those_of_the_recipe(tmp_path: Path) -> None:
    save_processor_files(tmp_path)
    shipped = embedded_folder() / "tokenizer" / "preprocessor_config.json"
    assert (tmp_path / "preprocessor_config.json").read_text() == shipped.read_text()
