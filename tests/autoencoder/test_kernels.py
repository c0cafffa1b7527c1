"""Group norm, softmax and the attention around it against float64; Triton on the CPU through its interpreter."""

import pytest
import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

from kandinsky5.autoencoder import attention
from kandinsky5.autoencoder.group_norm import eager_group_norm

from ..interpreter import INTERPRETED, in_the_interpreter, interpret

NARROW = 4e-3 if INTERPRETED else 2.5e-3
"""Of bfloat16. The interpreter cuts off what hardware rounds."""

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: NARROW, torch.float16: 3e-4}
EPS = 1e-6
LAST = torch.channels_last


def implementations():
    yield pytest.param(lambda: eager_group_norm, "cpu", id="eager")
    if INTERPRETED:  # in the process that the last test starts
        yield pytest.param(triton_norm, "cpu", id="interpreter")
    yield pytest.param(triton_norm, "cuda", id="triton", marks=pytest.mark.gpu)


def triton_norm():
    from kandinsky5.autoencoder.triton_norm import triton_group_norm

    return triton_group_norm


def triton_softmax(*arguments):
    from kandinsky5.autoencoder.triton_softmax import triton_softmax as softmax

    return softmax(*arguments)


def pytest_generate_tests(metafunc):
    if "norm" in metafunc.fixturenames:
        metafunc.parametrize(["make", "device"], list(implementations()))
    elif "device" in metafunc.fixturenames:
        there = [pytest.param("cpu", id="interpreter")] if INTERPRETED else []
        metafunc.parametrize("device", [*there, pytest.param("cuda", id="triton", marks=pytest.mark.gpu)])


@pytest.fixture
def norm(make):
    return make()


@pytest.fixture
def draw(device):
    generator = torch.Generator().manual_seed(5)
    return lambda *shape, dtype=torch.float32: torch.randn(shape, generator=generator).to(device, dtype)


def expected_of(x, groups, weight, bias, silu=True):
    y = F.group_norm(x.double(), groups, weight.double(), bias.double(), EPS)
    return F.silu(y) if silu else y


def error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


SHAPES = {
    "one run of pixels": ((2, 32, 5, 7), 8),
    "runs, and a part of one": ((2, 128, 19, 29), 8),
    "no power of two": ((2, 24, 9, 7), 3),
    "one group": ((1, 96, 6, 31), 1),
    "groups of two channels": ((1, 32, 5, 5), 16),
    "one pixel": ((2, 64, 1, 1), 4),
}


@pytest.mark.parametrize("shape, groups", SHAPES.values(), ids=SHAPES)
def test_norm(norm, draw, shape, groups):
    x, weight, bias = 2 * draw(*shape) + 0.5, draw(shape[1]), draw(shape[1])
    found = norm(x.contiguous(memory_format=LAST), groups, weight, bias, EPS, silu=True)
    assert found.shape == x.shape
    assert found.is_contiguous(memory_format=LAST), "as the next convolution reads it"
    assert error(found, expected_of(x, groups, weight, bias)) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_narrow_dtypes(norm, draw, dtype):
    x, weight, bias = draw(1, 64, 9, 9, dtype=dtype), draw(64, dtype=dtype), draw(64, dtype=dtype)
    found = norm(x.contiguous(memory_format=LAST), 8, weight, bias, EPS, silu=True)
    assert found.dtype == dtype
    rounded_twice = 1 if norm is not eager_group_norm else 2
    assert error(found, expected_of(x, 8, weight, bias)) < rounded_twice * TOLERANCE[dtype]


def test_other_layouts(norm, draw):
    """Tokens, whose channels lie together too, and channels first."""
    x, weight, bias = draw(2, 40, 32).transpose(1, 2), draw(32), draw(32)
    found = norm(x, 4, weight, bias, EPS, silu=False)
    assert error(found, expected_of(x, 4, weight, bias, False)) < TOLERANCE[torch.float32]
    x = draw(2, 32, 6, 6)
    assert error(norm(x, 4, weight, bias, EPS, silu=True), expected_of(x, 4, weight, bias)) < 1e-6


@pytest.mark.parametrize("first", [0.0, 3000.0], ids=["even", "a first tile that is far off"])
def test_a_large_mean(norm, draw, first):
    """A deviation of 1 around 1000: sums of plain squares would leave nothing of it. torch's own sums err by 0.002."""
    if norm is eager_group_norm:
        pytest.skip("torch's own")
    x, weight, bias = 1000 + draw(1, 32, 60, 70), draw(32), draw(32)
    x[0, :, :2] += first
    found = norm(x.contiguous(memory_format=LAST), 4, weight, bias, EPS, silu=False)
    wanted = expected_of(x, 4, weight, bias, False)
    assert float((found.double() - wanted).abs().max()) < 1e-3, "half a unit of 1000 is 3e-5 already"


def test_a_constant_picture(norm, draw):
    x, bias = torch.full_like(draw(1, 32, 20, 20), 100.0), draw(32)
    found = norm(x.contiguous(memory_format=LAST), 4, torch.ones_like(bias), bias, EPS, silu=False)
    torch.testing.assert_close(found, bias[None, :, None, None].expand_as(x), atol=2e-2, rtol=0)


@pytest.mark.parametrize("what", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_so(norm, draw, what):
    """Its group of its picture is lost, and no other."""
    x, weight, bias = draw(2, 32, 12, 12), draw(32), draw(32)
    x[1, 9, 11, 3] = what
    found = norm(x.contiguous(memory_format=LAST), 4, weight, bias, EPS, silu=True)
    assert found[1, 8:16].isnan().all() and found.isnan().sum() == 8 * 144


def test_large_values_do_not_overflow(norm, draw):
    """Where SiLU is 0 its exponential is infinite."""
    x, weight, bias = draw(1, 32, 4, 4), torch.full_like(draw(32), 300.0), draw(32)
    found = norm(x.contiguous(memory_format=LAST), 4, weight, bias, EPS, silu=True)
    assert error(found, expected_of(x, 4, weight, bias)) < 1e-6


def test_the_same_bits_again(norm, draw):
    x, weight, bias = draw(1, 64, 30, 40).contiguous(memory_format=LAST), draw(64), draw(64)
    assert torch.equal(*(norm(x, 4, weight, bias, EPS, silu=True) for _ in range(2)))


@pytest.mark.parametrize("width", [1, 48, 5000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_softmax(draw, width, dtype):
    scores = 20 * draw(2, 3, width)
    found = triton_softmax(scores, 0.3, dtype)
    assert found.dtype == dtype
    assert error(found, (0.3 * scores.double()).softmax(-1)) < 2 * TOLERANCE[dtype]


def test_a_row_that_is_not_a_number(draw):
    scores = draw(1, 3, 40)
    scores[0, 1, 7] = float("nan")
    found = triton_softmax(scores, 1.0, torch.float32)
    assert found[0, 1].isnan().all() and found.isnan().sum() == 40


def test_attention_in_parts(device, draw, monkeypatch):
    """As torch's own, whose scores are float32 too; places attend in turns, the last of which is shorter."""
    monkeypatch.setattr(attention, "ROWS", 20)
    torch.manual_seed(0)
    attn = Attention(32, heads=1, dim_head=32, norm_num_groups=4, bias=True, residual_connection=True)
    attn = attn.to(device, torch.bfloat16).eval()
    x = draw(2, 32, 7, 9, dtype=torch.bfloat16).contiguous(memory_format=LAST)
    with torch.no_grad():
        found = attention.attended(attn, x, triton_softmax)
        expected = attn.double()(x.double())
    assert found.is_contiguous(memory_format=LAST)
    assert error(found, expected) < 2 * NARROW


def large(shape, dtype=torch.bfloat16):
    generator = torch.Generator("cuda").manual_seed(1)
    rows = torch.empty((shape[0], *shape[2:], shape[1]), device="cuda", dtype=dtype)
    for picture in rows:
        picture.copy_(torch.randn(picture.shape, generator=generator, device="cuda") + 3)
    return rows.permute(0, 3, 1, 2)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape",
    [(1, 512, 512, 512), (2, 128, 1024, 1024), (1, 256, 1024, 1024), (9, 256, 1024, 1024)],
    ids=["512 channels", "batch", "256 channels", "more than 2^31 elements"],
)
def test_large_tensors(shape):
    x = large(shape)
    weight, bias = (torch.randn(shape[1], device="cuda").bfloat16() for _ in range(2))
    found = triton_norm()(x, 32, weight, bias, EPS, silu=True)
    for picture in {0, shape[0] - 1}:
        for group in (0, 31):
            size = shape[1] // 32
            part = slice(group * size, group * size + size)
            wanted = expected_of(x[picture : picture + 1, part], 1, weight[part], bias[part])
            assert error(found[picture : picture + 1, part], wanted) < NARROW


@pytest.mark.gpu
def test_another_size_compiles_nothing():
    from kandinsky5.autoencoder import triton_norm as kernels
    from kandinsky5.autoencoder import triton_softmax as softmax

    def made():
        compiled = (kernels._measure, kernels._join, kernels._norm, softmax._softmax)
        return sum(len(cache[0]) for kernel in compiled for cache in kernel.device_caches.values())

    weight = torch.ones(64, device="cuda")
    seen = []
    for side in (16, 20, 36, 128):
        x = torch.randn(2, 64, side, side, device="cuda").contiguous(memory_format=LAST)
        kernels.triton_group_norm(x, 8, weight, weight, EPS, silu=True)
        softmax.triton_softmax(x.flatten(2), 1.0, torch.bfloat16)
        seen.append(made())
    assert len(set(seen)) == 1, seen


@in_the_interpreter
def test_triton_in_the_interpreter():
    interpret(__file__, r"2\d")
