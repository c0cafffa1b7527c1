"""The oracle itself is held to diffusers' class in float64, where nothing but mathematics is left to differ."""

import pytest
import torch

from . import peer, reference
from .tiny import inputs_for, relative_rms

SHAPES = [
    dict(batch=2, height=6, width=8, text=7),
    dict(batch=1, frames=2, height=2, width=10, text=33),
    dict(
        batch=3,
        height=4,
        width=4,
        text=1,
        first_text=991,
        first_cell=(90, 3, 120),
        scale_factor=(1.0, 2.0, 3.16),
    ),
]


@pytest.mark.parametrize("shape", SHAPES, ids=["image", "frames", "far-scaled"])
def test_reference_is_diffusers_mathematics(config, build_peer, shape):
    model, inputs = build_peer(config), inputs_for(config, **shape).to(torch.float64)
    with peer.in_float64(model), torch.no_grad():
        theirs = model(**inputs.arguments()).sample
    ours = reference.velocity(model.state_dict(), config, **inputs.arguments())
    assert relative_rms(ours, theirs) < 1e-13


def test_reference_mask_leaves_tokens_out(config, build_peer):
    """A masked token is as good as never having been there, in a batch whose rows differ in length."""
    weights = build_peer(config).state_dict()
    whole = inputs_for(config, batch=2, text=9)
    mask = torch.tensor([[True] * 4 + [False] * 5, [True] * 9])
    masked = reference.velocity(weights, config, **whole.arguments(), mask=mask)
    for row, length in enumerate([4, 9]):
        alone = whole.changed(
            hidden_states=whole.hidden_states[row : row + 1],
            encoder_hidden_states=whole.encoder_hidden_states[row : row + 1, :length],
            timestep=whole.timestep[row : row + 1],
            pooled_projections=whole.pooled_projections[row : row + 1],
            text_rope_pos=whole.text_rope_pos[:length],
        )
        assert (
            relative_rms(masked[row : row + 1], reference.velocity(weights, config, **alone.arguments()))
            < 1e-13
        )


def test_every_parameter_reaches_the_output(config, build_peer):
    """The drawn weights leave no parameter without influence: an error in any of them can be seen."""
    weights = {
        name: tensor.double().requires_grad_() for name, tensor in build_peer(config).state_dict().items()
    }
    out = reference.velocity(weights, config, **inputs_for(config).arguments())
    gradients = torch.autograd.grad(out.pow(2).sum(), list(weights.values()))
    influence = {
        name: float((gradient * tensor).detach().abs().max() / out.detach().pow(2).sum())
        for (name, tensor), gradient in zip(weights.items(), gradients, strict=True)
    }
    assert min(influence.values()) > 1e-6, min(influence, key=influence.get)
