"""The batched vision tower gives what the tower's own forward gives."""

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from kandinsky5.demo.architecture import Architecture, build_text_encoder
from kandinsky5.demo.tokenizers import load_tokenizers
from kandinsky5.demo.vision_patches import picture_tokens, vision_patches
from kandinsky5.demo.vision_tower import seen_tokens
from kandinsky5.variants import embedded_folder


@pytest.fixture(scope="module")
def encoder() -> Qwen2_5_VLForConditionalGeneration:
    torch.manual_seed(0)
    qwen, _ = load_tokenizers(embedded_folder())
    encoder = build_text_encoder(Architecture(vision_dim=64, vision_layers=3, text_layers=1), qwen)
    for parameter in encoder.model.visual.parameters():  # large enough for attention to matter
        torch.nn.init.normal_(parameter, std=0.2)
    return encoder


@pytest.mark.parametrize("size", [64, 256, 512])
def test_tokens_are_the_towers_own(encoder: Qwen2_5_VLForConditionalGeneration, size: int) -> None:
    """One window (64), windows cut at two edges (256), nine windows (512); windowed layers and a full one."""
    tower = encoder.model.visual
    patches, grid = vision_patches(torch.rand(3, 3, size, size) * 2 - 1)
    with torch.no_grad():
        expected = tower(patches, grid_thw=grid)
        expected = getattr(expected, "pooler_output", expected)
        found = seen_tokens(tower, patches.unflatten(0, (3, -1)))
    assert found.shape == (3, picture_tokens(size), 256)
    assert expected.std() > 0.1
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-4, atol=1e-4)
