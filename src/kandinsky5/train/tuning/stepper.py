"""One update of the masters: the rate, clipping, an optimiser of any library, the average; and all of it as a state.

In: weights that have gradients. Out: new weights, and tensors that continue them bit for bit. It refuses to know where
gradients come from and where a state is kept.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from kandinsky5.errors import CheckpointError
from kandinsky5.train.ema import Ema
from kandinsky5.train.optimisers import make_optimiser, moves_to_result, switch_to_result
from kandinsky5.train.schedule import learning_rate
from kandinsky5.train.settings import OptimiserSettings
from kandinsky5.train.tuning.holders import Weights, whole_norm


class Stepper:
    """The optimiser of a run, at update `step` of `steps`."""

    def __init__(self, weights: Weights, settings: OptimiserSettings, *, steps: int, ema: float):
        self.weights = weights
        self.step = 0
        self._settings = settings
        self._steps = steps
        self._names = {id(parameter): name for name, parameter in weights.masters.items()}
        self._optimiser = make_optimiser(
            settings.name,
            [p for name, p in weights.masters.items() if p.ndim >= 2 or name == "matrices"],
            [p for name, p in weights.masters.items() if p.ndim < 2 and name != "matrices"],
            rate=settings.rate,
            betas=settings.betas,
            weight_decay=settings.weight_decay,
        )
        self._ema = Ema(weights.masters, ema) if ema else None
        switch_to_result(self._optimiser, False)

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        s = self._settings
        return learning_rate(
            min(self.step, self._steps - 1),
            steps=self._steps,
            peak=s.rate,
            warmup=s.warmup,
            decay_share=s.decay_share,
        )

    def __call__(self) -> Tensor:
        """Apply the gradients taken; returns their norm before clipping, a scalar left on the device."""
        for group in self._optimiser.param_groups:
            if isinstance(group["lr"], Tensor):  # torchao's, which are compiled
                group["lr"].fill_(self.rate)
            else:
                group["lr"] = self.rate
        self.weights.gather()
        gradients = [p.grad for p in self.weights.masters.values() if p.grad is not None]
        norm = whole_norm(gradients)
        factor = (self._settings.clip / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient *= factor
        self._optimiser.step()
        self.weights.forget_gradients()
        self.weights.give_back(self.weights.masters)
        if self._ema is not None:
            self._ema.update(self.weights.masters)
        self.step += 1
        return norm

    @contextmanager
    def result(self) -> Iterator[None]:
        """Inside, the network has the weights to be used: the average, or where the optimiser arrives."""
        masters = self.weights.masters
        average = None if self._ema is None else self._ema.average
        kept = {}
        if average is not None or moves_to_result(self._optimiser):  # there and back would not be bit for bit
            kept = {name: p.detach().clone() for name, p in masters.items()}
        switch_to_result(self._optimiser, True)
        self.weights.give_back(masters if average is None else average)
        try:
            yield
        finally:
            switch_to_result(self._optimiser, False)
            with torch.no_grad():
                for name, value in kept.items():
                    masters[name].copy_(value)
            self.weights.give_back(masters)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs: tensors by name, and JSON-able values."""
        tensors = {f"master.{name}": p.detach() for name, p in self.weights.masters.items()}
        if self._ema is not None:
            tensors |= {f"average.{name}": value for name, value in self._ema.average.items()}
        numbers: dict[str, Any] = {}
        for parameter, state in self._optimiser.state.items():
            for key, value in state.items():
                name = f"optimiser.{self._names[id(parameter)]}.{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value
                else:
                    numbers[name] = value
        groups = [
            {key: value for key, value in group.items() if key != "params" and _is_plain(value)}
            for group in self._optimiser.param_groups
        ]
        return tensors, {"step": self.step, "numbers": numbers, "groups": groups}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what `state` returned, its tensors as pieces for this process.

        Raises:
            CheckpointError: a state of other parameters.
        """
        for name, parameter in self.weights.masters.items():
            parameter.copy_(_of(tensors, f"master.{name}"))
            if self._ema is not None:
                self._ema.average[name].copy_(_of(tensors, f"average.{name}"))
            prefix = f"optimiser.{name}."
            state = {
                key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
            }
            numbers = values["numbers"]
            state |= {key.removeprefix(prefix): v for key, v in numbers.items() if key.startswith(prefix)}
            if state:
                self._optimiser.state[parameter] = state
        for group, kept in zip(self._optimiser.param_groups, values["groups"], strict=True):
            group.update({key: tuple(v) if isinstance(v, list) else v for key, v in kept.items()})
        self.step = int(values["step"])
        if self._ema is not None:
            self._ema.updates = self.step
        self.weights.give_back(self.weights.masters)


def _of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"The checkpoint has no {name}: it belongs to other parameters.")
    return tensors[name]


def _is_plain(value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False  # a bound that never changes, and no JSON
    return isinstance(value, int | float | str | list | tuple | type(None)) and not isinstance(value, Tensor)
