"""What `torch.autocast` may change: products and attention of a wider network, and nothing that is promised float32."""

import copy

import pytest
import torch
from torch import nn

from kandinsky5.model.attention import HeadNorm
from kandinsky5.model.blocks import Modulation, OutputLayer
from kandinsky5.model.embeddings import TimeEmbedding, VisualEmbedding
from kandinsky5.model.fast import FastPath
from kandinsky5.model.precision import InputPrecisionLinear, PreciseLayerNorm

from .tiny import config_of, inputs_for, relative_rms

PROMISED = (TimeEmbedding, Modulation, VisualEmbedding, OutputLayer, PreciseLayerNorm, HeadNorm)


def autocast():
    return torch.autocast("cpu", torch.bfloat16)


@torch.no_grad()
def called(model: nn.Module, inputs, path: FastPath | None = None) -> torch.Tensor:
    model.fast_path = path
    return model(**inputs.arguments()).sample


@pytest.mark.parametrize("path", [None, FastPath()], ids=["ordinary", "exact"])
def test_a_bfloat16_network_is_the_same_under_it(build, path):
    config = config_of("t2i")
    model, inputs = build(config).to(torch.bfloat16), inputs_for(config)
    plain = called(model, inputs, path)
    with autocast():
        assert torch.equal(called(model, inputs, path), plain)
    assert not torch.equal(plain, plain.bfloat16().float()), "the velocity was never rounded to bfloat16"


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_promised_parts_of_any_network_are_the_same_under_it(build, dtype):
    """Each of them again, under autocast, with what it was given without."""
    config = config_of("i2i")
    model, inputs = build(config).to(dtype), inputs_for(config)
    seen = []
    for module in model.modules():
        if isinstance(module, PROMISED):
            module.register_forward_hook(lambda module, args, out: seen.append((module, args, out)))
    called(model, inputs)
    calls = list(seen)
    assert {type(module) for module, *_ in calls} == set(PROMISED)
    for module, args, expected in calls:
        with autocast():
            out = module(*args)
        for one, other in zip(*((x if isinstance(x, tuple) else (x,)) for x in (out, expected)), strict=True):
            promised = args[0].dtype if isinstance(module, HeadNorm) else torch.float32
            assert one.dtype == other.dtype == promised and torch.equal(one, other), type(module)


def test_a_float32_network_loses_no_more_than_its_products(build):
    """Residuals, gates and norms stay float32, so it is nearer to itself than in bfloat16."""
    config = config_of("t2i")
    model, inputs = build(config), inputs_for(config)
    plain = called(model, inputs)
    with autocast():
        cast = called(model, inputs)
    narrow = called(copy.deepcopy(model).to(torch.bfloat16), inputs)
    assert cast.dtype == torch.float32 and not torch.equal(cast, cast.bfloat16().float())
    assert 0 < relative_rms(cast, plain) <= relative_rms(narrow, plain)


def test_the_meta_device_which_has_none():
    layer = InputPrecisionLinear(8, 4, device="meta")
    with autocast():
        assert layer(torch.empty(3, 8, device="meta")).dtype == torch.float32


@torch.no_grad()
def test_it_compiles_in_one_graph_with_and_without():
    layer, x = InputPrecisionLinear(8, 4).to(torch.bfloat16), torch.randn(3, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), layer(x))
    with autocast():
        assert torch.equal(compiled(x), layer(x)) and compiled(x).dtype == torch.float32
