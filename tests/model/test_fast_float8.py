"""Float8 layers: how far off they are, what extreme activations do to them, and who is refused."""

import pytest
import torch
from peft import LoraConfig
from torch import nn

from kandinsky5.errors import RequestError
from kandinsky5.model.fast import FastPath, prepare_for_speed
from kandinsky5.model.products import joined, lay_together, product, products
from kandinsky5.model.quantising import FLOAT8_LAYERS, KEPT_LAYERS, float8_layers, quantise
from kandinsky5.model.scaled import FLOAT8, ScaledLinear, quantise_rows, why_no_float8_products
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

from .tiny import config_of, drawn, inputs_for, relative_rms


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return nn.Linear(96, 48).requires_grad_(False)


@pytest.fixture
def network(config):
    return drawn(Kandinsky5Transformer3DModel(**config))


def forward(network, inputs, path=None):
    network.fast_path = path
    with torch.no_grad():
        return network(**inputs).sample


def test_a_layer(layer):
    """3 bits behind the point: a relative error of 1 / 16 a number at most, some 2.6 % of each factor in the mean."""
    x = torch.randn(7, 5, 96)
    found = ScaledLinear.of(layer)(x)
    assert found.shape == (7, 5, 48) and found.dtype == torch.float32
    assert 0.01 < relative_rms(found, layer(x)) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_channel_and_a_token_have_their_own_scale(layer, dtype):
    layer.weight[3] *= 1e-4
    layer.bias.zero_()
    x = torch.randn(5, 96)
    x[2] *= 300
    found, expected = ScaledLinear.of(layer.to(dtype))(x.to(dtype)), layer.float()(x)
    assert found.dtype == dtype
    for part, whole in ((found[:, 3], expected[:, 3]), (found[2], expected[2]), (found[4], expected[4])):
        assert relative_rms(part, whole) < 0.07


def test_extreme_activations_overflow_nothing(layer):
    x = torch.randn(4, 96) * torch.tensor([1e-30, 1.0, 1e4, 1e30])[:, None]
    layer.bias.zero_()
    for row, expected in zip(ScaledLinear.of(layer)(x), layer(x), strict=True):
        if expected.abs().max() > 1e-20:  # smaller rows come out as zeros
            assert relative_rms(row, expected) < 0.06
        assert row.isfinite().all()


def test_a_token_that_is_no_number_stays_one(layer):
    x = torch.randn(3, 96)
    x[1, 5] = torch.inf
    found = ScaledLinear.of(layer)(x)
    assert not found[1].isfinite().any() and found[[0, 2]].isfinite().all()


def test_casting_a_network_keeps_its_float8_layers(layer):
    scaled = ScaledLinear.of(layer)
    x = torch.randn(5, 96)
    before, weight = scaled(x), scaled.weight.float()
    scaled = nn.Sequential(scaled).to(torch.float64).to(torch.float32)[0]
    assert scaled.weight.dtype == FLOAT8 and scaled.scale.dtype == torch.float32
    assert torch.equal(scaled.weight.float(), weight) and torch.equal(scaled(x), before)


def test_moving_a_network_moves_its_float8_layers(layer):
    scaled = nn.Sequential(ScaledLinear.of(layer)).to("meta")[0]
    assert {tensor.device.type for tensor in scaled.buffers()} == {"meta"}
    assert scaled.weight.dtype == FLOAT8


@pytest.mark.parametrize("kind", [nn.Identity, ScaledLinear.of], ids=["plain", "float8"])
@pytest.mark.parametrize("bias", [True, False])
def test_one_product_for_three_layers(kind, bias):
    torch.manual_seed(1)
    plain = [nn.Linear(96, 48, bias=bias).requires_grad_(False) for _ in range(3)]
    layers = plain if kind is nn.Identity else [kind(layer) for layer in plain]
    x = torch.randn(2, 5, 96)
    rows = x if kind is nn.Identity else quantise_rows(x, x.dtype)
    expected = [product(layer, rows) for layer in layers]
    assert len({part.untyped_storage().data_ptr() for part in products(layers, rows)}) == 3
    lay_together(layers)
    found = products(layers, rows)
    assert len({part.untyped_storage().data_ptr() for part in found}) == 1, "one product"
    for part, whole in zip(found, expected, strict=True):
        assert relative_rms(part, whole) < 1e-6
    assert relative_rms(products(layers, x)[2], expected[2]) < 1e-6, "rows that are still wide"


def test_layers_that_lie_together_in_another_order():
    layers = [nn.Linear(96, 48).requires_grad_(False) for _ in range(3)]
    lay_together(layers)
    first, second, third = layers
    assert joined([layer.weight for layer in (first, third, second)]) is None
    assert joined([layer.weight for layer in (second, third)]) is not None, "two of them are a pair too"
    x = torch.randn(5, 96)
    for part, layer in zip(products([third, first, second], x), [third, first, second], strict=True):
        assert torch.equal(part, layer(x))


def test_layers_of_two_kinds_stay_apart(layer):
    layers = [layer, ScaledLinear.of(nn.Linear(96, 48).requires_grad_(False))]
    lay_together(layers)
    assert joined([each.weight for each in layers]) is None
    x = torch.randn(5, 96)
    assert [part.shape for part in products(layers, x)] == [(5, 48), (5, 48)]


def test_the_network(network, config):
    inputs = inputs_for(config).arguments()
    expected, dtype = forward(network, inputs), network.dtype
    quantise(network)
    ordinary = forward(network, inputs)
    error = relative_rms(ordinary, expected)
    assert 0.005 < error < 0.1
    prepare_for_speed(network)
    fast = forward(network, inputs, FastPath())
    assert relative_rms(fast, expected) < 1.05 * error
    assert network.dtype == dtype
    quantise(network)  # which changes nothing more
    assert torch.equal(forward(network, inputs, FastPath()), fast)


def test_every_linear_layer_is_one_or_the_other(config):
    """Those that become float8, and those that the table keeps, are all there are in a visual block."""
    network = Kandinsky5Transformer3DModel(**config)
    block = network.visual_transformer_blocks[0]
    linear = {name for name, module in block.named_modules() if isinstance(module, nn.Linear)}
    kept = {name for name in KEPT_LAYERS if name.startswith("cross")} | {"visual_modulation.out_layer"}
    assert linear == {*FLOAT8_LAYERS, *kept}
    quantise(network)
    found = {name for name, module in network.named_modules() if isinstance(module, ScaledLinear)}
    assert found == {name for name, _, _ in float8_layers(network)}
    assert len(found) == len(FLOAT8_LAYERS) * config["num_visual_blocks"]


def test_the_share_of_the_arithmetic():
    """Of the linear layers at 1024 x 1024 and 128 text tokens, as the table's words say."""
    network = Kandinsky5Transformer3DModel(**config_of("t2i"))
    N, L, D, F = 4096, 128, 2560, 10240
    width = {64: D, 96: F}
    of_float8 = other = 0
    chosen = {name for name, _, _ in float8_layers(network)}
    for name, module in network.named_modules():
        if isinstance(module, nn.Linear) and "transformer_blocks.0" in name and "modulation" not in name:
            tokens, depth = (L, 2) if name.startswith("text") else (N, 50)
            tokens = L if "cross_attention.to_key" in name or "cross_attention.to_value" in name else tokens
            work = tokens * depth * width[module.in_features] * width[module.out_features]
            of_float8, other = (of_float8 + work, other) if name in chosen else (of_float8, other + work)
    assert 0.99 < of_float8 / (of_float8 + other) < 1


def test_an_adapter_is_to_be_fused_first(network):
    network.add_adapter(LoraConfig(r=2, target_modules=["to_query"]))
    with pytest.raises(RequestError, match="fuse"):
        quantise(network)
    assert not any(isinstance(module, ScaledLinear) for module in network.modules()), "nothing half done"


def test_an_adapter_on_float8_layers_is_refused_by_name(network):
    quantise(network)
    with pytest.raises(ValueError, match="ScaledLinear"):
        network.add_adapter(LoraConfig(r=2, target_modules=["to_query"]))


def test_a_float8_network_is_not_saved(network, tmp_path):
    """Its tensors would be a checkpoint that nothing loads."""
    quantise(network)
    with pytest.raises(RequestError, match=r"visual_transformer_blocks\.0\..* is float8"):
        network.save_pretrained(tmp_path / "network")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.gpu
def test_float8_units_against_the_twin():
    if (why := why_no_float8_products(torch.device("cuda"), torch.bfloat16)) is not None:
        pytest.skip(why)
    torch.manual_seed(2)
    for bias in (True, False):
        layer = nn.Linear(2560, 1280, bias=bias).to(torch.bfloat16)
        scaled = ScaledLinear.of(layer)
        rows = quantise_rows(torch.randn(2, 77, 2560), torch.bfloat16)
        expected = scaled.multiply(rows)
        on_card = type(rows)(values=rows.values.cuda(), scale=rows.scale.cuda(), dtype=rows.dtype)
        found = scaled.cuda().multiply(on_card).cpu()
        assert relative_rms(found, expected) < 1e-2, "the units add up in fewer bits"
