"""The learning rate over a run of a fixed number of steps: a ramp, a plateau, a straight line down to nearly zero.

Knows nothing but numbers, so that a resumed run continues exactly the schedule of an unbroken one.
"""


def learning_rate(step: int, *, steps: int, peak: float, warmup: int, decay_share: float) -> float:
    """The rate of update `step` in [0, steps).

    Linear from `peak / warmup` over the first `warmup` updates, then `peak`, then linear over the last
    `decay_share` of the run to `peak / (decay_share * steps)` at the last update.
    """
    if not 0 <= step < steps:
        raise ValueError(f"Step {step} lies outside a run of {steps} steps.")
    return peak * min(1.0, (step + 1) / max(1, warmup), (steps - step) / _decay_steps(steps, decay_share))


def before_decay(step: int, *, steps: int, decay_share: float) -> bool:
    """Whether updates up to `step`, exclusive, are the same in any longer run: the decay has not begun."""
    return step <= steps - _decay_steps(steps, decay_share)


def _decay_steps(steps: int, decay_share: float) -> int:
    return max(1, round(decay_share * steps))
