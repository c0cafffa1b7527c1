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
from kandinsky5.train.tuning.holders import Weights, local


class Stepper:
    """The optimiser of a run, at update `step` of `steps`."""

    def __init__(self, weights: Weights, settings: OptimiserSettings, *, steps: int, ema: float):
        self.weights = weights
        self.step = 0
        self._settings = settings
        self._steps = steps
        self._names = {id(parameter): name for name, parameter in weights.masters.items()}
        others = {name: p for name, p in weights.masters.items() if name not in weights.hidden}
        self._optimiser = make_optimiser(
            settings.name,
            [p for name, p in others.items() if p.ndim >= 2 or name == "matrices"],
            [p for name, p in others.items() if p.ndim < 2 and name != "matrices"],
            [weights.masters[name] for name in weights.hidden],
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
        norm = self.weights.norm(gradients)
        torch._foreach_mul_(gradients, (self._settings.clip / (norm + 1e-6)).clamp(max=1.0))
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

    def learnt(self) -> Mapping[str, Tensor]:
        """The weights to be used, float32 by the parameters' names, as this process has them.

        Of an optimiser that learns at other weights than it arrives at, and without an average, only inside `result`.
        """
        return self.weights.named(self.weights.masters if self._ema is None else self._ema.average)

    def sound(self) -> bool:
        """Whether every master of this process is a number."""
        return bool(self.weights.norm([p.detach() for p in self.weights.masters.values()]).isfinite())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs: tensors by name, cut as the weights are, and JSON-able values."""
        whole = self.weights.whole
        tensors = {f"master.{name}": whole(name, p.detach()) for name, p in self.weights.masters.items()}
        if self._ema is not None:
            tensors |= {f"average.{name}": whole(name, value) for name, value in self._ema.average.items()}
        numbers: dict[str, Any] = {}
        flat: list[str] = []
        for parameter, state in self._optimiser.state.items():
            master = self._names[id(parameter)]
            for key, value in state.items():
                name = f"optimiser.{master}.{key}"
                if not isinstance(value, Tensor):
                    numbers[name] = value
                elif not value.ndim or value.numel() != parameter.numel():
                    tensors[name] = value
                elif value.shape == parameter.shape:
                    tensors[name] = whole(master, value)
                else:  # of prodigy, as a row
                    tensors[name] = whole(master, value.view(parameter.shape))
                    flat.append(name)
        groups = [
            {key: value for key, value in group.items() if key != "params" and _is_plain(value)}
            for group in self._optimiser.param_groups
        ]
        return tensors, {"step": self.step, "numbers": numbers, "flat": flat, "groups": groups}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what `state` returned, its tensors as pieces for this process.

        Raises:
            CheckpointError: a state of other parameters.
        """
        for name, parameter in self.weights.masters.items():
            parameter.copy_(_of(tensors, f"master.{name}", parameter))
            if self._ema is not None:
                self._ema.average[name].copy_(_of(tensors, f"average.{name}", parameter))
            state = self._state_of(f"optimiser.{name}.", tensors, values)
            if state:
                self._optimiser.state[parameter] = state
        for group, kept in zip(self._optimiser.param_groups, values["groups"], strict=True):
            group.update({key: tuple(v) if isinstance(v, list) else v for key, v in kept.items()})
        self.step = int(values["step"])
        if self._ema is not None:
            self._ema.updates = self.step
        self.weights.give_back(self.weights.masters)

    def _state_of(
        self, prefix: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]
    ) -> dict[str, Any]:
        """An optimiser's state of one master, whose names begin so."""
        device = next(iter(self.weights.masters.values())).device
        state: dict[str, Any] = {}
        for name, value in tensors.items():
            if name.startswith(prefix):
                piece = local(value)
                piece = piece.reshape(-1) if name in values["flat"] else piece
                fused = bool(self._optimiser.defaults.get("fused"))  # it counts its steps on the device
                state[name.removeprefix(prefix)] = piece.to(device) if fused else piece
        return state | {
            name.removeprefix(prefix): value
            for name, value in values["numbers"].items()
            if name.startswith(prefix)
        }


def _of(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor:
    """This process's piece. Raises CheckpointError where there is none of this shape."""
    if name not in tensors or local(tensors[name]).shape != like.shape:
        raise CheckpointError(f"The checkpoint has no {name} of this shape: it belongs to other parameters.")
    return local(tensors[name])


def _is_plain(value: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):
        return False  # a bound that never changes, and no JSON
    return isinstance(value, int | float | str | list | tuple | type(None)) and not isinstance(value, Tensor)
