"""Float8 attention: its scales, the heads it is given, how it is wired in, and cuDNN's kernel against float64."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from kandinsky5.model.attention import Attention
from kandinsky5.model.fast import FastPath
from kandinsky5.model.float8_attention import HeadScales, attend_self, plan_of, why_no_float8_attention
from kandinsky5.model.kernels import EAGER
from kandinsky5.model.quantising import quantise, scale_heads
from kandinsky5.model.scaled import FLOAT8, ScaledLinear, ScaledRows
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.placement import use_mode

from .tiny import config_of, drawn, inputs_for, relative_rms

CUDA = torch.device("cuda")


def attention_of(width=64, channels=16):
    torch.manual_seed(0)
    made = Attention(width, channels).requires_grad_(False)
    for norm in (made.query_norm, made.key_norm):
        norm.weight.copy_(1 + 0.3 * torch.randn(channels))
    made.to_value = ScaledLinear.of(made.to_value)
    return made


def in_float8(x, scale):
    return (x.float() * scale).clamp(-448, 448).to(FLOAT8).float() / scale


def twin(query, query_weight, key, key_weight, value, rotation, scales):
    """`attend_self` in torch."""
    query = in_float8(EAGER.norm_rotate(query.float(), query_weight, rotation), scales.query)
    key = in_float8(EAGER.norm_rotate(key.float(), key_weight, rotation), scales.key)
    scores = torch.einsum("bnak,bmak->banm", query, key) / math.sqrt(query.shape[-1])
    shares = (scores - scores.amax(-1, keepdim=True)).exp()
    total = shares.sum(-1).permute(0, 2, 1)[..., None]
    found = torch.einsum("banm,bmak->bnak", in_float8(shares, 448.0), in_float8(value, scales.value)) / total
    rows = torch.full((*found.shape[:2], 1), 1 / scales.value, device=found.device)
    return ScaledRows(
        values=(found.flatten(-2) * scales.value).clamp(-448, 448).to(FLOAT8), scale=rows, dtype=value.dtype
    )


def test_no_normed_head_is_clipped():
    """The worst: one channel holds all of a head."""
    attention = attention_of()
    scales = HeadScales.of(attention)
    for norm, scale in ((attention.query_norm, scales.query), (attention.key_norm, scales.key)):
        heads = torch.eye(16)[None, None] * 1e3
        most = EAGER.norm_rotate(heads, norm.weight, None).abs().max()
        assert 0.99 * 448 <= most * scale <= 448


def test_no_value_of_a_token_of_deviation_one_is_clipped():
    """The worst: the token that lies along the longest row of the matrix; there is as much room again."""
    attention = attention_of()
    layer, scale = attention.to_value, HeadScales.of(attention).value
    matrix = layer.weight.float() * layer.scale[:, None]
    longest = matrix[matrix.norm(dim=1).argmax()]
    token = longest / longest.norm() * math.sqrt(64)
    most = (matrix @ token).abs().max()
    assert 100 < most * scale <= 224


def test_scales_of_weights_that_are_zero():
    attention = attention_of()
    for tensor in (attention.query_norm.weight, attention.key_norm.weight, attention.to_value.scale):
        tensor.zero_()
    attention.to_value.bias.zero_()
    scales = HeadScales.of(attention)
    assert (scales.query, scales.key, scales.value) == (1, 1, 1)


def test_its_numbers_stay_where_they_are():
    """A captured graph has their addresses."""
    scales = HeadScales.of(attention_of())
    first, again = (scales.numbers(torch.device("cpu")) for _ in range(2))
    assert [one.data_ptr() for one in first] == [one.data_ptr() for one in again]
    assert [
        float(a) * b for a, b in zip(first[:3], (scales.query, scales.key, scales.value), strict=True)
    ] == (pytest.approx([1, 1, 1]))


class TestInTheNetwork:
    @pytest.fixture
    def network(self):
        return drawn(Kandinsky5Transformer3DModel(**config_of("t2i")))

    def velocity(self, network, path, inputs):
        network.fast_path = path
        with torch.no_grad():
            return network(**inputs.arguments()).sample

    def test_it_is_asked_and_adds_little_error(self, network):
        inputs = inputs_for(config_of("t2i"))
        exact = self.velocity(network, None, inputs)
        quantise(network)
        scale_heads(network)
        asked = []

        def attend(*given):
            asked.append(given[0].shape)
            return twin(*given)

        plain = self.velocity(network, FastPath(EAGER, float8=True), inputs)
        found = self.velocity(network, FastPath(replace(EAGER, attend_self=attend), float8=True), inputs)
        assert len(asked) == len(network.visual_transformer_blocks)
        assert relative_rms(found, plain) > 0
        assert relative_rms(found, exact) < 1.3 * relative_rms(plain, exact)

    def test_a_shape_without_a_kernel_goes_the_other_way(self, network):
        inputs = inputs_for(config_of("t2i"))
        quantise(network)
        scale_heads(network)
        plain = self.velocity(network, FastPath(EAGER, float8=True), inputs)
        never = replace(EAGER, attend_self=lambda *_: None)
        assert torch.equal(self.velocity(network, FastPath(never, float8=True), inputs), plain)

    def test_a_back_end_that_was_chosen_is_used(self, network):
        quantise(network)
        scale_heads(network)
        network.set_attention_backend("_native_math")

        def never(*_):
            raise AssertionError("asked")

        self.velocity(
            network, FastPath(replace(EAGER, attend_self=never), float8=True), inputs_for(config_of("t2i"))
        )

    def test_the_mode_gives_it_scales(self, network):
        """And back to fp8 without loading again: the float8 layers are the same."""
        use_mode(network, "fp8")
        assert all(block.self_attention.head_scales is None for block in network.visual_transformer_blocks)
        use_mode(network, "fp8-attention")
        assert all(block.self_attention.head_scales for block in network.visual_transformer_blocks)
        assert network.fast_path.mode == "fp8-attention"
        use_mode(network, "fp8")
        assert network.fast_path.mode == "fp8"


@pytest.mark.parametrize(
    ("dtype", "channels"), [(torch.float16, 16), (torch.float32, 16), (torch.bfloat16, 12)]
)
def test_other_dtypes_and_heads_go_the_other_way(dtype, channels):
    """As `resolve_mode` says: products of such a network are widened, and attention is the back end's."""
    attention = attention_of(4 * channels, channels)
    heads, weight = torch.randn(1, 8, 4, channels, dtype=dtype), attention.query_norm.weight
    rotation = torch.ones(8, channels // 2, 2)
    assert attend_self(heads, weight, heads, weight, heads, rotation, HeadScales.of(attention)) is None


def test_where_there_is_none():
    assert "CUDA" in why_no_float8_attention(torch.device("cpu"))


@pytest.mark.gpu
class TestWithCudnn:
    @pytest.fixture(autouse=True)
    def there(self):
        if (reason := why_no_float8_attention(CUDA)) is not None:
            pytest.skip(reason)

    def drawn(self, tokens, heads=4, channels=128, rows=2):
        torch.manual_seed(1)
        attention = attention_of(heads * channels, channels).to(CUDA, torch.bfloat16)
        packed = torch.randn(rows, tokens, 3, heads, channels, device=CUDA).to(torch.bfloat16)
        angles = 3 * torch.randn(tokens, channels // 2, device=CUDA)
        rotation = torch.stack([angles.cos(), angles.sin()], -1)
        query, key, value = packed.unbind(2)
        weights = attention.query_norm.weight, attention.key_norm.weight
        return query, weights[0], key, weights[1], value, rotation, HeadScales.of(attention)

    @pytest.mark.parametrize("tokens", [256, 1024, 1008])
    @pytest.mark.parametrize("channels", [64, 128])
    def test_against_float64(self, tokens, channels):
        given = self.drawn(tokens, channels=channels)
        query, query_weight, key, key_weight, value, rotation, _ = given
        heads = (
            EAGER.norm_rotate(query.double(), query_weight.double(), rotation.double()),
            EAGER.norm_rotate(key.double(), key_weight.double(), rotation.double()),
            value.double(),
        )
        expected = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in heads)).transpose(1, 2)
        found = attend_self(*given)
        assert found is not None and found.values.dtype == FLOAT8
        error = relative_rms(found.widened(), expected.flatten(-2))
        assert error < 1.1 * relative_rms(twin(*given).widened(), expected.flatten(-2)) < 0.1

    def test_a_head_that_is_no_number_stays_in_its_row(self):
        given = list(self.drawn(256))
        given[0] = given[0].clone()
        given[0][1, 3, 2, 5] = float("nan")
        lost = attend_self(*given).widened().isnan()
        assert lost[1, 3, 2 * 128 : 3 * 128].all() and lost.sum() == 128

    def test_it_is_captured(self):
        given = self.drawn(256)
        plain = attend_self(*given).widened()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            held = attend_self(*given)
        held.values.view(torch.uint8).zero_()
        graph.replay()
        assert torch.equal(held.widened(), plain)

    def test_a_plan_is_built_once(self):
        assert plan_of(2, 256, 4, 128, torch.device("cuda", 0)) is plan_of(
            2, 256, 4, 128, torch.device("cuda", 0)
        )
