"""The times of a run, to the digit: shift 3, from the authors' formula evaluated by hand and by exact fractions."""

from fractions import Fraction

import pytest
import torch

from kandinsky5 import flow


@pytest.mark.parametrize("steps", [1, 2, 4, 30, 50])
def test_times_are_the_formula(steps):
    exact = [
        Fraction(3 * i, steps + 2 * i) for i in range(steps, -1, -1)
    ]  # 3 u / (1 + 2 u) with u = i / steps
    assert flow.times(steps).tolist() == pytest.approx([float(t) for t in exact], abs=1e-7)
    assert flow.times(steps).dtype == torch.float32


def test_four_steps():
    assert flow.times(4).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])


def test_another_shift():
    assert flow.times(2, shift=1.0).tolist() == [1, 0.5, 0]
    assert flow.times(2, shift=5.0).tolist() == pytest.approx([1, 5 / 6, 0])


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        flow.times(0)


def test_the_scale_of_the_networks_time():
    assert flow.MODEL_TIME_SCALE == 1000.0


def test_the_direction():
    """Noise at 1, image at 0, and the velocity leads from one to the other."""
    image, noise = torch.randn(3, 2, 5), torch.randn(3, 2, 5)
    one, zero, some = torch.ones(3), torch.zeros(3), torch.tensor([0.2, 0.5, 0.9])
    torch.testing.assert_close(flow.interpolate(image, noise, one), noise)
    torch.testing.assert_close(flow.interpolate(image, noise, zero), image)
    x, v = flow.interpolate(image, noise, some), flow.velocity(image, noise)
    torch.testing.assert_close(x - some[:, None, None] * v, image)
    torch.testing.assert_close(
        flow.step(noise, v, 1.0, 0.25), flow.interpolate(image, noise, torch.full((3,), 0.25))
    )
