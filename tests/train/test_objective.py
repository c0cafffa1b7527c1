"""The objective asks for the velocity that `flow.step` integrates, and its log bins add up."""

from itertools import pairwise

import torch

from kandinsky5 import flow
from kandinsky5.train.objective import by_time, draw_times, flow_loss


def test_the_optimum_of_the_loss_carries_noise_to_the_data() -> None:
    """A linear velocity fitted with the loss alone takes N(0, 1) to a point of data when integrated."""
    torch.manual_seed(0)
    data = torch.tensor([2.0, -3.0])
    # For one data point the best velocity at (x, t) is (x - data) / t: linear in (x / t, 1 / t).
    weights = torch.zeros(2, 2, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=0.05)

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return weights[0] * x / t[:, None] + weights[1] / t[:, None]

    generator = torch.Generator().manual_seed(1)
    for _ in range(600):
        t = draw_times(256, generator).clamp_min(0.05)
        noise = torch.randn(256, 2, generator=generator)
        loss = flow_loss(predict, data.expand(256, 2), noise, t).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    x = torch.randn(64, 2, generator=generator)
    times = flow.times(30)
    with torch.no_grad():
        for t, t_next in pairwise(times):
            x = flow.step(x, predict(x, t.expand(64)), t, t_next)
    assert (x - data).abs().max() < 0.05


def test_the_loss_is_a_float32_mean_over_all_but_the_rows() -> None:
    image, noise = torch.zeros(3, 1, 2, 2, 4), torch.ones(3, 1, 2, 2, 4)
    wrong_by = torch.tensor([0.0, 1.0, 2.0])

    def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return (noise - image + wrong_by[:, None, None, None, None]).bfloat16()

    loss = flow_loss(predict, image, noise, torch.full((3,), 0.5))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, wrong_by.square())


def test_times_are_shifted_towards_the_noise_and_repeat_with_the_seed() -> None:
    t = draw_times(20_000, torch.Generator().manual_seed(3))
    assert t.min() >= 0 and t.max() <= 1
    # u is symmetric about 1/2, so its median maps to 3/4 under a shift of 3.
    assert abs(float(t.median()) - 0.75) < 0.01
    assert torch.equal(t, draw_times(20_000, torch.Generator().manual_seed(3)))
    uniform = draw_times(20_000, torch.Generator().manual_seed(3), shift=1.0, uniform_share=1.0)
    normal = draw_times(20_000, torch.Generator().manual_seed(3), shift=1.0, uniform_share=0.0)
    assert abs(float(uniform.std()) - 12**-0.5) < 0.005
    assert abs(float(torch.logit(normal).std()) - 1) < 0.02


def test_bins_hold_every_loss_once() -> None:
    t = torch.tensor([0.0, 0.1, 0.5, 0.99, 1.0])
    sums, counts = by_time(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), t, bins=4)
    assert sums.tolist() == [3.0, 0.0, 3.0, 9.0]
    assert counts.tolist() == [2.0, 0.0, 1.0, 2.0]
