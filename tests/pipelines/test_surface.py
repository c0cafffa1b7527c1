"""What a caller sees: sizes, defaults, outputs, callbacks, and what is refused with which words."""

import copy
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky5.errors import RequestError
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.placement import use_mode

from .conftest import SHORT


class TestOutput:
    def test_both_names_and_every_type(self, pipeline, generator):
        output = pipeline(SHORT, generator=generator(0))
        assert output.images is output.image
        assert isinstance(output.images[0], Image.Image) and output.images[0].size == (64, 64)
        as_tensor = pipeline(SHORT, generator=generator(0), output_type="pt").image
        as_array = pipeline(SHORT, generator=generator(0), output_type="np").image
        latents = pipeline(SHORT, generator=generator(0), output_type="latent").image
        assert as_tensor.shape == (1, 3, 64, 64) and as_array.shape == (1, 64, 64, 3)
        assert latents.shape == (1, 1, 8, 8, 16) and latents.dtype == torch.float32
        np.testing.assert_allclose(as_array[0], as_tensor[0].permute(1, 2, 0).numpy())
        assert np.array_equal(np.asarray(output.image[0]), (as_array[0] * 255).round().astype("uint8"))

    def test_a_tuple(self, pipeline, generator):
        (images,) = pipeline(SHORT, generator=generator(0), return_dict=False)
        assert len(images) == 1

    def test_same_seed_same_bytes(self, pipeline, generator):
        first, second = (pipeline(SHORT, generator=generator(5)).images[0].tobytes() for _ in range(2))
        assert first == second != pipeline(SHORT, generator=generator(6)).images[0].tobytes()


class TestSizes:
    @pytest.mark.parametrize(("height", "width"), [(16, 16), (48, 80), (160, 32)])
    def test_any_multiple_of_16_is_what_comes_out(self, pipeline, height, width):
        image = pipeline(SHORT, height=height, width=width, num_inference_steps=1).images[0]
        assert image.size == (width, height)

    def test_one_side_alone(self, pipeline):
        assert pipeline(SHORT, height=96, num_inference_steps=1).images[0].size == (64, 96)
        assert pipeline(SHORT, width=96, num_inference_steps=1).images[0].size == (96, 64)

    @pytest.mark.parametrize(("arguments", "words"), [
        ({"height": 72}, "64 or 80"), ({"width": 8}, "16"), ({"height": 4096}, "2048"), ({"width": 0}, "16"),
    ])  # fmt: skip
    def test_a_size_that_cannot_run_names_the_nearest(self, pipeline, arguments, words):
        with pytest.raises(RequestError, match=words):
            pipeline(SHORT, **arguments)

    def test_resolutions_are_the_checkpoints(self, pipeline, components):
        assert pipeline.resolutions == [(64, 64)] and pipeline.default_size == (64, 64)
        published = copy.copy(components["vae"])
        published._internal_dict = type(published.config)({**published.config, "sample_size": 1024})
        pipe = Kandinsky5T2IPipeline(**{**components, "vae": published})
        assert (1408, 640) in pipe.resolutions and len(pipe.resolutions) == 7
        assert pipe.default_size == (1024, 1024)


class TestDefaults:
    def test_they_are_saved_with_the_checkpoint(self, components, tmp_path):
        pipe = Kandinsky5T2IPipeline(
            **components, default_steps=7, default_guidance=2.25, template="corrected"
        )
        pipe.save_pretrained(tmp_path)
        again = Kandinsky5T2IPipeline.from_pretrained(tmp_path)
        assert (again.default_steps, again.default_guidance, again.config.template) == (7, 2.25, "corrected")

    def test_a_folder_that_does_not_say_has_the_published_ones(self, components):
        pipe = Kandinsky5T2IPipeline(**components)
        assert (pipe.default_steps, pipe.default_guidance, pipe.config.template) == (50, 3.5, "release")

    def test_a_call_uses_them(self, pipeline):
        pipeline(SHORT, output_type="latent")
        assert pipeline.num_timesteps == 3 and pipeline.guidance_scale == 3.5

    def test_an_unknown_template_is_refused(self, components):
        with pytest.raises(RequestError, match="release"):
            Kandinsky5T2IPipeline(**components, template="mine")


class TestRefusals:
    @pytest.mark.parametrize(("arguments", "words"), [
        ({"prompt": None}, "prompt_embeds_qwen"),
        ({"prompt": 3}, "string"),
        ({"prompt": ["a", 3]}, "string"),
        ({"prompt": []}, "empty"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1"),
        ({"max_sequence_length": 1025}, "1 to 1024"),
        ({"max_sequence_length": 0}, "1 to 1024"),
        ({"max_sequence_length": -3}, "1 to 1024"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"num_images_per_prompt": 0}, "at least 1"),
        ({"output_type": "jpeg"}, "pil, np, pt, latent"),
        ({"callback_on_step_end_tensor_inputs": ["velocity"]}, "velocity"),
        ({"latents": torch.zeros(1, 16, 8, 8)}, r"\(1, 1, 8, 8, 16\)"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1"),
        ({"prompt_embeds_qwen": torch.zeros(1, 3, 64)}, "all three"),
    ])  # fmt: skip
    def test_before_any_model_runs(self, pipeline, monkeypatch, arguments, words):
        for component in (pipeline.text_encoder, pipeline.text_encoder_2, pipeline.transformer, pipeline.vae):
            monkeypatch.setattr(component, "forward", lambda *_, **__: pytest.fail("a model ran"))
        with pytest.raises(RequestError, match=words):
            pipeline(**{"prompt": SHORT, **arguments})

    @pytest.mark.parametrize("lengths", [[0, 3, 3], [0, 9], [0, 0, 3], [0, 9, 12]])
    def test_lengths_that_do_not_fit_the_embeddings(self, pipeline, lengths):
        with pytest.raises(RequestError, match="cu_seqlens"):
            pipeline(
                prompt_embeds_qwen=torch.zeros(2, 4, 64),
                prompt_embeds_clip=torch.zeros(2, 48),
                prompt_cu_seqlens=torch.tensor(lengths),
            )


class TestCallbacks:
    def test_latents_are_given_and_taken_back(self, pipeline, generator):
        seen = []

        def callback(pipe, step, timestep, tensors):
            seen.append((step, float(timestep), tuple(tensors["latents"].shape)))
            return {"latents": torch.zeros_like(tensors["latents"])}

        latents = pipeline(
            SHORT, generator=generator(0), output_type="latent", callback_on_step_end=callback
        ).image
        assert [step for step, *_ in seen] == [0, 1, 2] and seen[0][1] == 1000.0
        assert {shape for *_, shape in seen} == {(1, 1, 8, 8, 16)}
        assert torch.count_nonzero(latents) == 0

    def test_guidance_is_read_at_every_step(self, pipeline, generator):
        """Guidance switched off after the first step: fewer rows in the forwards that follow, another picture."""
        rows = []
        handle = pipeline.transformer.register_forward_pre_hook(
            lambda _module, _args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
        )

        def callback(pipe, step, timestep, tensors):
            pipe._guidance_scale = 1.0
            return tensors

        pipeline(SHORT, generator=generator(0), callback_on_step_end=callback)
        handle.remove()
        assert rows == [2, 1, 1]

    def test_embeddings_can_be_replaced(self, pipeline, generator):
        """Another prompt from step 2 on is what that prompt gives from there, whatever its length."""
        names = ("prompt_embeds_qwen", "prompt_embeds_clip")
        other = "a blue square and a star"
        embeds = dict(zip(names, pipeline.encode_prompt(other)[:2], strict=True))
        after_one = []

        def switch(pipe, step, timestep, tensors):
            after_one.append(tensors["latents"])
            return embeds

        switched = pipeline(
            SHORT,
            generator=generator(0),
            output_type="pt",
            callback_on_step_end=switch,
            callback_on_step_end_tensor_inputs=["latents", *names],
        ).image
        from_there = pipeline(
            other,
            generator=generator(1),
            output_type="pt",
            callback_on_step_end=lambda _p, i, _t, _k: {"latents": after_one[0]} if i == 0 else {},
        ).image
        assert (switched - from_there).abs().max() < 1e-5
        plain = pipeline(SHORT, generator=generator(0), output_type="pt").image
        assert (switched - plain).abs().max() > 1e-3

    def test_embeddings_written_to_in_place_count(self, pipeline, generator):
        """A callback that changes the tensor it was handed, and returns nothing."""

        def silence(pipe, step, timestep, tensors):
            tensors["prompt_embeds_qwen"].mul_(-1)

        arguments = {"generator": generator(0), "output_type": "pt", "callback_on_step_end": silence}
        changed = pipeline(
            SHORT, **arguments, callback_on_step_end_tensor_inputs=["prompt_embeds_qwen"]
        ).image
        plain = pipeline(SHORT, generator=generator(0), output_type="pt").image
        assert (changed - plain).abs().max() > 1e-3

    def test_interrupt_ends_the_run(self, pipeline):
        steps = []

        def callback(pipe, step, timestep, tensors):
            steps.append(step)
            pipe._interrupt = step == 1
            return {}

        assert len(pipeline(SHORT, callback_on_step_end=callback).images) == 1
        assert steps == [0, 1]

    @pytest.mark.parametrize("guidance", [1.0, 3.0])
    def test_embeddings_written_to_in_inference_mode(self, pipeline, generator, guidance):
        """The fast way keeps what it made of a prompt, and tensors of that mode do not count writes."""

        def negate(pipe, step, timestep, tensors):
            tensors["prompt_embeds_qwen"].mul_(-1)

        def latents(network):
            pipe = Kandinsky5T2IPipeline.from_pipe(pipeline, transformer=network)
            asked = {"generator": generator(0), "output_type": "latent", "guidance_scale": guidance}
            names = ["prompt_embeds_qwen"]
            with torch.inference_mode():
                return pipe(
                    SHORT, **asked, callback_on_step_end=negate, callback_on_step_end_tensor_inputs=names
                ).images.clone()

        fast = copy.deepcopy(pipeline.transformer)
        use_mode(fast, "exact")
        torch.testing.assert_close(latents(fast), latents(pipeline.transformer), rtol=1e-4, atol=1e-5)

    def test_diffusers_callback_objects(self, pipeline, generator):
        from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

        class Halve(PipelineCallback):
            @property
            def tensor_inputs(self):
                return ["latents"]

            def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
                return {"latents": callback_kwargs["latents"] / 2}

        def latents(callback):
            return pipeline(
                SHORT, generator=generator(0), output_type="latent", callback_on_step_end=callback
            ).image

        once = latents(Halve(cutoff_step_ratio=None, cutoff_step_index=0))
        assert not torch.equal(once, latents(None))
        assert torch.equal(
            once, latents(MultiPipelineCallbacks([Halve(cutoff_step_ratio=None, cutoff_step_index=0)]))
        )


class TestLatents:
    def test_the_callers_tensor_is_not_written_to(self, pipeline, generator):
        given = torch.randn(1, 1, 8, 8, 16, generator=generator(0))
        before = given.clone()
        first = pipeline(SHORT, latents=given, output_type="pt").image
        assert torch.equal(given, before)
        assert torch.equal(first, pipeline(SHORT, generator=generator(0), output_type="pt").image)

    def test_one_generator_draws_for_the_whole_batch(self, pipeline, generator):
        images = pipeline(SHORT, num_images_per_prompt=2, generator=generator(0), output_type="pt").image
        assert not torch.equal(images[0], images[1])


class TestAttributes:
    def test_those_people_use(self, pipeline):
        assert pipeline.vae_scale_factor_spatial == 8
        assert set(pipeline.components) == {
            "transformer", "vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "scheduler",
        }  # fmt: skip

    def test_a_progress_bar_with_one_tick_a_step(self, pipeline, capsys):
        pipeline.set_progress_bar_config(disable=False)
        pipeline(SHORT, output_type="latent")
        assert "3/3" in capsys.readouterr().err


def test_a_truncation_is_a_warning_of_this_package(pipeline, caplog):
    with caplog.at_level(logging.WARNING, logger="kandinsky5"):
        pipeline.encode_prompt("word " * 50, max_sequence_length=10)
    assert [r.name for r in caplog.records] == ["kandinsky5.conditioning"]


def test_the_warning_of_a_page_of_text_is_not_a_page(pipeline, caplog):
    with caplog.at_level(logging.WARNING, logger="kandinsky5"):
        pipeline.encode_prompt("word " * 5000, max_sequence_length=10)
    (record,) = caplog.records
    assert "word" in record.getMessage() and len(record.getMessage()) < 400
