"""What diffusers' editing pipeline gets wrong, one test each. Where it can be shown, it is shown beside ours."""

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky5.errors import RequestError
from kandinsky5.pipelines import Kandinsky5I2IPipeline

from . import editing_peer
from .conftest import LONG, SHORT, picture

INSTRUCTION = "make it blue"


@pytest.fixture
def peer(editing_components):
    return editing_peer.build(editing_components, (128, 128))


class TestDiffusersFailsHere:
    """Each call fails in diffusers 0.42.1, and gives what it should here."""

    def both(self, peer, editing, **arguments):
        with pytest.raises(Exception):  # noqa: B017 - which error is diffusers' affair
            peer(**{"num_inference_steps": 2, "prompt": INSTRUCTION, **arguments})
        return editing(**{"num_inference_steps": 2, "prompt": INSTRUCTION, **arguments}).images

    def test_several_pictures_a_prompt(self, peer, editing):
        images = self.both(peer, editing, image=picture(), num_images_per_prompt=2)
        assert len(images) == 2 and images[0].tobytes() != images[1].tobytes()

    def test_one_source_for_several_prompts(self, peer, editing):
        assert len(self.both(peer, editing, image=picture(), prompt=[SHORT, INSTRUCTION])) == 2

    @pytest.mark.parametrize("kind", ["array", "tensor"])
    def test_arrays_and_tensors(self, peer, editing, kind):
        values = np.asarray(picture(), dtype=np.float32) / 255
        image = values if kind == "array" else torch.from_numpy(values).permute(2, 0, 1)
        assert len(self.both(peer, editing, image=image)) == 1

    @pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK", "RGBA", "I;16"])
    def test_pictures_that_are_not_rgb(self, editing, generator, mode):
        """They are handed on as they are in diffusers, which fails or drops what it does not know."""
        grey = picture().convert("L")
        source = (
            Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
            if mode == "I;16"
            else picture().convert(mode)
        )
        assert source.mode == mode
        expected = grey.convert("RGB") if mode in ("L", "LA", "I;16") else source.convert("RGB")
        images = [
            editing(image, INSTRUCTION, num_inference_steps=1, generator=generator(0)).images[0]
            for image in (source, expected)
        ]
        assert images[0].tobytes() == images[1].tobytes()

    def test_latents(self, peer, editing, generator):
        latents = torch.randn(1, 1, 16, 16, 16, generator=generator(0))
        before = latents.clone()
        with pytest.raises(RuntimeError):
            peer(picture(), INSTRUCTION, num_inference_steps=2, latents=latents.clone())
        from_latents = editing(
            picture(), INSTRUCTION, latents=latents, generator=generator(1), output_type="pt"
        )
        assert torch.equal(latents, before), "the caller's tensor is not written to"
        other = editing(
            picture(seed=1), INSTRUCTION, latents=latents, generator=generator(1), output_type="pt"
        )
        assert (from_latents.image - other.image).abs().max() > 0.01, "the source still conditions"

    def test_a_photograph_above_three_megapixels(self, editing_components, editing, generator):
        """Qwen sees half the fitted picture, not half the upload, whose tokens pass the limit."""
        photograph = picture(2400, 1800)
        peer = editing_peer.build(editing_components, (128, 128))
        with pytest.raises(ValueError):
            peer(photograph, INSTRUCTION, num_inference_steps=1)
        assert editing(photograph, INSTRUCTION, num_inference_steps=1).images[0].size == (128, 128)
        small = photograph.resize((128, 128), Image.Resampling.BILINEAR, box=(300, 0, 2100, 1800))
        counts = [editing.encode_prompt(INSTRUCTION, image)[2].tolist() for image in (photograph, small)]
        assert counts[0] == counts[1]

    def test_a_long_instruction_loses_words_only(self, peer, editing, caplog):
        image_tokens, limit = 4, 40
        with pytest.raises(ValueError):
            peer.encode_prompt(LONG, picture(), max_sequence_length=limit)
        states, _, lengths = editing.encode_prompt(LONG, picture(), max_sequence_length=limit)
        assert lengths.tolist() == [0, limit] and states.shape[1] == limit
        assert "star beside" in caplog.text, "the warning quotes what was cut off"
        tokenizer = editing.tokenizer
        kept = tokenizer.decode(tokenizer(LONG)["input_ids"][: limit - image_tokens - 3])
        torch.testing.assert_close(states, editing.encode_prompt(kept, picture())[0])

    def test_a_limit_below_the_pictures_tokens(self, editing):
        with pytest.raises(RequestError, match=r"6 leaves no room for the picture's 4 tokens.* at least 7"):
            editing(picture(), INSTRUCTION, max_sequence_length=6)
        assert len(editing(picture(), INSTRUCTION, max_sequence_length=8, num_inference_steps=1).images) == 1


class TestDiffusersDiffersHere:
    def test_callbacks_are_given_the_16_channels(self, peer, editing, generator):
        shapes = {}
        for pipe in (peer, editing):

            def callback(p, step, timestep, tensors, pipe=pipe):
                shapes[pipe] = tuple(tensors["latents"].shape)
                return tensors

            pipe(picture(), INSTRUCTION, num_inference_steps=1, callback_on_step_end=callback)
        assert shapes == {peer: (1, 1, 16, 16, 33), editing: (1, 1, 16, 16, 16)}

    def test_what_a_callback_returns_is_used_and_the_source_stays(self, editing, generator):
        latents = editing(
            picture(),
            INSTRUCTION,
            output_type="latent",
            callback_on_step_end=lambda _p, _i, _t, k: {"latents": torch.zeros_like(k["latents"])},
        ).image
        assert latents.shape == (1, 1, 16, 16, 16) and torch.count_nonzero(latents) == 0
        changed = [
            editing(
                picture(seed=seed),
                INSTRUCTION,
                output_type="latent",
                generator=generator(0),
                callback_on_step_end=lambda _p, i, _t, k: {"latents": k["latents"] * (i > 0)},
            ).image
            for seed in range(2)
        ]
        assert (changed[0] - changed[1]).abs().max() > 1e-3

    def test_any_size_is_what_comes_out(self, editing):
        for width, height in ((16, 16), (48, 80), (320, 32)):
            images = editing(picture(), INSTRUCTION, width=width, height=height, num_inference_steps=1).images
            assert images[0].size == (width, height)

    def test_padding_of_given_rows_changes_nothing(self, editing, generator):
        """Without a mask, as in diffusers, a row attends to whatever its padding holds."""
        names = ("prompt_embeds_qwen", "prompt_embeds_clip", "prompt_cu_seqlens")
        given = dict(zip(names, editing.encode_prompt([SHORT, LONG], picture()), strict=True))
        seeds = lambda: [generator(0), generator(1)]  # noqa: E731
        expected = editing(picture(), **given, generator=seeds(), output_type="pt").image
        text = given["prompt_embeds_qwen"].clone()
        text[0, int(given["prompt_cu_seqlens"][1]) :] = 1e3
        image = editing(
            picture(), **{**given, "prompt_embeds_qwen": text}, generator=seeds(), output_type="pt"
        ).image
        assert (image - expected).abs().max() < 1e-5


class TestRefusals:
    def test_a_text_to_image_checkpoint_names_its_class(self, components, saved_folder):
        with pytest.raises(RequestError, match=r"16 channels .* Kandinsky5T2IPipeline"):
            Kandinsky5I2IPipeline(**components)
        with pytest.raises(RequestError, match="Kandinsky5T2IPipeline"):
            Kandinsky5I2IPipeline.from_pretrained(saved_folder)

    def test_it_is_refused_before_weights_are_read(self, saved_folder, monkeypatch):
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
        with pytest.raises(RequestError, match="Kandinsky5T2IPipeline"):
            Kandinsky5I2IPipeline.from_pretrained(saved_folder)

    @pytest.mark.parametrize(("arguments", "words"), [
        ({"image": None}, "needs a source picture"),
        ({"image": []}, "empty"),
        ({"image": "photo.png"}, r"not str; PIL\.Image\.open"),
        ({"image": [3]}, "not int"),
        ({"image": Image.new("RGB", (1, 1))}, "1x1; both sides"),
        ({"image": Image.new("RGB", (20, 1000))}, "20x1000; its longer side"),
        ({"prompt": None}, "Nothing to draw"),
        ({"prompt": "a <|image_pad|> of it"}, r"<\|image_pad\|>"),
        ({"prompt": "a &lt;|image_pad|> of it"}, r"<\|image_pad\|>"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1"),
        ({"height": 72, "width": 64}, "64 or 80"),
        ({"width": 8}, "Width 8 is outside"),
        ({"height": 100}, "Height 100 is not a multiple"),
        ({"height": "64"}, "Height '64' is not a whole number"),
        ({"size": "source", "width": 64}, "leave them out"),
        ({"size": "upload"}, "native, source"),
        ({"fit": "crop"}, "cover, pad, stretch"),
        ({"max_sequence_length": 1025}, "1 to 1024"),
        ({"num_inference_steps": 0}, "at least 1"),
        ({"num_images_per_prompt": 0}, "at least 1"),
        ({"output_type": "jpeg"}, "pil, np, pt, latent"),
        ({"callback_on_step_end_tensor_inputs": ["velocity"]}, "velocity"),
        ({"latents": torch.zeros(1, 1, 16, 16, 33)}, r"\(1, 1, 16, 16, 16\)"),
        ({"generator": [torch.Generator()] * 2}, "2 generators for 1"),
        ({"latents": torch.zeros(1, 1, 16, 16, 16), "generator": [torch.Generator()] * 2}, "2 generators for 1"),
    ])  # fmt: skip
    def test_before_any_model_runs(self, editing, monkeypatch, arguments, words):
        for component in (editing.text_encoder, editing.text_encoder_2, editing.transformer, editing.vae):
            monkeypatch.setattr(component, "forward", lambda *_, **__: pytest.fail("a model ran"))
        with pytest.raises(RequestError, match=words):
            editing(**{"image": picture(), "prompt": INSTRUCTION, **arguments})

    def test_without_an_autoencoder(self, editing_components):
        with pytest.raises(RequestError, match="without its autoencoder"):
            Kandinsky5I2IPipeline(**{**editing_components, "vae": None})(picture(), INSTRUCTION)

    def test_no_image_at_all(self, editing):
        with pytest.raises(RequestError, match="needs a source picture"):
            editing(prompt=INSTRUCTION)

    def test_a_tokenizer_without_the_pictures_token(self, editing, monkeypatch):
        monkeypatch.setattr(editing.text_encoder.config, "image_token_id", 5)
        with pytest.raises(OSError, match="image_token_id 5"):
            editing(picture(), INSTRUCTION)
