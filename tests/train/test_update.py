"""Masters, average, schedule and update: what stands between gradients and published weights."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from kandinsky5.errors import RequestError
from kandinsky5.train.ema import Ema, warmed_decay
from kandinsky5.train.masters import Masters
from kandinsky5.train.muon import hidden_matrices, orthogonal
from kandinsky5.train.replicas import ALONE
from kandinsky5.train.schedule import learning_rate
from kandinsky5.train.settings import OptimiserSettings
from kandinsky5.train.tuning.holders import ReplicatedWeights
from kandinsky5.train.tuning.stepper import Stepper

from .small_lesson import MUON, OPTIMISER, rows, small_net

STEPS = 6


def stepper_of(
    parameters: dict[str, nn.Parameter], settings: OptimiserSettings, hidden: list[str] | None = None
) -> Stepper:
    weights = ReplicatedWeights(parameters, ALONE, hidden or ())
    return Stepper(weights, settings, steps=STEPS, ema=0.999)


def test_flat_masters_train_as_torch_does_in_float32() -> None:
    ours, theirs = small_net(), small_net()
    update = stepper_of(dict(ours.named_parameters()), OPTIMISER)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in theirs.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    reference = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8)
    for step in range(STEPS):
        (ours(rows(step)).square().sum() * 10).backward()
        update.weights.take_gradients()
        norm = update()
        (theirs(rows(step)).square().sum() * 10).backward()
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        for group in reference.param_groups:
            group["lr"] = learning_rate(step, steps=6, peak=1e-2, warmup=2, decay_share=0.25)
        reference.step()
        reference.zero_grad()
        torch.testing.assert_close(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Block(nn.Module):
    """A tall, a wide and a square matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.rise, self.fall, self.turn = nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(8, 8)


def blocks() -> nn.Module:
    """Three of them, between layers that are not repeated."""
    torch.manual_seed(0)
    repeated = nn.ModuleList(Block() for _ in range(3))
    return nn.ModuleDict({"into": nn.Linear(5, 8), "blocks": repeated, "out": nn.Linear(8, 3)})


def test_muon_is_torch_s_for_matrices_in_blocks_and_adamw_for_all_else() -> None:
    ours, theirs = (dict(blocks().named_parameters()) for _ in range(2))
    before = {name: p.detach().clone() for name, p in ours.items()}
    hidden = hidden_matrices(blocks())
    assert hidden == [f"blocks.{n}.{layer}.weight" for n in range(3) for layer in ("rise", "fall", "turn")]
    update = stepper_of(ours, MUON, hidden)
    others = [p for name, p in theirs.items() if name not in hidden]
    adam = torch.optim.AdamW(
        [
            {"params": [p for p in others if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    muon = torch.optim.Muon(
        [theirs[name] for name in hidden], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
    )
    generator = torch.Generator().manual_seed(1)
    for step in range(STEPS):
        for name in ours:
            ours[name].grad = torch.randn(ours[name].shape, generator=generator)
            theirs[name].grad = ours[name].grad.clone()
        update.weights.take_gradients()
        update()
        nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        for optimiser in (adam, muon):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, steps=6, peak=1e-2, warmup=2, decay_share=0.25)
            optimiser.step()
    for name in ours:  # products of bfloat16 round differently one by one
        apart, moved = (ours[name] - theirs[name]).norm(), (theirs[name] - before[name]).norm()
        assert apart < (0.01 if name in hidden else 1e-4) * moved, name


def test_singular_values_become_about_one() -> None:
    torch.manual_seed(0)
    for shape in ((12, 48), (48, 12)):
        matrices = torch.stack([torch.randn(shape), torch.zeros(shape), 1e-6 * torch.randn(shape)])
        made = orthogonal(matrices).float()
        assert not made[1].any()
        for one in (made[0], made[2]):
            values = torch.linalg.svdvals(one)
            assert values.min() > 0.3 and values.max() < 1.3


def test_muon_without_matrices_in_blocks_is_refused() -> None:
    net = small_net()
    assert hidden_matrices(net) == []
    assert hidden_matrices(blocks(), but_not=(Block,)) == []
    with pytest.raises(RequestError, match="nothing to step"):
        stepper_of(dict(net.named_parameters()), MUON)


def test_masters_keep_what_bfloat16_would_swallow() -> None:
    weight = nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    masters = Masters({"weight": weight})
    for _ in range(8):
        with torch.no_grad():
            masters.flat["matrices"] += 1e-3
        masters.give_back()
    # 1 + 0.001 rounds to 1 in bfloat16, eight times over; 1.008 does not.
    assert weight.dtype == torch.bfloat16
    assert torch.equal(weight, torch.full_like(weight, 1.0078125))


def test_micro_batches_add_up_in_float32() -> None:
    net = small_net(torch.bfloat16)
    masters = Masters(dict(net.named_parameters()))
    expected = {name: torch.zeros(p.shape) for name, p in net.named_parameters()}
    for step in range(3):
        loss = net(rows(step).bfloat16()).float().square().sum()
        for (name, _), g in zip(
            net.named_parameters(),
            torch.autograd.grad(loss, list(net.parameters()), retain_graph=True),
            strict=True,
        ):
            expected[name] += g.float()
        loss.backward()
        masters.take_gradients()
    taken = masters.named(masters.gradients)
    for name, gradient in expected.items():
        assert torch.equal(taken[name], gradient)
    assert all(p.grad is None for p in net.parameters())


def test_a_parameter_without_gradient_is_named() -> None:
    net = small_net()
    masters = Masters(dict(net.named_parameters()))
    net[0](rows(0)).sum().backward()
    with pytest.raises(RuntimeError, match=r"3\.weight"):
        masters.take_gradients()


def test_the_average_follows_its_formula() -> None:
    values = [torch.tensor([float(v)]) for v in (4.0, 8.0, -2.0)]
    ema = Ema({"w": torch.tensor([1.0])}, decay=0.25)
    expected = 1.0
    for n, value in enumerate(values, start=1):
        ema.update({"w": value})
        d = min(0.25, (1 + n) / (10 + n))
        expected = d * expected + (1 - d) * float(value)
    assert float(ema.average["w"]) == pytest.approx(expected, rel=1e-6)
    assert warmed_decay(0.999, 1) == pytest.approx(2 / 11)
    assert warmed_decay(0.999, 10**6) == 0.999
    with pytest.raises(ValueError, match=r"1\.0"):
        Ema({}, decay=1.0)


def test_the_schedule_rises_stays_and_falls() -> None:
    rates = [learning_rate(s, steps=100, peak=2.0, warmup=10, decay_share=0.25) for s in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9:76] == [2.0] * 67
    assert rates[-1] == pytest.approx(2.0 / 25)
    assert all(a > b for a, b in pairwise(rates[75:]))
    with pytest.raises(ValueError, match="100"):
        learning_rate(100, steps=100, peak=2.0, warmup=10, decay_share=0.25)
