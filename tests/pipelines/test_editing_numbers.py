"""Numbers that change an edit: the network's input, what the text encoder is shown, the sample of the source."""

import copy

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from kandinsky5 import latents as latent_stage
from kandinsky5.pictures.arrays import to_pixels
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline

from .conftest import SHORT, euler, picture


def inputs_of(module, run):
    """Keyword arguments of every call of `module` while `run` runs."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs), with_kwargs=True)
    run()
    handle.remove()
    return seen


class TestTheNetworksInput:
    def test_noise_then_source_then_ones(self, editing, generator):
        """Both branches: 16 channels that change from step to step, 16 of the source, a mask of ones."""
        source, noise = picture(), torch.randn(1, 1, 16, 16, 16, generator=generator(1))
        seen = inputs_of(
            editing.transformer, lambda: editing(source, SHORT, latents=noise, generator=generator(2))
        )
        assert len(seen) == 3
        states = torch.stack([kwargs["hidden_states"] for kwargs in seen])
        assert states.shape == (3, 2, 1, 16, 16, 33) and states.dtype == torch.float32
        assert torch.equal(states[:, 0], states[:, 1]), "both branches see the same latents"
        assert torch.equal(states[0, 0], torch.cat([noise[0], states[0, 0, ..., 16:]], dim=-1))
        assert not torch.equal(states[0, ..., :16], states[1, ..., :16])
        assert torch.equal(states[0, ..., 16:32], states[2, ..., 16:32])
        assert torch.equal(states[..., 32], torch.ones_like(states[..., 32]))
        expected = latent_stage.encode(to_pixels([source]), editing.vae, rows=[0], generator=generator(2))
        torch.testing.assert_close(states[0, :1, ..., 16:32], expected)

    def test_the_source_is_a_scaled_sample_of_the_posterior(self, editing_components, generator):
        """As diffusers draws one; per row with a generator each, and from each picture's own posterior."""
        vae = copy.deepcopy(editing_components["vae"])
        vae.register_to_config(scaling_factor=0.3611)
        pixels = to_pixels([picture(seed=0), picture(seed=1)])
        seeds = [generator(seed) for seed in range(3)]
        ours = latent_stage.encode(pixels, vae, rows=[0, 1, 1], generator=seeds)
        assert ours.shape == (3, 1, 16, 16, 16) and ours.dtype == torch.float32
        for row, which in enumerate((0, 1, 1)):
            posterior = vae.encode(pixels[which : which + 1]).latent_dist
            assert isinstance(posterior, DiagonalGaussianDistribution)
            expected = posterior.sample(generator=generator(row)) * 0.3611
            torch.testing.assert_close(ours[row, 0].permute(2, 0, 1), expected[0])
        assert posterior.std.mean() > 1e-3, "a posterior without width would hide the noise"

    def test_a_list_of_generators_of_another_length(self, editing_components, generator):
        with pytest.raises(ValueError, match="2 generators for 3"):
            latent_stage.encode(
                to_pixels([picture()]), editing_components["vae"], rows=[0] * 3, generator=[generator(0)] * 2
            )

    def test_each_source_is_encoded_once(self, editing, generator, monkeypatch):
        real, calls = editing.vae.encode, []

        def encode(pixels):
            calls.append(tuple(pixels.shape))
            return real(pixels)

        monkeypatch.setattr(editing.vae, "encode", encode)
        editing([picture(seed=0), picture(seed=1)], [SHORT] * 2, num_images_per_prompt=3)
        assert calls == [(1, 3, 128, 128)] * 2


class TestWhatTheEncoderIsShown:
    @pytest.mark.parametrize("guidance", [1.0, 3.5])
    def test_half_the_fitted_picture_in_every_branch(self, editing, guidance):
        """Whatever the upload: 128 x 96 is seen as 64 x 48, 2 x 2 tokens; twice under guidance."""
        for upload in ((128, 96), (1000, 750), (60, 45)):
            seen = inputs_of(
                editing.text_encoder,
                lambda upload=upload: editing(
                    picture(*upload), SHORT, width=128, height=96, guidance_scale=guidance
                ),
            )
            assert len(seen) == 1
            rows = 2 if guidance > 1 else 1
            assert seen[0]["image_grid_thw"].tolist() == [[1, 4, 4]] * rows
            per_row = (seen[0]["input_ids"] == editing.text_encoder.config.image_token_id).sum(dim=1)
            assert per_row.tolist() == [4] * rows
            assert torch.equal(seen[0]["mm_token_type_ids"].sum(dim=1), per_row)

    @pytest.mark.parametrize(("size", "tokens"), [
        ((128, 128), 4), ((160, 96), 6), ((256, 256), 4), ((512, 512), 4), ((2048, 16), 25), ((16, 16), 4),
    ])  # fmt: skip
    def test_tokens_follow_the_size_up_to_the_native_area(self, editing, size, tokens):
        lengths = [
            editing.encode_prompt(SHORT, picture(), width=size[0], height=size[1])[2].tolist()[-1]
            for size in (size, (128, 128))
        ]
        assert lengths[0] - lengths[1] == tokens - 4

    def test_the_published_size_has_324_tokens(self, editing_components):
        """1024 x 1024, and at most as many at 2048 x 2048: 18 x 18 tokens of 28 pixels."""
        vae = copy.deepcopy(editing_components["vae"])
        vae.register_to_config(sample_size=1024)
        pipe = Kandinsky5I2IPipeline(**{**editing_components, "vae": vae})
        word = pipe.encode_prompt(SHORT, picture(), width=16, height=16)[2].tolist()[-1] - 4
        for side in (1024, 2048):
            lengths = pipe.encode_prompt(SHORT, picture(), width=side, height=side)[2]
            assert lengths.tolist()[-1] - word == 324

    def test_positions_of_the_pictures_tokens_are_two_dimensional(self, editing):
        """Pixels moved within the picture move the states; without their rows and columns words cannot tell where."""
        source = picture()
        mirrored = source.transpose(0)
        states = [editing.encode_prompt(SHORT, image)[0] for image in (source, mirrored)]
        assert (states[0] - states[1]).abs().max() > 1e-3
        seen = inputs_of(
            editing.text_encoder.model.language_model, lambda: editing.encode_prompt(SHORT, source)
        )
        positions = seen[0]["position_ids"][-3:, 0]
        of_picture = positions[:, (positions[0] == positions[0].mode().values)]
        assert of_picture[1].unique().numel() == of_picture[2].unique().numel() == 2


class TestPrecision:
    @pytest.mark.parametrize("vae_dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("network_dtype", [torch.float32, torch.bfloat16])
    def test_vae_and_network_of_different_dtypes(
        self, editing, editing_components, generator, vae_dtype, network_dtype
    ):
        pipe = Kandinsky5I2IPipeline(
            **{
                **editing_components,
                "transformer": copy.deepcopy(editing_components["transformer"]).to(network_dtype),
                "vae": copy.deepcopy(editing_components["vae"]).to(vae_dtype),
                "scheduler": euler(),
            },
            default_steps=3,
        )
        pipe.set_progress_bar_config(disable=True)
        arguments = {"image": picture(), "prompt": SHORT, "output_type": "pt"}
        images = [p(**arguments, generator=generator(0)).image.float() for p in (pipe, editing)]
        assert (images[0] - images[1]).pow(2).mean().sqrt() < 0.03

    def test_the_documented_move_to_bfloat16(self, saved_editing_folder, generator):
        pipe = Kandinsky5I2IPipeline.from_pretrained(saved_editing_folder)
        pipe.set_progress_bar_config(disable=True)
        arguments = {"image": picture(), "prompt": SHORT, "output_type": "pt"}
        exact = pipe(**arguments, generator=generator(0)).image
        rounded = pipe.to("cpu", dtype=torch.bfloat16)(**arguments, generator=generator(0)).image
        assert (rounded.float() - exact).pow(2).mean().sqrt() < 0.03


def test_text_to_image_takes_editing_checkpoints(saved_editing_folder, generator):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_editing_folder)
    pipe.set_progress_bar_config(disable=True)
    assert pipe(SHORT, generator=generator(0)).images[0].size == (128, 128)
