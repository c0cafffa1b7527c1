"""float32: the network against the float64 reference and against diffusers' class without its rotary rounding.

The bound everywhere is 2e-5 of the expected value's root mean square.
"""

import pytest
import torch
from torch import Tensor, nn

from . import peer, reference
from .tiny import Inputs, config_of, inputs_for, relative_rms

BOUND = 2e-5
SHAPES = {
    "wide": dict(batch=1, height=4, width=10, text=7),
    "tall-batch-of-3": dict(batch=3, height=12, width=6, text=33),
    "one-patch-one-token": dict(batch=3, height=2, width=2, text=1),
    "frames": dict(batch=1, frames=3, height=4, width=6, text=7),
    "far-positions": dict(batch=2, height=4, width=6, text=33, first_text=991, first_cell=(125, 100, 3)),
    "scaled-axes": dict(batch=2, height=6, width=8, text=7, scale_factor=(1.0, 2.0, 3.16)),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def shape(request):
    return request.param


@torch.no_grad()
def test_velocity_is_the_references(config, build, shape):
    model, inputs = build(config), inputs_for(config, **shape)
    expected = reference.velocity(model.state_dict(), config, **inputs.arguments())
    assert relative_rms(model(**inputs.arguments()).sample, expected) < BOUND


@torch.no_grad()
def test_velocity_is_diffusers(config, build, build_peer, shape):
    ours, theirs, inputs = build(config), build_peer(config), inputs_for(config, **shape)
    ours.load_state_dict(theirs.state_dict())
    expected = peer.without_rounding(theirs)(**inputs.arguments()).sample
    assert relative_rms(ours(**inputs.arguments()).sample, expected) < BOUND


@torch.no_grad()
def test_patches_may_span_frames(build):
    config = config_of("t2i", patch_size=(2, 2, 2))
    model, inputs = build(config), inputs_for(config, frames=4, height=4, width=6)
    expected = reference.velocity(model.state_dict(), config, **inputs.arguments())
    assert relative_rms(model(**inputs.arguments()).sample, expected) < BOUND


@torch.no_grad()
def test_small_states_show_the_epsilon_of_every_norm(config, build):
    """Variances near each norm's epsilon: a 1e-6 in place of 1e-5, or of float32's machine epsilon, is far off."""
    model, inputs = build(config), inputs_for(config)
    for embedding in (model.text_embeddings, model.pooled_text_embeddings, model.visual_embeddings):
        for parameter in embedding.in_layer.parameters():
            parameter.mul_(3e-3)
    for name, parameter in model.named_parameters():
        if "to_query" in name or "to_key" in name:
            parameter.mul_(1e-3)
    expected = reference.velocity(model.state_dict(), config, **inputs.arguments())
    assert relative_rms(model(**inputs.arguments()).sample, expected) < BOUND


@torch.no_grad()
@pytest.mark.parametrize("time", [0.0, 0.37, 57.7, 500.0, 999.9, 1000.0])
def test_velocity_at_any_time(build, time):
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config).changed(timestep=torch.tensor([time, time]))
    expected = reference.velocity(model.state_dict(), config, **inputs.arguments())
    assert relative_rms(model(**inputs.arguments()).sample, expected) < BOUND


def gradients(velocity: Tensor, parameters: dict[str, Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """Of the velocity along a fixed random direction, with respect to every parameter and floating input."""
    leaves = parameters | floating(inputs)
    direction = torch.randn(velocity.shape, generator=torch.Generator().manual_seed(5))
    return dict(
        zip(leaves, torch.autograd.grad(velocity, list(leaves.values()), direction.to(velocity)), strict=True)
    )


def floating(inputs: Inputs) -> dict[str, Tensor]:
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections")
    return {name: getattr(inputs, name) for name in names}


def leaf(inputs: Inputs) -> Inputs:
    """`inputs` with fresh leaves that ask for gradients."""
    return inputs.changed(**{name: x.clone().requires_grad_() for name, x in floating(inputs).items()})


def network_gradients(model: nn.Module, inputs: Inputs, **extra: Tensor) -> dict[str, Tensor]:
    inputs = leaf(inputs)
    return gradients(model(**inputs.arguments(), **extra).sample, dict(model.named_parameters()), inputs)


MASK = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])


@pytest.mark.parametrize("mask", [None, MASK], ids=["all-text", "masked"])
def test_gradients_are_the_references(config, build, mask):
    model, inputs = build(config), inputs_for(config, text=9)
    ours = network_gradients(model, inputs, **({} if mask is None else {"encoder_attention_mask": mask}))
    exact = leaf(inputs.to(torch.float64))
    weights = {name: tensor.double().requires_grad_() for name, tensor in model.state_dict().items()}
    expected = gradients(reference.velocity(weights, config, **exact.arguments(), mask=mask), weights, exact)
    errors = {name: relative_rms(ours[name], expected[name]) for name in expected}
    assert ours.keys() == errors.keys()
    assert max(errors.values()) < BOUND, max(errors.items(), key=lambda item: item[1])


def test_gradients_are_diffusers(config, build, build_peer):
    ours, theirs, inputs = build(config), build_peer(config), inputs_for(config)
    ours.load_state_dict(theirs.state_dict())
    expected = network_gradients(peer.without_rounding(theirs), inputs)
    actual = network_gradients(ours, inputs)
    errors = {name: relative_rms(actual[name], expected[name]) for name in expected}
    assert max(errors.values()) < BOUND, max(errors.items(), key=lambda item: item[1])
