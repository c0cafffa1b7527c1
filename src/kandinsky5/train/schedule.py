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
    decay_steps = max(1, round(decay_share * steps))
    return peak * min(1.0, (step + 1) / max(1, warmup), (steps - step) / decay_steps)
