"""Float32 inside a narrow network, shown by cancellation: no average over roundings to hide in.

Weights are chosen so that a sum which belongs in float32 nearly cancels. What is left is the part that bfloat16 or
float16 would have rounded off: computed in float32 the velocity is right to a few per mille, computed in the network's
dtype it has nothing to do with the reference.
"""

import pytest
import torch
from torch import Tensor, nn

from . import reference
from .tiny import config_of, inputs_for, relative_rms

CONFIG = config_of("t2i", num_text_blocks=1, num_visual_blocks=1)
WIDTH = CONFIG["model_dim"]
BOUND = 0.02


@pytest.fixture(params=[torch.bfloat16, torch.float16], ids=str)
def network(request, build) -> nn.Module:
    """Stored in the narrow dtype; silent but for the last projection: every token keeps the state it enters with."""
    model = build(CONFIG).to(request.param)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and name != "out_layer.out_layer.weight":
                parameter.zero_()
    return model


def random(count: int, seed: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def put(parameter: Tensor, values: Tensor, at: int = 0) -> Tensor:
    """`values` into the vector `parameter` from index `at` on; returns what is stored of them, in float64."""
    with torch.no_grad():
        parameter[at : at + len(values)] = values.to(parameter.dtype)
    return parameter.detach()[at : at + len(values)].double()


def error(network: nn.Module) -> float:
    inputs = inputs_for(CONFIG).to(network.dtype)
    with torch.no_grad():
        expected = reference.velocity(network.state_dict(), CONFIG, **inputs.arguments())
        return relative_rms(network(**inputs.arguments()).sample, expected)


@pytest.mark.parametrize("attention, gate", [("self_attention", 2), ("cross_attention", 5)])
def test_gates(network, attention, gate):
    """`x + gate * out` with `x` the rounded negative of `gate * out`."""
    block = network.visual_transformer_blocks[0]
    gates = put(block.visual_modulation.out_layer.bias, random(WIDTH, 1), gate * WIDTH)
    out = put(getattr(block, attention).out_layer.bias, random(WIDTH, 2))
    put(network.visual_embeddings.in_layer.bias, -gates * out)
    assert error(network) < BOUND


def test_feed_forward_gate(network):
    """The same for the third gate; 16 passes the GELU unchanged, so that the layers before it round nothing."""
    block = network.visual_transformer_blocks[0]
    modulation = block.visual_modulation.out_layer.bias
    put(modulation, torch.full((WIDTH,), 16.0), 6 * WIDTH)
    put(modulation, torch.full((WIDTH,), -1.0), 7 * WIDTH)
    gates = put(modulation, random(WIDTH, 1), 8 * WIDTH)
    with torch.no_grad():
        block.feed_forward.in_layer.weight[0, 0] = 1.0
    out = 16 * put(block.feed_forward.out_layer.weight[:, 0], random(WIDTH, 2) / 16)
    put(network.visual_embeddings.in_layer.bias, -gates * out)
    assert error(network) < BOUND


def test_output_norm_and_shift(network):
    """`layer_norm(x) * (1 + scale) + shift` with `shift` the rounded negative of the product."""
    state = put(network.visual_embeddings.in_layer.bias, random(WIDTH, 3))
    scale = put(network.out_layer.modulation.out_layer.bias, 0.5 * random(WIDTH, 4), WIDTH)
    put(network.out_layer.modulation.out_layer.bias, -reference.layer_norm(state) * (1 + scale))
    assert error(network) < BOUND


def test_block_norm_and_shift(network):
    """The same in front of self-attention, whose values are enlarged to be seen in the stream."""
    block = network.visual_transformer_blocks[0]
    modulation = block.visual_modulation.out_layer.bias
    state = put(network.visual_embeddings.in_layer.bias, random(WIDTH, 3))
    scale = put(modulation, 0.5 * random(WIDTH, 4), WIDTH)
    shift = put(modulation, -reference.layer_norm(state) * (1 + scale))
    put(modulation, torch.ones(WIDTH), 2 * WIDTH)
    left = reference.layer_norm(state) * (1 + scale) + shift
    with torch.no_grad():
        block.self_attention.to_value.weight.copy_(torch.eye(WIDTH) / left.square().mean().sqrt())
        block.self_attention.out_layer.weight.copy_(torch.eye(WIDTH))
    assert error(network) < BOUND


def test_text_norm(network):
    """Text states far from zero mean: the projection is exact, and a norm in the narrow dtype would lose the rest."""
    text = network.text_embeddings
    block = network.visual_transformer_blocks[0]
    state = put(text.in_layer.bias, random(WIDTH, 5))
    weight = put(text.norm.weight, 1 + 0.3 * random(WIDTH, 6))
    bias = put(text.norm.bias, -reference.layer_norm(state) * weight)
    left = reference.layer_norm(state) * weight + bias
    put(block.visual_modulation.out_layer.bias, torch.ones(WIDTH), 5 * WIDTH)
    with torch.no_grad():
        block.cross_attention.to_value.weight.copy_(torch.eye(WIDTH) / left.square().mean().sqrt())
        block.cross_attention.out_layer.weight.copy_(torch.eye(WIDTH))
    assert error(network) < BOUND


def test_time_and_pooled_text(network):
    """The time vector is a float32 sum: its two halves cancel but for what a rounded half would lose."""
    dim = CONFIG["time_dim"]
    time = put(network.time_embeddings.out_layer.bias, random(dim, 7))
    pooled = put(network.pooled_text_embeddings.in_layer.bias, random(dim, 8))
    weight = put(network.pooled_text_embeddings.norm.weight, 1 + 0.3 * random(dim, 9))
    bias = put(network.pooled_text_embeddings.norm.bias, -time - reference.layer_norm(pooled) * weight)
    left = time + reference.layer_norm(pooled) * weight + bias
    put(network.visual_embeddings.in_layer.bias, random(WIDTH, 3))
    with torch.no_grad():
        shift = network.out_layer.modulation.out_layer.weight
        shift[:dim] = torch.eye(dim) / left.square().mean().sqrt()
        shift[dim : 2 * dim] = 2 * torch.eye(dim) / left.square().mean().sqrt()
    assert error(network) < BOUND


def test_modulation_of_the_time_vector(network):
    """A shift `K silu(time) + bias` with `bias` the rounded negative, K so large that what is left is of order one."""
    dim, large = CONFIG["time_dim"], 2 / torch.finfo(network.dtype).eps
    norm = network.pooled_text_embeddings.norm
    time = put(network.time_embeddings.out_layer.bias, random(dim, 7))
    pooled = put(network.pooled_text_embeddings.in_layer.bias, random(dim, 8))
    time = (
        time
        + reference.layer_norm(pooled) * put(norm.weight, random(dim, 9))
        + put(norm.bias, random(dim, 10))
    )
    modulation = network.out_layer.modulation.out_layer
    with torch.no_grad():
        modulation.weight[:dim] = large * torch.eye(dim)
    put(modulation.bias, -large * reference.silu(time))
    put(network.visual_embeddings.in_layer.bias, random(WIDTH, 3))
    assert error(network) < BOUND


def test_queries_are_rounded_once(network, monkeypatch):
    """What reaches the attention kernel as a query is the exact norm and rotation, rounded at the end."""
    seen = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def watched(*args, **kwargs):
        seen.append(kwargs["query"] if "query" in kwargs else args[0])
        return attend(*args, **kwargs)

    head_dim = sum(CONFIG["axes_dims"])
    attention = network.visual_transformer_blocks[0].self_attention
    query = put(attention.to_query.bias, random(WIDTH, 11)).unflatten(0, (-1, head_dim))
    weight = put(attention.query_norm.weight, 1 + 0.3 * random(head_dim, 12))
    inputs = inputs_for(CONFIG, batch=1, height=16, width=24, first_cell=(0, 100, 60)).to(network.dtype)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    with torch.no_grad():
        network(**inputs.arguments())

    turns = reference.grid_turns(inputs.visual_rope_pos, CONFIG["axes_dims"], inputs.scale_factor)
    exact = torch.stack(
        [reference.rotate(reference.rms_norm(q, weight).expand(len(turns), -1), turns) for q in query]
    )
    given = seen[1][0]  # the text block's attention is the first; (A, N, K)
    assert given.dtype == network.dtype
    assert (given == exact.to(network.dtype)).double().mean() > 0.99


@torch.no_grad()
def test_small_queries_meet_float32s_epsilon(build):
    """RMSNorm's epsilon is float32's also where queries are bfloat16, whose own is 65536 times larger."""
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    for name, parameter in model.named_parameters():
        if "to_query" in name or "to_key" in name:
            parameter.mul_(1e-2)
    model, inputs = model.to(torch.bfloat16), inputs.to(torch.bfloat16)
    expected = reference.velocity(model.state_dict(), config, **inputs.arguments())
    assert relative_rms(model(**inputs.arguments()).sample, expected) < BOUND
