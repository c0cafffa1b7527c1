"""The gradient is that of the plain formulas in float64, and what the loss asks for is what our sampler integrates."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from kandinsky5 import denoise, flow
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.records import Conditioning
from kandinsky5.train.data.rows import Rows
from kandinsky5.train.rectified_flow import losses, points_of
from kandinsky5.train.settings import ObjectiveSettings, TuningSettings
from kandinsky5.train.tuning.learning import learning_parameters
from tests.model import reference
from tests.model.tiny import config_of, drawn, relative_rms

CPU = torch.device("cpu")
ROUNDED_TIMES = 3e-5
"""Times and the angles made of 1000 t are float32 by design; all else is float64."""


def make_rows(count: int, *, edits: bool = False, side: int = 4, text: int = 5) -> Rows:
    generator = torch.Generator().manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    latents, config = (count, 1, side, side, 16), config_of("t2i")
    mask = torch.ones(count, text, dtype=torch.bool)
    mask[0, 3:] = count == 1
    return Rows(
        mean=normal(*latents),
        deviation=normal(*latents).abs() * 0.1,
        source_mean=normal(*latents) if edits else None,
        source_deviation=normal(*latents).abs() * 0.1 if edits else None,
        conditioning=Conditioning(
            text=normal(count, text, config["in_text_dim"]),
            mask=mask,
            pooled=normal(count, config["in_text_dim2"]),
        ),
        seeds=tuple(range(100, 100 + count)),
    )


def plain_loss(weights: dict[str, Tensor], config: dict, rows: Rows, shift: float) -> Tensor:
    """The mean loss by the formulas of the report, with the network as plain mathematics; float64."""
    total = torch.zeros((), dtype=torch.float64)
    for i, seed in enumerate(rows.seeds):
        generator = torch.Generator().manual_seed(seed)
        torch.rand(1, generator=generator)  # a uniform time, and whether it is taken: never here
        u = torch.sigmoid(torch.randn(1, generator=generator)).double()
        torch.rand(1, generator=generator)
        t = shift * u / (1 + (shift - 1) * u)
        shape = rows.mean.shape[1:]
        noise, sample = (torch.randn(shape, generator=generator).double() for _ in range(2))
        clean = rows.mean[i].double() + rows.deviation[i].double() * sample
        x = (1 - t) * clean + t * noise
        if config["visual_cond"]:
            source, mask = torch.zeros_like(x), torch.zeros(*shape[:-1], 1, dtype=torch.float64)
            if rows.source_mean is not None and rows.source_deviation is not None:
                other = torch.randn(shape, generator=generator).double()
                source = rows.source_mean[i].double() + rows.source_deviation[i].double() * other
                mask = torch.ones_like(mask)
            x = torch.cat([x, source, mask], dim=-1)
        predicted = reference.velocity(
            weights,
            config,
            x[None],
            rows.conditioning.text[i : i + 1],
            1000 * t,
            rows.conditioning.pooled[i : i + 1],
            [torch.arange(1), torch.arange(shape[1] // 2), torch.arange(shape[2] // 2)],
            torch.arange(rows.conditioning.text.shape[1]),
            mask=rows.conditioning.mask[i : i + 1],
        )[0]
        total = total + (predicted - (noise - clean)).square().mean()
    return total / len(rows)


@pytest.mark.parametrize(("variant", "edits"), [("t2i", False), ("i2i", False), ("i2i", True)])
def test_every_gradient_is_that_of_the_plain_formulas(variant: str, edits: bool) -> None:
    config, rows, settings = config_of(variant), make_rows(2, edits=edits), ObjectiveSettings(shift=2.5)
    network = drawn(Kandinsky5Transformer3DModel(**config)).double()
    points = points_of(rows, settings, CPU, torch.float64)
    loss, t = losses(network, points), points.t
    loss.mean().backward()
    assert ((t > 0) & (t < 1)).all()
    weights = {name: value.detach().requires_grad_() for name, value in network.state_dict().items()}
    expected = plain_loss(weights, config, rows, 2.5)
    torch.testing.assert_close(loss.mean().double(), expected, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(expected, list(weights.values()))
    mine = dict(network.named_parameters())
    for (name, _), gradient in zip(weights.items(), gradients, strict=True):
        assert relative_rms(mine[name].grad, gradient) < ROUNDED_TIMES, name


def test_gradients_of_an_adapter() -> None:
    """Those of W + alpha / rank B A, with checkpointing, which must not change them."""
    config, rows = config_of("t2i"), make_rows(2)
    network = drawn(Kandinsky5Transformer3DModel(**config)).double()
    plain = {name: value.clone() for name, value in network.state_dict().items()}
    tuning = TuningSettings(rank=3, alpha=6.0, targets=("to_key", "feed_forward.out_layer"))
    learning = learning_parameters(network, tuning, torch.float64, seed=0)
    generator = torch.Generator().manual_seed(1)
    for parameter in learning.values():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.2
    network.train()
    network.enable_gradient_checkpointing()
    losses(network, points_of(rows, ObjectiveSettings(), CPU, torch.float64)).mean().backward()
    factors = {name: p.detach().clone().requires_grad_() for name, p in learning.items()}
    for name, a in factors.items():
        if ".lora_A." in name:
            layer = name.split(".lora_A.")[0]
            b = factors[name.replace("lora_A", "lora_B")]
            plain[f"{layer}.weight"] = plain[f"{layer}.weight"] + 2.0 * b @ a
    gradients = torch.autograd.grad(plain_loss(plain, config, rows, 3.0), list(factors.values()))
    assert len(factors) == 2 * (2 * 1 + 3 * 2 + 5)
    for (name, _), gradient in zip(factors.items(), gradients, strict=True):
        assert relative_rms(learning[name].grad, gradient) < ROUNDED_TIMES, name


class Optimum(torch.nn.Module):
    """The velocity that no network can be better than, where there is one picture: (x - picture) / t."""

    def __init__(self, picture: Tensor):
        super().__init__()
        self.picture = picture
        self.config = SimpleNamespace(patch_size=(1, 2, 2), visual_cond=False)

    def forward(self, hidden_states: Tensor, timestep: Tensor, **others: object) -> tuple[Tensor]:
        t = torch.as_tensor(timestep).reshape(-1, 1, 1, 1, 1) / 1000
        return ((hidden_states - self.picture) / t,)


def test_the_optimum_of_the_loss_is_integrated_to_the_data_by_our_sampler() -> None:
    """Sign and scale of time are those of `denoise`: the loss of the optimum is nothing, and it draws the picture."""
    one = make_rows(1)
    rows = Rows(
        mean=one.mean.expand(32, -1, -1, -1, -1),
        deviation=torch.zeros(32, 1, 4, 4, 16),
        source_mean=None,
        source_deviation=None,
        conditioning=one.conditioning.repeat(32),
        seeds=tuple(range(32)),
    )
    network = Optimum(one.mean[0])
    loss = losses(network, points_of(rows, ObjectiveSettings(), CPU, torch.float32))
    assert float(loss.max()) < 1e-6
    start = torch.randn(3, 1, 4, 4, 16, generator=torch.Generator().manual_seed(5))
    run = denoise.Run(latents=start, positive=one.conditioning.repeat(3), negative=None, guidance=1.0)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=flow.DEFAULT_SHIFT)
    denoise.set_times(scheduler, 20, CPU)
    drawn_latents = denoise.denoise(run, transformer=network, scheduler=scheduler)
    torch.testing.assert_close(drawn_latents, one.mean.expand(3, -1, -1, -1, -1), rtol=1e-4, atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    """Nor on how many rows share a forward pass, or which process has it."""
    network = drawn(Kandinsky5Transformer3DModel(**config_of("t2i")))
    rows = make_rows(3)
    points = points_of(rows, ObjectiveSettings(), CPU, torch.float32)
    whole = losses(network, points)
    last = Rows(
        mean=rows.mean[2:],
        deviation=rows.deviation[2:],
        source_mean=None,
        source_deviation=None,
        conditioning=rows.conditioning.rows(2, 3),
        seeds=rows.seeds[2:],
    )
    one = points_of(last, ObjectiveSettings(), CPU, torch.float32)
    alone = losses(network, one)
    assert torch.equal(one.t, points.t[2:])
    torch.testing.assert_close(alone, whole[2:], rtol=1e-5, atol=1e-6)
