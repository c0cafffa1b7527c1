"""Back ends that cannot be told of padding draw what the others draw, wherever no padding is needed."""

import copy
import logging
from collections.abc import Iterator

import pytest
import torch
from diffusers.models.attention_dispatch import attention_backend

from kandinsky5.denoise import RunGroup, set_times
from kandinsky5.errors import RequestError
from kandinsky5.pipelines import Kandinsky5T2IPipeline

from .conftest import LONG, MIDDLE, SHORT
from .test_run_groups import alone, begin

BACKEND = "_native_flash"
"""The one of them that runs on every CPU."""


@pytest.fixture
def flash(pipeline: Kandinsky5T2IPipeline) -> Iterator[Kandinsky5T2IPipeline]:
    """The pipeline with a network of its own, on that back end."""
    with attention_backend("native"):  # restored afterwards: choosing one also sets diffusers' default
        pipeline.transformer = copy.deepcopy(pipeline.transformer)
        pipeline.transformer.set_attention_backend(BACKEND)
        yield pipeline


def rows_of(network: torch.nn.Module) -> list[int]:
    """Filled with the rows of each forward pass from now on."""
    rows: list[int] = []
    network.register_forward_pre_hook(
        lambda _module, _args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    return rows


def test_guidance_runs_in_turn_where_the_prompts_differ_in_length(flash, components, generator, caplog):
    native = Kandinsky5T2IPipeline.from_pipe(flash, transformer=components["transformer"])
    expected = native(MIDDLE, generator=generator(0), output_type="pt").image
    rows = rows_of(flash.transformer)
    with caplog.at_level(logging.INFO, logger="kandinsky5.denoise"):
        image = flash(MIDDLE, generator=generator(0), output_type="pt").image
    assert rows == [1, 1] * 3
    assert caplog.text.count("running the guidance branches in turn") == 1
    assert (image - expected).abs().max() < 1e-4


def test_in_one_pass_where_they_do_not(flash, generator):
    rows = rows_of(flash.transformer)
    flash(SHORT, SHORT, generator=generator(0), output_type="latent")
    assert rows == [2] * 3


def test_several_pictures_of_one_prompt(flash, generator):
    seeds = [generator(seed) for seed in (0, 1)]
    rows = rows_of(flash.transformer)
    flash(SHORT, num_images_per_prompt=2, generator=seeds, output_type="latent")
    assert rows == [2, 2] * 3


def test_embeddings_longer_than_their_prompt(flash, generator):
    """Padding that no row needs is no reason to refuse."""
    text, pooled, lengths = flash.encode_prompt(SHORT)
    given = {"prompt_embeds_clip": pooled, "prompt_cu_seqlens": lengths, "output_type": "pt"}
    expected = flash(prompt_embeds_qwen=text, generator=generator(0), **given).image
    longer = torch.nn.functional.pad(text, (0, 0, 0, 9), value=7.0)
    assert torch.equal(flash(prompt_embeds_qwen=longer, generator=generator(0), **given).image, expected)


def test_prompts_of_different_lengths_in_one_call_are_refused(flash):
    rows = rows_of(flash.transformer)
    with pytest.raises(RequestError, match=r'set_attention_backend.*calls of their own.*"native"'):
        flash([SHORT, MIDDLE])
    assert rows == [], "before the network runs"
    assert len(flash([SHORT, SHORT], guidance_scale=1, num_inference_steps=1).images) == 2


def test_runs_of_a_group_take_their_turn(flash, generator):
    runs = [
        begin(flash, generator, prompt, [seed], guidance)
        for seed, (prompt, guidance) in enumerate(((SHORT, 3.0), (LONG, 1.0), (MIDDLE, 2.0)))
    ]
    times = list(set_times(flash.scheduler, 4, "cpu")[[3, 0, 1]])
    rows = rows_of(flash.transformer)
    together = RunGroup(runs=runs).velocities(times, transformer=flash.transformer)
    assert rows == [1, 1, 1, 1, 1]
    for run, time, velocity in zip(runs, times, together, strict=True):
        assert torch.equal(velocity, alone(flash, run, time))
    rows.clear()
    same = [begin(flash, generator, SHORT, [seed], 1.0) for seed in (0, 1)]
    RunGroup(runs=same).velocities(times[:2], transformer=flash.transformer)
    assert rows == [2], "runs without padding between them still share a pass"
