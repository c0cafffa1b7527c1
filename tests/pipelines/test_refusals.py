"""What cannot be carried out is said in words before any model runs; what only looks odd is taken as what it means."""

import copy

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler

from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.pipelines.config_numbers import check_vae

from .conftest import SHORT, picture


@pytest.fixture
def idle(pipeline, monkeypatch):
    """The pipeline with models that must not run."""
    forbid(pipeline, monkeypatch)
    return pipeline


def forbid(pipe, monkeypatch):
    for name in ("text_encoder", "text_encoder_2", "transformer", "vae"):
        if getattr(pipe, name) is not None:
            for method in ("forward", "encode", "decode"):
                monkeypatch.setattr(
                    getattr(pipe, name), method, lambda *_, **__: pytest.fail("a model ran"), raising=False
                )


@pytest.mark.parametrize(("arguments", "words"), [
    ({"height": 64.0}, "64.0 is not a whole number"),
    ({"height": True}, "True is not a whole number"),
    ({"num_inference_steps": 2.0}, r"num_inference_steps=2\.0 must be a whole number, at least 1"),
    ({"num_inference_steps": "2"}, "num_inference_steps='2'"),
    ({"num_inference_steps": True}, "num_inference_steps=True"),
    ({"num_images_per_prompt": 1.5}, r"num_images_per_prompt=1\.5"),
    ({"guidance_scale": "3"}, "guidance_scale='3' must be a finite number"),
    ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
    ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
    ({"guidance_scale": [3.0]}, r"guidance_scale=\[3\.0\]"),
    ({"guidance_scale": torch.ones(2)}, "guidance_scale=tensor"),
    ({"generator": 7}, r"generator=7 must be a torch.Generator.*manual_seed"),
    ({"generator": [7]}, r"generator=\[7\]"),
    ({"generator": (torch.Generator(), torch.Generator())}, "2 generators for 1"),
    ({"max_sequence_length": 20.0}, r"max_sequence_length=20\.0 must be a whole number, from 1 to 1024"),
    ({"latents": np.zeros((1, 1, 8, 8, 16), np.float32)}, "latents must be a tensor .* got ndarray"),
])  # fmt: skip
def test_values_of_the_wrong_kind(idle, arguments, words):
    with pytest.raises(RequestError, match=words):
        idle(SHORT, **arguments)


def test_embeddings_that_are_no_tensors(idle):
    with pytest.raises(RequestError, match="of `prompt` must be tensors, not a list"):
        idle(
            prompt_embeds_qwen=torch.zeros(1, 3, 64), prompt_embeds_clip=torch.zeros(1, 48), prompt_cu_seqlens=[0, 3]
        )  # fmt: skip


@pytest.mark.parametrize(("shapes", "words"), [
    (((1, 3, 50), (1, 48), [0, 3]), "`prompt_embeds_qwen` has 50 channels, and the network takes 64"),
    (((1, 3, 64), (1, 50), [0, 3]), "`prompt_embeds_clip` has 50 channels, and the network takes 48"),
    (((3, 64), (1, 48), [0, 3]), r"must be \(rows, tokens, channels\), \(rows, channels\) and \(rows \+ 1\)"),
    (((1, 3, 64), (48,), [0, 3]), r"pooled vectors \(48,\)"),
    (((1, 3, 64), (1, 48), 3), r"cu_seqlens \(\)"),
    (((0, 3, 64), (0, 48), [0]), r"Text states \(0, 3, 64\)"),
])  # fmt: skip
@pytest.mark.parametrize("branch", ["", "negative_"])
def test_embeddings_of_other_shapes(idle, shapes, words, branch):
    text, pooled, lengths = shapes
    given = {
        f"{branch}prompt_embeds_qwen": torch.zeros(text),
        f"{branch}prompt_embeds_clip": torch.zeros(pooled),
        f"{branch}prompt_cu_seqlens": torch.tensor(lengths),
    }
    with pytest.raises(RequestError, match=words.replace("`prompt", f"`{branch}prompt")):
        idle(**given, **({"prompt": SHORT} if branch else {}))


@pytest.mark.parametrize(("arguments", "words"), [
    ({"max_sequence_length": 5000}, "from 1 to 1024"),
    ({"max_sequence_length": 0}, "from 1 to 1024"),
    ({"num_images_per_prompt": 0}, "at least 1"),
    ({"prompt": None}, "Nothing to encode"),
    ({"prompt": 3}, "string"),
])  # fmt: skip
def test_encoding(idle, editing, monkeypatch, arguments, words):
    with pytest.raises(RequestError, match=words):
        idle.encode_prompt(**{"prompt": SHORT, **arguments})
    forbid(editing, monkeypatch)
    with pytest.raises(RequestError, match=words):
        editing.encode_prompt(**{"prompt": SHORT, "image": picture(), **arguments})


def test_none_is_the_default(pipeline, editing, generator):
    arguments = {"generator": generator(0), "num_inference_steps": 1, "output_type": "latent"}
    assert len(pipeline(SHORT, max_sequence_length=None, num_images_per_prompt=None, **arguments).image) == 1
    assert len(editing(picture(), SHORT, max_sequence_length=None, **arguments).image) == 1
    for asked, limit in ((None, 512), (20, 20)):
        lengths = pipeline.encode_prompt(
            "word " * 600, max_sequence_length=asked, num_images_per_prompt=None
        )[2]
        assert lengths.tolist() == [0, limit]


def test_numbers_of_other_libraries(pipeline, editing, generator):
    sizes = {"height": np.int64(64), "width": torch.tensor(96)}
    call = {
        "num_inference_steps": np.int32(1),
        "num_images_per_prompt": np.int64(1),
        "guidance_scale": np.float32(2.0),
        "max_sequence_length": np.int64(100),
        "generator": (generator(0),),
    }
    plain = {
        "num_inference_steps": 1,
        "guidance_scale": 2.0,
        "max_sequence_length": 100,
        "generator": generator(0),
    }
    odd, expected = pipeline(SHORT, **sizes, **call), pipeline(SHORT, height=64, width=96, **plain)
    assert odd.images[0].size == (96, 64) and odd.images[0].tobytes() == expected.images[0].tobytes()
    call["generator"] = (generator(0),)
    edited = editing(picture(200, 100), SHORT, height=np.int64(64), **call)
    assert edited.images[0].size == (128, 64) and type(edited.fits[0].size[1]) is int


class TestCallbacks:
    @pytest.mark.parametrize(("returned", "words"), [
        ({"latents": None}, "returned None as latents"),
        ({"latents": torch.zeros(1, 16, 8, 8)}, r"returned \(1, 16, 8, 8\) as latents, .* \(1, 1, 8, 8, 16\)"),
        (torch.zeros(2), "must return a dictionary of tensors, or nothing, not a Tensor"),
        ([], "not a list"),
        ({"prompt_embeds": torch.zeros(1)}, "returned 'prompt_embeds', which would be ignored"),
        ({"prompt_embeds_qwen": 3}, "returned 3 as embeddings"),
        ({"prompt_embeds_qwen": torch.zeros(1, 4, 50)}, r"returned \(1, 4, 50\) as embeddings"),
        ({"prompt_embeds_clip": torch.zeros(2, 48)}, r"returned \(2, 48\) as embeddings, .* \(1, 48\)"),
        ({"negative_prompt_embeds_clip": torch.zeros(48)}, r"returned \(48,\) as embeddings"),
    ])  # fmt: skip
    def test_what_cannot_be_put_back(self, pipeline, returned, words):
        with pytest.raises(RequestError, match=words):
            pipeline(SHORT, callback_on_step_end=lambda *_: returned)

    def test_nothing_changes_nothing(self, pipeline, generator):
        expected = pipeline(SHORT, generator=generator(0)).images[0].tobytes()
        for returned in (None, {}):
            image = pipeline(SHORT, generator=generator(0), callback_on_step_end=lambda *_, r=returned: r)
            assert image.images[0].tobytes() == expected


@pytest.mark.parametrize("settings", [{"use_flow_sigmas": True}, {"prediction_type": "v_prediction"}])
def test_a_scheduler_that_would_take_velocities_for_something_else(pipeline, monkeypatch, settings):
    """As `from_config` of FlowMatchEuler's settings makes it, whose prediction type is not among them."""
    other = Kandinsky5T2IPipeline.from_pipe(pipeline, scheduler=UniPCMultistepScheduler(**settings))
    forbid(other, monkeypatch)
    with pytest.raises(RequestError, match=r"prediction_type='(epsilon|v_prediction)'; build it with"):
        other(SHORT)


class TestMissingComponents:
    """A pipeline need not be whole, but says what it lacks before anything runs."""

    @pytest.mark.parametrize(("missing", "words"), [
        ("vae", r'without its vae.*output_type="latent"'), ("transformer", "without its transformer"),
        ("scheduler", "without its scheduler"), ("tokenizer", r"text encoders \(no tokenizer\)"),
        ("text_encoder_2", r"\(no text_encoder_2\)"),
    ])  # fmt: skip
    def test_drawing(self, components, monkeypatch, missing, words):
        pipe = Kandinsky5T2IPipeline(**{**components, missing: None})
        forbid(pipe, monkeypatch)
        with pytest.raises(RequestError, match=words):
            pipe(SHORT, height=64, width=64)

    @pytest.mark.parametrize("missing", ["vae", "transformer", "scheduler"])
    def test_editing(self, editing_components, monkeypatch, missing):
        pipe = Kandinsky5I2IPipeline(**{**editing_components, missing: None})
        forbid(pipe, monkeypatch)
        with pytest.raises(RequestError, match="This pipeline was loaded without its"):
            pipe(picture(), SHORT, height=128, width=128)
        with pytest.raises(RequestError, match="without its autoencoder"):
            Kandinsky5I2IPipeline(**{**editing_components, "vae": None}).prepare_latents(picture(), 1)

    def test_what_is_not_needed_is_not_asked_for(self, components, pipeline, generator):
        arguments = {"generator": generator(0), "height": 64, "width": 64, "output_type": "latent"}
        expected = pipeline(SHORT, **arguments, num_inference_steps=2).image
        bare = Kandinsky5T2IPipeline(**{**components, "vae": None})
        arguments["generator"] = generator(0)
        assert torch.equal(bare(SHORT, **arguments, num_inference_steps=2).image, expected)
        encoders = Kandinsky5T2IPipeline(**{**components, "vae": None, "transformer": None})
        assert torch.equal(encoders.encode_prompt(SHORT)[0], pipeline.encode_prompt(SHORT)[0])


@pytest.mark.parametrize("size", [[64], [], [64, 64, 64], [64, 0], "64"])
def test_sizes_of_an_autoencoder_that_are_none(components, tmp_path, size):
    vae = copy.deepcopy(components["vae"])
    config = {**vae.config, "sample_size": size}
    with pytest.raises(CheckpointError, match="sample_size must be a side in pixels or a list of two"):
        check_vae(config, len(vae.state_dict()), tmp_path / "config.json")
    for right in (64, [64, 96]):
        check_vae({**vae.config, "sample_size": right}, len(vae.state_dict()), tmp_path / "config.json")
