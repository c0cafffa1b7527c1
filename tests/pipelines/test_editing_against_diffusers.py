"""With the same weights, source, instruction and noise, diffusers' editing pipeline gives the same picture.

It runs for one picture and one prompt; where it fails or differs on purpose is in `test_editing_defects`.
"""

import inspect

import diffusers
import pytest
import torch

from kandinsky5.errors import RequestError
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline

from . import editing_peer
from . import peer as text_peer
from .conftest import picture


@pytest.mark.parametrize("guidance", [1.0, 3.5])
@pytest.mark.parametrize("size", [(128, 128), (160, 96)])
def test_the_picture_agrees(editing, editing_components, generator, size, guidance):
    """From PIL image and words to pixels, float32, to 1/255 in every pixel; far closer in fact."""
    source = picture(*size)
    arguments = {
        "prompt": "make the left half blue",
        "negative_prompt": "grey",
        "width": size[0],
        "height": size[1],
        "num_inference_steps": 5,
        "guidance_scale": guidance,
        "output_type": "pt",
    }
    ours = editing(source, **arguments, generator=generator(3)).image
    peer = editing_peer.build(editing_components, size)
    theirs = peer(editing_peer.with_the_authors_filter(source), **arguments, generator=generator(3)).image
    assert theirs.std() > 0.05, "a flat picture would agree with anything"
    assert (ours - theirs).abs().max() < 1e-4
    other = editing(picture(*size, seed=1), **arguments, generator=generator(3)).image
    assert (ours - other).abs().max() > 0.01, "the source must matter"


def test_the_encoded_instruction_agrees(editing, editing_components):
    source = picture(160, 96)
    peer = editing_peer.build(editing_components, (160, 96))
    theirs = peer.encode_prompt("make it blue", editing_peer.with_the_authors_filter(source))
    ours = editing.encode_prompt("make it blue", source, height=96, width=160)
    for mine, reference in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)
    assert ours[2].tolist() == theirs[2].tolist() and ours[2].dtype == torch.int32
    assert int(ours[2][-1]) > 12, "the picture's tokens are among them"


@pytest.mark.parametrize("upload", [(300, 210), (90, 200)])
def test_a_stretched_source_agrees(editing, editing_components, generator, upload):
    """Stretching is what diffusers does; with the instruction encoded before, only latents are left to differ."""
    source, size = picture(*upload), (128, 128)
    names = ("prompt_embeds_qwen", "prompt_embeds_clip", "prompt_cu_seqlens")
    encoded = editing.encode_prompt("make it blue", source, fit="stretch")
    arguments = {
        **dict(zip(names, encoded, strict=True)),
        "width": size[0],
        "height": size[1],
        "num_inference_steps": 3,
        "guidance_scale": 1.0,
        "output_type": "pt",
    }
    ours = editing(source, **arguments, generator=generator(1), fit="stretch").image
    theirs = editing_peer.build(editing_components, size)(source, **arguments, generator=generator(1)).image
    assert (ours - theirs).abs().max() < 1e-4


def test_the_call_takes_everything_that_diffusers_takes():
    """Same names in the same order, ours after; of the documented methods too."""
    theirs_class, ours_class = diffusers.Kandinsky5I2IPipeline, Kandinsky5I2IPipeline
    for method in ("__call__", "encode_prompt", "check_inputs", "prepare_latents"):
        theirs = list(inspect.signature(getattr(theirs_class, method)).parameters)
        ours = list(inspect.signature(getattr(ours_class, method)).parameters)
        assert ours[: len(theirs)] == theirs, method
    assert ours_class._callback_tensor_inputs == theirs_class._callback_tensor_inputs
    assert ours_class.model_cpu_offload_seq == theirs_class.model_cpu_offload_seq


class TestPreparedLatents:
    """`prepare_latents` with diffusers' leading arguments: noise, the source's latents and ones, on the channels."""

    def test_they_agree(self, editing, editing_components, generator):
        source, rest = picture(200, 150), (1, 16, 96, 160, torch.float32, "cpu")
        theirs = editing_peer.build(editing_components, (160, 96)).prepare_latents(
            source, *rest, generator(4)
        )
        ours = editing.prepare_latents(source, *rest, generator(4), fit="stretch")
        assert ours.shape == theirs.shape == (1, 1, 12, 20, 33)
        assert (ours - theirs).abs().max() < 1e-4

    def test_they_are_what_the_network_is_given(self, editing, generator):
        sources = [picture(200, 150), picture(90, 90)]
        seen = []
        editing.transformer.register_forward_pre_hook(
            lambda _m, _a, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
        )
        seeds = [generator(seed) for seed in range(4)]
        editing(
            sources,
            ["a", "b"],
            num_images_per_prompt=2,
            generator=seeds,
            num_inference_steps=1,
            guidance_scale=1,
        )
        seeds = [generator(seed) for seed in range(4)]
        prepared = editing.prepare_latents(sources, 4, height=128, width=128, generator=seeds)
        assert torch.equal(prepared, seen[0]) and prepared.dtype == torch.float32

    def test_the_callers_latents(self, editing, generator):
        noise = torch.randn(1, 1, 16, 16, 16, generator=generator(0))
        prepared = editing.prepare_latents(picture(), 1, height=128, width=128, latents=noise)
        assert torch.equal(prepared[..., :16], noise) and bool((prepared[..., 32] == 1).all())
        again = editing.prepare_latents(None, 1, dtype=torch.bfloat16, latents=prepared)
        assert torch.equal(again, prepared.to(torch.bfloat16)), "all channels come back as they are"

    def test_rows_that_cannot_be_shared_out(self, editing):
        with pytest.raises(RequestError, match="2 source pictures for 3 rows"):
            editing.prepare_latents([picture(), picture()], 3, height=128, width=128)


def test_the_templates_are_attributes(editing, editing_components, pipeline, components):
    """Of the words themselves `template=` decides; diffusers' for text to image are "corrected"."""
    peer = editing_peer.build(editing_components, (128, 128))
    assert editing.prompt_template == peer.prompt_template
    assert editing.prompt_template_encode_start_idx == peer.prompt_template_encode_start_idx
    corrected = Kandinsky5T2IPipeline(**components, template="corrected")
    assert corrected.prompt_template == text_peer.build(components, (64, 64)).prompt_template
    assert "promt" in pipeline.prompt_template
    prefix = pipeline.prompt_template.partition("{}")[0]
    assert pipeline.prompt_template_encode_start_idx == len(pipeline.tokenizer(prefix)["input_ids"])
    with pytest.raises(AttributeError):
        editing.prompt_template = "{}"  # which diffusers follows; here template= of the class says it
    editing.tokenizer = None
    with pytest.raises(RequestError, match="without its tokenizer"):
        _ = editing.prompt_template_encode_start_idx


def test_our_folder_is_one_that_diffusers_knows(saved_editing_folder, editing, generator):
    """The index names the class and components of diffusers; our class draws from it what was saved."""
    import json
    from pathlib import Path

    index = json.loads((Path(saved_editing_folder) / "model_index.json").read_text())
    assert index["_class_name"] == "Kandinsky5I2IPipeline"
    assert index["transformer"] == ["diffusers", "Kandinsky5Transformer3DModel"]
    again = Kandinsky5I2IPipeline.from_pretrained(saved_editing_folder)
    again.set_progress_bar_config(disable=True)
    expected = editing(picture(), "make it blue", generator=generator(0), output_type="pt").image
    image = again(picture(), "make it blue", generator=generator(0), output_type="pt").image
    assert (image - expected).abs().max() < 1e-5
