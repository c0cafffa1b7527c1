"""Padding that the mask takes out changes nothing: neither its length, nor its place, nor what stands in it."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from . import reference
from .tiny import Inputs, config_of, inputs_for, relative_rms

BOUND = 1e-5
LENGTHS = [7, 3]


def padded(inputs: Inputs, extra: int, fill: float) -> Inputs:
    """`inputs` with `extra` tokens on the right, noise of the size `fill`."""
    text = F.pad(inputs.encoder_hidden_states, (0, 0, 0, extra))
    noise = fill * torch.randn(text.shape, generator=torch.Generator().manual_seed(3))
    text[:, inputs.encoder_hidden_states.shape[1] :] = noise[:, inputs.encoder_hidden_states.shape[1] :]
    return inputs.changed(encoder_hidden_states=text, text_rope_pos=torch.arange(text.shape[1]))


def valid(lengths: list[int], total: int) -> Tensor:
    """(B, total) bool: the first `lengths[b]` tokens of row b."""
    return torch.arange(total)[None] < torch.tensor(lengths)[:, None]


def alone(inputs: Inputs, row: int, length: int) -> Inputs:
    """Row `row` as a batch of one, with only its first `length` text tokens."""
    rows = slice(row, row + 1)
    return inputs.changed(
        hidden_states=inputs.hidden_states[rows],
        encoder_hidden_states=inputs.encoder_hidden_states[rows, :length],
        timestep=inputs.timestep[rows],
        pooled_projections=inputs.pooled_projections[rows],
        text_rope_pos=inputs.text_rope_pos[:length],
    )


@torch.no_grad()
@pytest.mark.parametrize("fill", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("extra", [0, 1, 13, 100])
def test_right_padding_changes_nothing(config, build, extra, fill):
    """Rows of 7 and 3 tokens, padded together by any amount, are the rows run alone without padding or mask."""
    model, inputs = build(config), inputs_for(config, text=max(LENGTHS))
    batch = padded(inputs, extra, fill)
    mask = valid(LENGTHS, max(LENGTHS) + extra)
    together = model(**batch.arguments(), encoder_attention_mask=mask).sample
    for row, length in enumerate(LENGTHS):
        expected = model(**alone(inputs, row, length).arguments()).sample
        assert relative_rms(together[row : row + 1], expected) < BOUND


PATTERNS = {
    "right": [[1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]],
    "left": [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]],
    "interleaved": [[1, 0, 1, 0, 0, 1, 1], [0, 1, 1, 0, 1, 0, 0]],
}


@torch.no_grad()
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_any_pattern_is_the_references_and_blind_to_garbage(config, build, pattern):
    model, inputs, mask = build(config), inputs_for(config), torch.tensor(pattern, dtype=torch.bool)
    garbage = 1e4 * torch.randn(
        inputs.encoder_hidden_states.shape, generator=torch.Generator().manual_seed(4)
    )
    spoiled = torch.where(mask[..., None], inputs.encoder_hidden_states, garbage)
    expected = reference.velocity(model.state_dict(), config, **inputs.arguments(), mask=mask)
    for text in (inputs.encoder_hidden_states, spoiled):
        changed = inputs.changed(encoder_hidden_states=text)
        actual = model(**changed.arguments(), encoder_attention_mask=mask).sample
        assert relative_rms(actual, expected) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e30], ids=str)
def test_padding_may_be_no_number(build, fill):
    """An encoder that attends to nothing leaves NaN in its padding: 0 times NaN must not enter the sums."""
    config = config_of("t2i")
    model, inputs, mask = build(config), inputs_for(config), valid([7, 3], 7)
    expected = model(**inputs.arguments(), encoder_attention_mask=mask).sample
    text = inputs.encoder_hidden_states.masked_fill(~mask[..., None], fill)
    actual = model(
        **inputs.changed(encoder_hidden_states=text).arguments(), encoder_attention_mask=mask
    ).sample
    assert relative_rms(actual, expected) < BOUND


@torch.no_grad()
def test_the_mask_matters(build):
    """Without it the padding is seen: what the tests above would miss if the text had no influence."""
    config = config_of("t2i")
    model, inputs = build(config), padded(inputs_for(config), 13, 1.0)
    masked = model(**inputs.arguments(), encoder_attention_mask=valid([7, 7], 20)).sample
    assert relative_rms(model(**inputs.arguments()).sample, masked) > 0.01


@torch.no_grad()
def test_no_mask_is_a_mask_of_ones(config, build):
    model, inputs = build(config), inputs_for(config)
    mask = torch.ones(inputs.encoder_hidden_states.shape[:2], dtype=torch.bool)
    masked = model(**inputs.arguments(), encoder_attention_mask=mask).sample
    assert relative_rms(masked, model(**inputs.arguments()).sample) < BOUND


@torch.no_grad()
def test_a_tokenizers_integer_mask_is_the_boolean_one(build):
    config = config_of("t2i")
    model, inputs, mask = build(config), inputs_for(config), valid([7, 3], 7)
    expected = model(**inputs.arguments(), encoder_attention_mask=mask).sample
    for dtype in (torch.int64, torch.int32):
        assert torch.equal(
            model(**inputs.arguments(), encoder_attention_mask=mask.to(dtype)).sample, expected
        )


def test_padding_gets_no_gradient(config, build):
    model, inputs = build(config), inputs_for(config)
    mask = valid([7, 3], 7)
    text = inputs.encoder_hidden_states.requires_grad_()
    model(**inputs.arguments(), encoder_attention_mask=mask).sample.pow(2).sum().backward()
    assert torch.equal(text.grad[~mask], torch.zeros_like(text.grad[~mask]))
    assert text.grad[mask].abs().amin() > 0


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_padding_changes_nothing_in_half_precision(build, dtype):
    """Garbage up to 1e4 stays finite and unseen; the masked keys drop out of the sums exactly, so equality holds."""
    config = config_of("t2i")
    model, inputs = build(config).to(dtype), padded(inputs_for(config), 13, 1.0).to(dtype)
    mask = valid([7, 7], 20)
    text = inputs.encoder_hidden_states.clone()
    text[:, 7:] *= 1e4
    expected = model(**inputs.arguments(), encoder_attention_mask=mask).sample
    spoiled = model(
        **inputs.changed(encoder_hidden_states=text).arguments(), encoder_attention_mask=mask
    ).sample
    assert torch.equal(spoiled, expected)
    assert expected.isfinite().all()


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("backend", ["native", "_native_math", "flex"])
def test_every_back_end_honours_the_mask(build, backend, back_end_restored):
    """The mask's layout must mean keys to each of diffusers' back ends, not only to the default one."""
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config, batch=2, height=4, width=4, text=7)
    mask = valid([7, 3], 7)
    expected = reference.velocity(model.state_dict(), config, **inputs.arguments(), mask=mask)
    model.set_attention_backend(backend)
    assert relative_rms(model(**inputs.arguments(), encoder_attention_mask=mask).sample, expected) < 2e-5
