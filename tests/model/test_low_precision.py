"""bfloat16 and float16: what is stored may be rounded, what the released model computed in float32 may not.

Errors are measured against the float64 reference *on the same stored weights and inputs*: rounding of the storage is
nobody's error, rounding of the computation is. `loaded` networks keep time embedding and modulation in float32 as
`from_pretrained(torch_dtype=...)` does; `cast` ones went through a plain `.to(dtype)`, which rounds them too.
"""

from statistics import fmean

import pytest
import torch
from torch import nn

from . import peer, reference
from .tiny import Inputs, config_of, drawn, inputs_for, relative_rms

SEEDS = range(12)
SHAPE = dict(batch=2, height=8, width=12, text=17, first_text=600, first_cell=(0, 90, 60))


def loaded(network: type[nn.Module], folder, dtype: torch.dtype) -> nn.Module:
    return network.from_pretrained(folder, torch_dtype=dtype).eval()


def squared_error(model: nn.Module, config: dict, inputs: Inputs) -> float:
    """Relative mean square error of one forward against float64 on this network's own weights."""
    expected = reference.velocity(model.state_dict(), config, **inputs.arguments())
    return relative_rms(model(**inputs.arguments()).sample, expected) ** 2


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # diffusers' norms
@pytest.mark.parametrize("sharpness", [1.0, 4.0], ids=["soft-attention", "sharp-attention"])
def test_bfloat16_error_is_at_most_diffusers(config, sharpness, tmp_path):
    """Aggregate over seeds, same stored weights, same bfloat16 inputs. Sharp attention shows how the scores round."""
    from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

    networks = Kandinsky5Transformer3DModel, peer.Kandinsky5Transformer3DModel
    errors = []
    for seed in SEEDS:
        folder, inputs = tmp_path / str(seed), inputs_for(config, **SHAPE, seed=100 + seed).to(torch.bfloat16)
        released = drawn(peer.Kandinsky5Transformer3DModel(**config), seed)
        for name, parameter in released.named_parameters():
            if name.endswith("query_norm.weight"):
                parameter.mul_(sharpness)
        released.save_pretrained(folder)
        errors.append([squared_error(loaded(n, folder, torch.bfloat16), config, inputs) for n in networks])
    ours, theirs = (fmean(e) ** 0.5 for e in zip(*errors, strict=True))
    assert ours <= 1.05 * theirs
    assert theirs < 0.05  # the yardstick itself is no broken run


@torch.no_grad()
def test_float32_latents_meet_a_bfloat16_network(config, build):
    """The sampler keeps latents in float32: the velocity comes back in float32, and is no worse for it."""
    model = build(config).to(torch.bfloat16)
    inputs = inputs_for(config, **SHAPE)
    narrow = inputs.to(torch.bfloat16)
    wide = narrow.changed(hidden_states=inputs.hidden_states)
    velocity = model(**wide.arguments()).sample
    assert velocity.dtype == torch.float32
    assert not torch.equal(velocity, velocity.to(torch.bfloat16).float())
    assert squared_error(model, config, wide) <= 1.05**2 * squared_error(model, config, narrow)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_velocity_has_the_latents_dtype_and_is_finite(config, build, dtype):
    model, inputs = build(config).to(dtype), inputs_for(config, **SHAPE).to(dtype)
    velocity = model(**inputs.arguments()).sample
    assert velocity.dtype == dtype
    assert velocity.isfinite().all()
    assert squared_error(model, config, inputs) ** 0.5 < {torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]


CASTS = {
    "to-bfloat16": (lambda model: model.to(torch.bfloat16), torch.bfloat16),
    "to-bfloat16-twice": (lambda model: model.to(torch.bfloat16).to(torch.bfloat16), torch.bfloat16),
    "bfloat16": (lambda model: model.bfloat16(), torch.bfloat16),
    "half": (lambda model: model.half(), torch.float16),
    "to-float16": (lambda model: model.to(dtype=torch.float16), torch.float16),
}


@pytest.fixture(params=CASTS.values(), ids=CASTS)
def cast(request):
    return request.param


@torch.no_grad()
def test_a_cast_network_computes_as_well_as_a_loaded_one(cast, build, tmp_path):
    """After `.to(dtype)` the error, on the weights now stored, is that of `from_pretrained(torch_dtype=dtype)`."""
    apply, dtype = cast
    config = config_of("t2i")
    errors = []
    for seed in SEEDS:
        folder, inputs = tmp_path / str(seed), inputs_for(config, **SHAPE, seed=100 + seed).to(dtype)
        model = build(config, seed)
        model.save_pretrained(folder)
        errors.append(
            (
                squared_error(apply(model), config, inputs),
                squared_error(loaded(type(model), folder, dtype), config, inputs),
            )
        )
    cast_error, loaded_error = (fmean(e) ** 0.5 for e in zip(*errors, strict=True))
    assert cast_error <= 1.1 * loaded_error


@torch.no_grad()
def test_cast_and_back_computes_in_float32_again(build):
    """No table or constant was rounded on the way: on the rounded weights it is a float32 network like any other."""
    config = config_of("i2i")
    model, inputs = build(config).to(torch.bfloat16).float(), inputs_for(config, **SHAPE)
    assert squared_error(model, config, inputs) ** 0.5 < 2e-5


def at(inputs: Inputs, time: float) -> Inputs:
    return inputs.changed(timestep=torch.full((len(inputs.hidden_states),), time))


@torch.no_grad()
@pytest.mark.parametrize("times", [(996.1, 997.3), (998.1, 999.9), (500.2, 500.9), (122.8, 123.2)], ids=str)
def test_a_cast_network_tells_times_apart(cast, build, times):
    """Each pair is one number in bfloat16; the network must still answer the *difference* of the two."""
    assert len({float(torch.tensor(t).to(torch.bfloat16)) for t in times}) == 1
    apply, dtype = cast
    config = config_of("t2i")
    model, inputs = apply(build(config)), inputs_for(config, **SHAPE).to(dtype)
    inputs = inputs.changed(
        hidden_states=inputs.hidden_states.float()
    )  # the velocity itself is not rounded either
    exact, actual = [], []
    for t in times:
        arguments = at(inputs, t).arguments()
        exact.append(reference.velocity(model.state_dict(), config, **arguments))
        actual.append(model(**arguments).sample)
    assert relative_rms(actual[0] - actual[1], exact[0] - exact[1]) < 0.2


@torch.no_grad()
def test_a_cast_network_tells_positions_apart(cast, build):
    """Text positions 800 and 801 are one bfloat16 number; so are the angles of rows 100.. in a rounded table."""
    apply, dtype = cast
    config = config_of("t2i")
    model = apply(build(config))
    errors = {}
    for first_text, first_cell in ((0, (0, 0, 0)), (800, (0, 100, 110))):
        inputs = inputs_for(
            config, batch=2, height=8, width=12, text=17, first_text=first_text, first_cell=first_cell
        )
        errors[first_text] = squared_error(model, config, inputs.to(dtype)) ** 0.5
    assert errors[800] < 1.25 * errors[0]
