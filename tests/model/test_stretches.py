"""The stretches of the ordinary way, eager and Triton, and their gradients, against float64."""

import pytest
import torch
from torch.utils._pytree import tree_map

from kandinsky5.model.kernels import stretches_for
from kandinsky5.model.stretches import EAGER_STRETCHES, Stretches

from ..interpreter import INTERPRETED, in_the_interpreter, interpret
from .tiny import config_of, inputs_for, relative_rms

B, N, A, K = 2, 5, 5, 16
D = A * K
"""No power of two: a program's last columns and heads are masked."""

TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 8e-3}
VECTORS = ("shift", "scale", "gate", "weight")


def implementations():
    yield pytest.param(lambda: EAGER_STRETCHES, "cpu", id="eager")
    if INTERPRETED:  # in the process that the last test starts
        yield pytest.param(triton_stretches, "cpu", id="interpreter")
    yield pytest.param(triton_stretches, "cuda", id="triton", marks=pytest.mark.gpu)


def triton_stretches() -> Stretches:
    from kandinsky5.model.triton_gradients import TRITON_STRETCHES

    return TRITON_STRETCHES


def pytest_generate_tests(metafunc):
    if "stretches" in metafunc.fixturenames:
        metafunc.parametrize(["make", "device"], list(implementations()))


@pytest.fixture
def stretches(make):
    return make()


def calls(stretches: Stretches, one: dict[str, torch.Tensor]):
    """Every stretch by its name, as a function of named tensors."""
    vectors = one["shift"], one["scale"]
    return {
        "norm_modulate": lambda: stretches.norm_modulate(one["x"], *vectors),
        "add_gated_norm_modulate": lambda: stretches.add_gated_norm_modulate(
            one["x"], one["gate"], one["out"], *vectors
        ),
        "add_gated": lambda: stretches.add_gated(one["x"], one["gate"], one["out"]),
        "norm_rotate": lambda: stretches.norm_rotate(one["heads"], one["weight"], one["rotation"]),
        "norm_only": lambda: stretches.norm_rotate(one["heads"], one["weight"], None),
    }


def drawn(device, dtype, learn):
    """Tensors of every kind; those named in `learn` ask for a gradient."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(shape, generator=generator) + 0.5

    angles = 10 * draw(N, K // 2)
    table = draw(B, 7, D).to(device)
    one = {name: draw(B, N, D).to(device, dtype) for name in ("x", "out")}
    one |= {"heads": draw(B, N, A, K).to(device, dtype), "weight": draw(K).to(device, dtype)}
    one |= dict(zip(("shift", "scale", "gate"), table.unbind(1), strict=False))
    one |= {"rotation": torch.stack([angles.cos(), angles.sin()], -1).to(device)}
    for name in learn:  # a view of the table would keep its base's flag
        one[name] = one[name].detach().requires_grad_()
    return one


def widened(one):
    return {
        name: tensor.detach().double().requires_grad_(tensor.requires_grad) for name, tensor in one.items()
    }


def results_and_gradients(call, inputs, weights):
    """What a call returns, and the gradients of its sum weighted by fixed numbers."""
    made = call()
    made = made if isinstance(made, tuple) else (made,)
    total = sum((x.double() * w.to(x.device)).sum() for x, w in zip(made, weights, strict=False))
    wanted = [tensor for tensor in inputs.values() if tensor.requires_grad]
    return made, torch.autograd.grad(total, wanted, allow_unused=True)


@pytest.mark.parametrize("learns", ["rows", "vectors too"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", calls(EAGER_STRETCHES, drawn("cpu", torch.float32, ())))
def test_values_and_gradients(stretches, device, name, dtype, learns):
    one = drawn(device, dtype, ("x", "out", "heads") + (VECTORS if learns == "vectors too" else ()))
    wide = widened(one)
    generator = torch.Generator().manual_seed(4)
    shape = (B, N, A, K) if name in ("norm_rotate", "norm_only") else (B, N, D)
    weights = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    found, gradients = results_and_gradients(calls(stretches, one)[name], one, weights)
    expected, right = results_and_gradients(calls(EAGER_STRETCHES, wide)[name], wide, weights)
    for mine, other in zip((*found, *gradients), (*expected, *right), strict=True):
        assert (mine is None) == (other is None)
        if mine is not None and other is not None:
            error = (mine.double() - other).norm() / other.norm()
            assert error < TOLERANCE[dtype], float(error)
    assert all(result.dtype == dtype for result in found)


def test_a_network_learns_the_same_with_them(stretches, device, build):
    """Gradients of every parameter, block by block and through its checkpoints."""
    network = build(config_of("i2i")).to(device)
    arguments = tree_map(
        lambda value: value.to(device) if isinstance(value, torch.Tensor) else value,
        inputs_for(config_of("i2i")).arguments(),
    )
    network.requires_grad_(True)
    gradients = []
    for one, checkpointing in ((EAGER_STRETCHES, False), (stretches, False), (stretches, True)):
        network.use_stretches(one)
        if checkpointing:
            network.enable_gradient_checkpointing()
        network.zero_grad()
        network.train()(**arguments).sample.square().mean().backward()
        gradients.append({name: p.grad.clone() for name, p in network.named_parameters()})
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            assert relative_rms(other[name], gradient) < 2e-5, name


def test_a_device_without_triton_learns_eagerly():
    assert stretches_for(torch.device("cpu")) is EAGER_STRETCHES


@in_the_interpreter
def test_triton_in_the_interpreter():
    interpret(__file__, r"21")
