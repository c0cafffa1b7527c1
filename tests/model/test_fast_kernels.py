"""Every stretch of `kernels`, eager and Triton, against float64; Triton on the CPU through its interpreter."""

import pytest
import torch
import torch.nn.functional as F

from kandinsky5.model.kernels import EAGER, Kernels
from kandinsky5.model.scaled import LARGEST, ScaledRows

from ..interpreter import INTERPRETED, in_the_interpreter, interpret

B, N, A, K = 2, 5, 5, 16
D = A * K
"""No power of two: a program's last columns and heads are masked."""

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 4e-3}
FLOAT8_TOLERANCE = 0.04
"""Rounding to 4 significant bits: at most 1 / 16 a value, a third of it in the mean."""


def implementations():
    yield pytest.param(lambda: EAGER, "cpu", id="eager")
    if INTERPRETED:  # in the process that the last test but one starts
        yield pytest.param(triton_kernels, "cpu", id="interpreter")
    yield pytest.param(triton_kernels, "cuda", id="triton", marks=pytest.mark.gpu)


def triton_kernels() -> Kernels:
    from kandinsky5.model.triton_kernels import TRITON

    return TRITON


def pytest_generate_tests(metafunc):
    if "kernels" in metafunc.fixturenames:
        metafunc.parametrize(["make", "device"], list(implementations()))


@pytest.fixture
def kernels(make):
    return make()


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def draw(device):
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape, dtype=torch.float32, mean=0.5):
        return (torch.randn(shape, generator=generator) + mean).to(device, dtype)

    return drawn


def carried_over(values, expected):
    """float8 as the hardware rounds it. Triton 3.6's interpreter halves a value that rounds up to a power of two."""
    halved = (values / expected > 0.45) & (values / expected < 0.57)
    assert halved.float().mean() < 0.1
    return torch.where(halved, 2 * values, values)


def close(found, expected, tolerance):
    if isinstance(found, ScaledRows):
        found = carried_over(found.widened(), expected) if INTERPRETED else found.widened()
    error = (found.double() - expected).norm() / expected.norm()
    assert error < tolerance, float(error)


def normed(x, shift, scale):
    x = F.layer_norm(x.double(), x.shape[-1:], eps=1e-5)
    return x * (1 + scale.double()[:, None]) + shift.double()[:, None]


def modulation(draw, count):
    """Rows of a larger table, as the network keeps them."""
    return draw(B, 7, D)[:, :count].unbind(1)


@pytest.mark.parametrize("quantise", [False, True])
def test_norm_modulate(kernels, draw, dtype, quantise):
    x, (shift, scale) = draw(B, N, D, dtype=dtype), modulation(draw, 2)
    found = kernels.norm_modulate(x, shift, scale, quantise)
    assert isinstance(found, ScaledRows) == quantise
    close(found, normed(x, shift, scale), FLOAT8_TOLERANCE if quantise else TOLERANCE[dtype])


@pytest.mark.parametrize("quantise", [False, True])
def test_add_gated_norm_modulate(kernels, draw, dtype, quantise):
    x, out = draw(B, N, D, dtype=dtype), draw(B, N, D, dtype=dtype)
    gate, shift, scale = modulation(draw, 3)
    total, found = kernels.add_gated_norm_modulate(x, gate, out, shift, scale, quantise)
    assert total.dtype == dtype
    close(total, x.double() + gate.double()[:, None] * out.double(), TOLERANCE[dtype])
    expected = normed(total, shift, scale)  # of the rounded sum, which the next layer adds to
    close(found, expected, FLOAT8_TOLERANCE if quantise else TOLERANCE[dtype])


def test_the_sum_is_rounded_before_it_is_normed(kernels, draw):
    """As the ordinary way does, where the sum is a tensor of its own: what is under half a unit there is gone."""
    x = (256 + 2 * draw(B, N, D).round().abs()).to(torch.bfloat16)  # a unit is 2
    out = draw(B, N, D).abs().clamp(max=0.9).to(torch.bfloat16)
    gate, (shift, scale) = torch.ones(B, D, device=x.device), modulation(draw, 2)
    gate = torch.stack([gate] * 7, dim=1)[:, 0]  # of the modulation's stride
    total, found = kernels.add_gated_norm_modulate(x, gate, out, shift, scale, False)
    assert torch.equal(total, x)
    close(found, normed(x, shift, scale), 2 * TOLERANCE[torch.bfloat16])


def test_add_gated(kernels, draw, dtype):
    x, out, (gate,) = draw(B, N, D, dtype=dtype), draw(B, N, D, dtype=dtype), modulation(draw, 1)
    found = kernels.add_gated(x, gate, out)
    close(found, x.double() + gate.double()[:, None] * out.double(), TOLERANCE[dtype])


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("packed", [False, True], ids=["own", "a slice of query, key and value"])
def test_norm_rotate(kernels, draw, dtype, rotated, packed):
    x = draw(B, N, 3, A, K, dtype=dtype)[:, :, 1] if packed else draw(B, N, A, K, dtype=dtype)
    weight, angles = draw(K, dtype=dtype), 10 * draw(N, K // 2)
    rotation = torch.stack([angles.cos(), angles.sin()], -1) if rotated else None
    expected = F.rms_norm(x.double(), (K,), weight.double(), torch.finfo(torch.float32).eps)
    if rotated:
        turn = torch.polar(torch.ones_like(angles, dtype=torch.float64), angles.double())[:, None]
        expected = torch.view_as_real(torch.view_as_complex(expected.unflatten(-1, (-1, 2))) * turn).flatten(
            -2
        )
    found = kernels.norm_rotate(x, weight, rotation)
    assert found.is_contiguous() and found.dtype == dtype
    close(found, expected, TOLERANCE[dtype])


def attended(query, weight, key, value, mask):
    """In float64."""
    query = F.rms_norm(query.double(), query.shape[-1:], weight.double(), torch.finfo(torch.float32).eps)
    heads_first = (x.double().transpose(1, 2) for x in (query, key, value))
    mask = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2).flatten(-2)


def text_of(draw, dtype, keys=70, mask=True):
    """More queries than a program takes at a time, and keys whose number is no power of two.

    In float16 for bfloat16 where Triton's interpreter multiplies: it takes bfloat16 for whole numbers (triton 3.9).
    """
    dtype = torch.float16 if INTERPRETED and dtype == torch.bfloat16 else dtype
    query, weight = draw(B, 300, A, K, dtype=dtype, mean=0), draw(K, dtype=dtype)
    key, value = draw(B, keys, 2, A, K, dtype=dtype, mean=0).unbind(2)  # slices of one product
    there = torch.arange(keys, device=key.device) < torch.tensor([[keys], [3]], device=key.device)
    return query, weight, key, value, there if mask else None


@pytest.mark.parametrize("quantise", [False, True])
@pytest.mark.parametrize("mask", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("keys", [3, 70, 150], ids=["few", "usual", "more than a program keeps"])
def test_attend_text(kernels, draw, dtype, mask, keys, quantise):
    given = text_of(draw, dtype, keys, mask)
    found = kernels.attend_text(*given, quantise)
    assert isinstance(found, ScaledRows) == quantise
    close(found, attended(*given), FLOAT8_TOLERANCE if quantise else TOLERANCE[dtype])


@pytest.mark.gpu
@pytest.mark.parametrize("quantise", [False, True])
def test_another_prompt_compiles_nothing(quantise):
    """In a process of its own kinds: another width of heads than elsewhere in this file."""
    from kandinsky5.model.triton_attention import _attend_text

    def attend(keys: int, *, mask: bool) -> int:
        rows = torch.randn(2, 100, 2, 32, device="cuda", dtype=torch.bfloat16)
        key, value = torch.randn(2, keys, 2, 2, 32, device="cuda", dtype=torch.bfloat16).unbind(2)
        there = torch.ones(2, keys, dtype=torch.bool, device="cuda") if mask else None
        triton_kernels().attend_text(rows, rows[0, 0, 0], key, value, there, quantise)
        return len(_attend_text.device_caches[torch.cuda.current_device()][0])

    compiled = attend(100, mask=False)
    assert [attend(keys, mask=mask) for keys in (100, 64, 17, 3) for mask in (True, False)] == [compiled] * 8


def test_a_padded_entry_is_attended_as_if_alone(kernels, draw, dtype):
    """Nothing of its neighbours' length is left, nor of what stands in its padding; of float8 not in the scale."""
    query, weight, key, value, mask = text_of(draw, dtype)
    value[1, 3:] = 1e4
    rows = kernels.attend_text(query, weight, key, value, mask, True)
    alone = kernels.attend_text(query[1:], weight, key[1:, :3], value[1:, :3], None, True)
    assert torch.allclose(rows.scale[1:], alone.scale, rtol=1e-2)
    close(
        ScaledRows(values=rows.values[1:], scale=rows.scale[1:], dtype=dtype), alone.widened().double(), 0.02
    )


def test_attended_numbers_that_are_none_stay_in_their_row(kernels, draw):
    query, weight, key, value, _ = text_of(draw, torch.float32)
    query[0, 5, 2, 1] = float("nan")
    for quantise in (False, True):
        found = kernels.attend_text(query, weight, key, value, None, quantise)
        found = found.widened() if quantise else found
        lost = found.isnan()
        assert lost[0, 5, 2 * K : 3 * K].all() and lost.sum() == lost[0, 5].sum()


def test_heads_of_another_width(kernels, draw):
    """Not a power of two, which a Triton program's channels must be."""
    x, weight, angles = draw(B, N, A, 12), draw(12), draw(N, 6)
    rotation = torch.stack([angles.cos(), angles.sin()], -1)
    expected = EAGER.norm_rotate(x.double(), weight.double(), rotation.double())
    close(kernels.norm_rotate(x, weight, rotation), expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("quantise", [False, True])
def test_gelu(kernels, draw, dtype, quantise):
    x = draw(B, N, D, dtype=dtype)
    found = kernels.gelu(x, quantise)
    close(found, F.gelu(x.double()), FLOAT8_TOLERANCE if quantise else TOLERANCE[dtype])


def test_gelu_before_it_is_rounded(kernels, device):
    """Rows of one value each, whose scale tells what float8 rounds."""
    x = torch.cat([torch.linspace(-9, 9, 181), torch.tensor([-1e4, -60.0, -20.0, 20.0, 60.0, 1e4])]).to(
        device
    )
    found = kernels.gelu(x[None, :, None].expand(1, -1, 16).contiguous(), True).scale[0, :, 0] * LARGEST
    assert ((found - F.gelu(x.double()).abs()).abs() - 3e-7 * x.abs()).max() < 2e-7


def test_a_row_keeps_its_own_scale(kernels, draw, dtype):
    """A token a million times larger leaves its neighbours alone, and nothing reaches the largest float8 twice."""
    x = draw(B, N, D, dtype=dtype)
    x[0, 2] *= 1e6
    rows = kernels.quantise(x)
    found = carried_over(rows.widened(), x) if INTERPRETED else rows.widened()
    for row, expected in zip(found.flatten(0, 1), x.double().flatten(0, 1), strict=True):
        close(row, expected, FLOAT8_TOLERANCE)
    assert torch.equal(rows.values.float().abs().amax(-1), torch.full((B, N), 448.0, device=x.device))


def test_rows_of_zeros(kernels, device):
    rows = kernels.quantise(torch.zeros(1, 2, D, device=device))
    assert torch.equal(rows.widened(), torch.zeros(1, 2, D, device=device))


def test_what_is_not_a_number_stays_so(kernels, draw):
    """In its own row."""
    x, (shift, scale) = draw(B, N, D), modulation(draw, 2)
    x[1, 3, 7] = float("nan")
    found = kernels.norm_modulate(x, shift, scale, False)
    assert found[1, 3].isnan().all() and found.isnan().sum() == D


def test_what_is_not_a_number_stays_so_in_float8(kernels, draw):
    """Its row is lost, and no other; clamped to the largest float8 it would be a number like any other."""
    x, (shift, scale) = draw(B, N, D), modulation(draw, 2)
    x[1, 3, 7] = float("nan")
    x[0, 1, 2] = float("inf")
    for rows in (kernels.norm_modulate(x, shift, scale, True), kernels.quantise(x), kernels.gelu(x, True)):
        lost = rows.widened().isfinite().logical_not()
        assert lost.all(-1).nonzero().tolist() == lost.any(-1).nonzero().tolist() == [[0, 1], [1, 3]]


def test_float8_kernels_round_as_the_eager_ones(kernels, draw, dtype):
    """To the neighbouring float8 at most, where two ways to divide fall on two sides of a middle."""
    x = draw(B, N, D, dtype=dtype)
    wide = torch.linspace(-6, 6, B * N * D, device=x.device).view(D, -1).T.reshape(B, N, D).to(dtype)
    for found, expected in [
        (kernels.quantise(x), EAGER.quantise(x)),
        (kernels.gelu(x, True), EAGER.gelu(x, True)),
        (kernels.gelu(wide, True), EAGER.gelu(wide, True)),
    ]:
        torch.testing.assert_close(found.scale, expected.scale, rtol=1e-6, atol=0)
        values, wanted = found.values.float(), expected.values.float()
        values = carried_over(values, wanted) if INTERPRETED else values
        differs = values != wanted
        if INTERPRETED:  # which cuts subnormal numbers off instead of rounding them
            differs = differs[wanted.abs() >= 2**-6]
        assert differs.float().mean() < 0.01


@in_the_interpreter
def test_triton_in_the_interpreter():
    interpret(__file__, r"[3-9]\d")
