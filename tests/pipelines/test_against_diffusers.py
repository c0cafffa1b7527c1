"""With the same weights, prompt, noise and times, diffusers' pipeline gives the same picture."""

import pytest
import torch

from kandinsky5 import prompts
from kandinsky5.conditioning import encode_prompts
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.prompts import crop

from . import peer
from .conftest import LONG, SHORT


@pytest.mark.parametrize("size", [(64, 64), (96, 48)])
@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_the_picture_agrees(pipeline, components, generator, size, guidance):
    """float32, several steps, to 1/255 in every pixel; far closer in fact."""
    width, height = size
    embeds, pooled, lengths = pipeline.encode_prompt("a red circle and a blue square")
    negative, negative_pooled, negative_lengths = pipeline.encode_prompt("grey")
    arguments = {
        "height": height,
        "width": width,
        "num_inference_steps": 6,
        "guidance_scale": guidance,
        "latents": torch.randn(1, 1, height // 8, width // 8, 16, generator=generator(3)),
        "prompt_embeds_qwen": embeds,
        "prompt_embeds_clip": pooled,
        "prompt_cu_seqlens": lengths,
        "negative_prompt_embeds_qwen": negative,
        "negative_prompt_embeds_clip": negative_pooled,
        "negative_prompt_cu_seqlens": negative_lengths,
        "output_type": "pt",
    }
    ours = pipeline(**arguments).image
    theirs = peer.build(components, size)(**arguments).image
    assert theirs.std() > 0.05, "a flat picture would agree with anything"
    assert (ours - theirs).abs().max() < 1e-4


@pytest.mark.parametrize("prompt", [SHORT, "  two&amp;lt;   spaces ", LONG])
def test_the_encoded_prompt_agrees(pipeline, components, monkeypatch, prompt):
    """One prompt (where diffusers needs no mask), its template and crop selected."""
    template = prompts.TEMPLATES["text-to-image", "corrected"]
    theirs = peer.build(components, (64, 64))
    assert theirs.prompt_template == template.text("{}")
    theirs.prompt_template_encode_start_idx = crop(len(components["tokenizer"](template.prefix)["input_ids"]))

    corrected = Kandinsky5T2IPipeline(**components, template="corrected")
    ours_qwen, ours_clip, ours_lengths = corrected.encode_prompt(prompt)
    theirs_qwen, theirs_clip, theirs_lengths = theirs.encode_prompt(prompt)
    torch.testing.assert_close(ours_qwen, theirs_qwen, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours_clip, theirs_clip, atol=1e-5, rtol=1e-5)
    assert ours_lengths.tolist() == theirs_lengths.tolist()
    assert ours_lengths.dtype == torch.int32


def test_a_processor_serves_as_tokenizer(pipeline, components):
    """The published `tokenizer` component is a processor around the tokenizer; only the tokenizer is used."""
    with_processor = Kandinsky5T2IPipeline(**components)
    with_processor.tokenizer = peer.TextOnlyProcessor(components["tokenizer"])
    torch.testing.assert_close(with_processor.encode_prompt(SHORT)[0], pipeline.encode_prompt(SHORT)[0])


def test_the_call_takes_everything_that_diffusers_takes():
    """Same names in the same order, for the call and for the documented methods."""
    import inspect

    import diffusers

    for method in ("__call__", "encode_prompt", "check_inputs", "prepare_latents"):
        theirs = list(inspect.signature(getattr(diffusers.Kandinsky5T2IPipeline, method)).parameters)
        ours = list(inspect.signature(getattr(Kandinsky5T2IPipeline, method)).parameters)
        assert ours[: len(theirs)] == theirs, method
    assert (
        Kandinsky5T2IPipeline._callback_tensor_inputs
        == diffusers.Kandinsky5T2IPipeline._callback_tensor_inputs
    )
    assert (
        Kandinsky5T2IPipeline.model_cpu_offload_seq == diffusers.Kandinsky5T2IPipeline.model_cpu_offload_seq
    )


def test_encoding_is_the_stage(pipeline, components):
    """`encode_prompt` is `encode_prompts` in diffusers' form, nothing more."""
    stage = encode_prompts(
        [SHORT],
        prompts.TEXT_TO_IMAGE,
        text_encoder=components["text_encoder"],
        tokenizer=components["tokenizer"],
        text_encoder_2=components["text_encoder_2"],
        tokenizer_2=components["tokenizer_2"],
        max_tokens=512,
        device="cpu",
        dtype=torch.float32,
    )
    text, pooled, lengths = pipeline.encode_prompt(SHORT)
    assert torch.equal(stage.text, text) and torch.equal(stage.pooled, pooled)
    assert torch.equal(stage.cu_seqlens, lengths)
