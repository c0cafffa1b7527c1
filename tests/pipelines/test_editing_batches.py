"""An edit depends on its own source, instruction and noise, not on its neighbours nor on how they were handed over."""

import io
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky5.errors import RequestError

from .conftest import LONG, MIDDLE, SHORT, picture

SIZE = {"height": 96, "width": 128}
SEEDS = range(6)


def several(pipe, generator, images, prompts, negatives, **arguments):
    return pipe(
        images,
        prompts,
        negatives,
        generator=[generator(seed) for seed in SEEDS],
        num_images_per_prompt=2,
        output_type="pt",
        **SIZE,
        **arguments,
    ).image


class TestBatchEqualsSingles:
    """Three instructions of very different length, two pictures each, against six runs of one picture: to 1e-4."""

    prompts: ClassVar = [SHORT, MIDDLE, LONG]
    negatives: ClassVar = ["grey", "", "a very grey picture"]

    @pytest.mark.parametrize("negatives", [negatives, "grey", None], ids=["each", "one for all", "none"])
    @pytest.mark.parametrize("sources", [3, 1])
    def test_with_a_source_each_and_with_one_for_all(self, editing, generator, sources, negatives):
        images = [picture(128, 96, seed) for seed in range(sources)]
        together = several(editing, generator, images, self.prompts, negatives)
        for row in SEEDS:
            prompt = row // 2
            alone = editing(
                images[prompt if sources > 1 else 0],
                self.prompts[prompt],
                negatives[prompt] if isinstance(negatives, list) else negatives,
                generator=generator(row),
                output_type="pt",
                **SIZE,
            ).image[0]
            assert (together[row] - alone).abs().max() < 1e-4, row
        assert (together[0] - together[2]).abs().max() > 0.01, "pictures of different prompts must differ"
        assert (together[0] - together[1]).abs().max() > 0.01, "pictures of different seeds must differ"

    def test_without_guidance(self, editing, generator):
        images = [picture(128, 96, seed) for seed in range(3)]
        together = several(editing, generator, images, self.prompts, None, guidance_scale=1.0)
        alone = editing(
            images[2], LONG, guidance_scale=1.0, generator=generator(5), output_type="pt", **SIZE
        ).image[0]
        assert (together[5] - alone).abs().max() < 1e-4

    def test_guidance_in_one_forward_and_in_two(self, editing, generator):
        arguments = {"image": picture(), "prompt": MIDDLE, "output_type": "pt"}
        in_one = editing(**arguments, generator=generator(0)).image
        editing.batched_guidance = False
        assert (editing(**arguments, generator=generator(0)).image - in_one).abs().max() < 1e-5


def test_a_source_for_each_is_not_the_first_for_all(editing, generator):
    """Order of sources: row by row, and their latents and their tokens both follow."""
    first, second = picture(seed=0), picture(seed=1)

    def latents(images):
        return editing(
            images, [SHORT, SHORT], generator=[generator(0), generator(0)], output_type="latent"
        ).image

    both, swapped, same = latents([first, second]), latents([second, first]), latents([first, first])
    assert (both[0] - swapped[1]).abs().max() < 1e-4 and (both[1] - swapped[0]).abs().max() < 1e-4
    assert (same[0] - same[1]).abs().max() < 1e-4
    assert (both[1] - same[1]).abs().max() > 1e-2


class TestPrecomputed:
    def given(self, pipe, prompts, image, name="prompt"):
        text, pooled, lengths = pipe.encode_prompt(prompts, image, **SIZE)
        return {f"{name}_embeds_qwen": text, f"{name}_embeds_clip": pooled, f"{name}_cu_seqlens": lengths}

    def test_in_place_of_instructions_the_source_still_counts(self, editing, generator):
        images = [picture(128, 96, seed) for seed in range(3)]
        prompts = [SHORT, MIDDLE, LONG]
        expected = several(editing, generator, images, prompts, None)
        given = self.given(editing, prompts, images)
        image = editing(
            images,
            **given,
            generator=[generator(seed) for seed in SEEDS],
            num_images_per_prompt=2,
            output_type="pt",
            **SIZE,
        ).image
        assert (image - expected).abs().max() < 1e-4

    def test_negatives_too(self, editing, generator):
        source = picture(128, 96)
        expected = editing(source, SHORT, "grey", generator=generator(0), output_type="pt", **SIZE).image
        image = editing(
            source,
            **self.given(editing, SHORT, source),
            **self.given(editing, "grey", source, "negative_prompt"),
            generator=generator(0),
            output_type="pt",
            **SIZE,
        ).image
        assert (image - expected).abs().max() < 1e-5


def every_kind(source):
    """The same pixels as everything a caller may hand over."""
    pixels = np.asarray(source)
    stored = io.BytesIO()
    source.save(stored, "PNG")
    return {
        "file": Image.open(stored),
        "array": pixels,
        "array of a batch": pixels[None],
        "floats": pixels.astype(np.float32) / 255,
        "doubles": pixels / 255,
        "16 bits": pixels.astype(np.uint16) * 257,
        "tensor": torch.from_numpy(pixels.copy()).permute(2, 0, 1),
        "tensor of floats": torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255,
        "tensor of a batch": torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255,
        "list of one": [source],
        "list of one tensor": [torch.from_numpy(pixels.copy()).permute(2, 0, 1)],
        "opaque alpha": source.convert("RGBA"),
        "tensor with alpha": torch.from_numpy(np.asarray(source.convert("RGBA")).copy()).permute(2, 0, 1),
    }


def test_every_kind_of_source_gives_the_same_picture(editing, generator):
    source = picture(120, 90)
    expected = editing(source, SHORT, generator=generator(0), output_type="pt").image
    for kind, image in every_kind(source).items():
        same = editing(image, SHORT, generator=generator(0), output_type="pt").image
        assert torch.equal(same, expected), kind


def test_a_mixed_list_is_one_source_each(editing, generator):
    first, second = picture(seed=0), picture(seed=1)
    expected = editing(
        [first, second], [SHORT] * 2, generator=[generator(0), generator(1)], output_type="pt"
    ).image
    mixed = [np.asarray(first), torch.from_numpy(np.asarray(second).copy()).permute(2, 0, 1)]
    batch = np.stack([np.asarray(first), np.asarray(second)])
    for images in (mixed, batch):
        same = editing(images, [SHORT] * 2, generator=[generator(0), generator(1)], output_type="pt").image
        assert torch.equal(same, expected)


@pytest.mark.parametrize(("images", "prompts", "words"), [
    (3, 2, "3 source pictures for 2 prompts"), (2, 1, "2 source pictures for 1 prompt;"), (2, 3, "2 source pictures"),
])  # fmt: skip
def test_sources_that_fit_neither_all_nor_each(editing, images, prompts, words):
    with pytest.raises(RequestError, match=words):
        editing([picture()] * images, [SHORT] * prompts)
