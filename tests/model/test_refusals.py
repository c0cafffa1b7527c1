"""What cannot be computed is refused in words: what was wrong, with which value. `RequestError` is a `ValueError`."""

import pytest
import torch

from kandinsky5.errors import RequestError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

from .tiny import PUBLISHED, config_of, inputs_for


@pytest.mark.parametrize("attention_type", ["nabla", "flash", ""])
def test_sparse_attention_of_the_video_models(attention_type):
    with pytest.raises(RequestError, match="attention_type") as refusal:
        Kandinsky5Transformer3DModel(**config_of("t2i"), attention_type=attention_type)
    assert repr(attention_type) in str(refusal.value) and "regular" in str(refusal.value)


def test_widths_that_make_no_heads():
    with pytest.raises(RequestError, match="model_dim=60"):
        Kandinsky5Transformer3DModel(**config_of("t2i", model_dim=60))
    with pytest.raises(RequestError, match="axes_dims"):
        Kandinsky5Transformer3DModel(**config_of("t2i", axes_dims=(5, 5, 6)))


@pytest.fixture
def network(build):
    return build(config_of("t2i"))


def refuse(network, *words: str, mask=None, sparse_params=None, **changes) -> None:
    """A good request with `changes` raises `RequestError`, and the message has every one of `words`."""
    inputs = inputs_for(config_of("t2i"))
    network(**inputs.arguments())
    with pytest.raises(RequestError) as refusal, torch.no_grad():
        inputs = inputs.changed(**changes)
        network(**inputs.arguments(), encoder_attention_mask=mask, sparse_params=sparse_params)
    for word in words:
        assert word in str(refusal.value), f"{word!r} is not in: {refusal.value}"


def test_sparse_params(network):
    refuse(network, "sparse_params", sparse_params={"P": 0.9})


@pytest.mark.parametrize("channels", [15, 17, 33])
def test_channels_of_the_other_variant(network, channels):
    refuse(network, "16", str(channels), hidden_states=torch.zeros(2, 1, 6, 8, channels))


def test_channels_of_text_to_image_in_the_editing_network(build):
    network, inputs = build(config_of("i2i")), inputs_for(config_of("t2i"))
    with pytest.raises(RequestError, match=r"33.*16"):
        network(**inputs.arguments())


def test_latents_without_frames(network):
    refuse(network, "(2, 6, 8, 16)", hidden_states=torch.zeros(2, 6, 8, 16))


@pytest.mark.parametrize("height, width", [(5, 8), (6, 7)])
def test_sizes_that_are_no_whole_patches(network, height, width):
    refuse(network, "multiple", str(height), str(width), hidden_states=torch.zeros(2, 1, height, width, 16))


def test_pictures_beyond_the_positions(network):
    refuse(
        network,
        "128",
        "258",
        hidden_states=torch.zeros(2, 1, 2, 258, 16),
        visual_rope_pos=(torch.arange(1), torch.arange(1), torch.arange(129)),
    )


def test_text_beyond_the_positions(network):
    refuse(
        network,
        "1024",
        "1025",
        encoder_hidden_states=torch.zeros(2, 1025, 24),
        text_rope_pos=torch.arange(1025),
    )


def test_the_longest_text_runs(network):
    inputs = inputs_for(config_of("t2i"), text=1024, height=2, width=2)
    with torch.no_grad():
        assert network(**inputs.arguments()).sample.isfinite().all()


def test_the_largest_picture_on_the_meta_device():
    """128 patches an axis, 2048 x 2048 pixels, is within the positions of the published networks."""
    with torch.device("meta"):
        network = Kandinsky5Transformer3DModel.from_config(
            {**PUBLISHED, "num_visual_blocks": 1, "num_text_blocks": 1}
        )
        out = network(
            torch.empty(1, 1, 256, 256, 16),
            torch.empty(1, 512, 3584),
            torch.empty(1),
            torch.empty(1, 768),
            (torch.arange(1), torch.arange(128), torch.arange(128)),
            torch.arange(512),
        ).sample
    assert out.shape == (1, 1, 256, 256, 16)


@pytest.mark.parametrize("shape", [(2, 6), (1, 7), (7,), (2, 1, 1, 7)], ids=str)
def test_masks_of_another_shape(network, shape):
    refuse(network, "encoder_attention_mask", "(2, 7)", str(shape), mask=torch.ones(shape, dtype=torch.bool))


def test_a_row_without_any_text(network):
    """A softmax over nothing: refused, or finite and blind to what is masked; never a NaN."""
    inputs, mask = inputs_for(config_of("t2i")), torch.tensor([[True] * 7, [False] * 7])
    with torch.no_grad():
        try:
            out = network(**inputs.arguments(), encoder_attention_mask=mask).sample
        except RequestError as refusal:
            assert "encoder_attention_mask" in str(refusal)
        else:
            assert out.isfinite().all()


def test_positions_that_do_not_count_the_tokens(network):
    """One position for seven tokens would broadcast: every token in the same place, silently."""
    refuse(network, "text_rope_pos", text_rope_pos=torch.arange(1))
    refuse(network, "text_rope_pos", text_rope_pos=torch.arange(8))


@pytest.mark.parametrize("cells", [(1, 1, 1), (1, 3, 3), (1, 4, 3)], ids=str)
def test_positions_that_do_not_count_the_patches(network, cells):
    refuse(network, "visual_rope_pos", visual_rope_pos=tuple(torch.arange(n) for n in cells))


def test_times_that_do_not_count_the_batch(network):
    refuse(network, "timestep", timestep=torch.zeros(3))


def test_text_of_another_width(network):
    refuse(network, "24", "25", encoder_hidden_states=torch.zeros(2, 7, 25))


def test_pooled_text_of_another_width(network):
    refuse(network, "20", "21", pooled_projections=torch.zeros(2, 21))


@pytest.mark.parametrize("name", ["encoder_hidden_states", "pooled_projections"])
def test_one_prompt_for_two_pictures(network, name):
    """Refused, or exactly the prompt repeated."""
    inputs = inputs_for(config_of("t2i"))
    one = getattr(inputs, name)[:1]
    repeated = inputs.changed(**{name: one.repeat(2, *[1] * (one.ndim - 1))})
    with torch.no_grad():
        expected = network(**repeated.arguments()).sample
        try:
            actual = network(**inputs.changed(**{name: one}).arguments()).sample
        except RequestError as refusal:
            assert name in str(refusal)
        else:
            assert torch.equal(actual, expected)


def test_three_prompts_for_two_pictures(network):
    refuse(network, "encoder_hidden_states", encoder_hidden_states=torch.zeros(3, 7, 24))
    refuse(network, "pooled_projections", pooled_projections=torch.zeros(3, 20))
