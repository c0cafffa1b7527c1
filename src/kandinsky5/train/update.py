"""One optimiser update: gradients of the parameters in, new parameters and a new average out.

Ties `Masters`, AdamW, Muon, clipping, the schedule and the average together, and holds all state that a resumed run
needs. It does not know where gradients come from, nor where its state is kept.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from kandinsky5.errors import CheckpointError
from kandinsky5.train.ema import Ema
from kandinsky5.train.masters import Masters
from kandinsky5.train.muon import Muon
from kandinsky5.train.replicas import ALONE, Replicas
from kandinsky5.train.schedule import learning_rate

Optimiser = Literal["adamw", "muon"]
"""What steps the matrices inside blocks."""


@dataclass(frozen=True, kw_only=True)
class UpdateSettings:
    """AdamW (0.9, 0.95), eps 1e-8 and norm 1 are the authors' (model_facts.md, training facts).

    `optimiser` steps the matrices inside blocks; all else is AdamW's, at the same rate.
    """

    steps: int
    peak: float
    warmup: int = 200
    decay_share: float = 0.25
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    optimiser: Optimiser = "adamw"


class Update:
    """Steps float32 masters of `parameters` and writes them back rounded; averages the masters.

    `replicas` that begin with the same parameters keep the same ones: each step takes the sum of all their gradients.
    `hidden` names the matrices inside blocks, which Muon steps where the settings say so.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        settings: UpdateSettings,
        replicas: Replicas = ALONE,
        hidden: Collection[str] = (),
    ):
        muon = settings.optimiser == "muon"
        if muon and not hidden:
            raise ValueError("Muon has nothing to step: no matrices inside blocks were named.")
        self.settings = settings
        self.replicas = replicas
        self.step = 0
        self.masters = Masters(parameters, hidden if muon else ())
        flat = self.masters.flat
        self.ema = Ema(flat, settings.ema_decay)
        self._adam = torch.optim.AdamW(
            [
                {"params": [flat["matrices"]], "weight_decay": settings.weight_decay},
                {"params": [flat["vectors"]], "weight_decay": 0.0},
            ],
            lr=settings.peak,
            betas=settings.betas,
            eps=1e-8,
            fused=True,
        )
        self._muon = Muon(self.masters) if muon else None

    def __call__(self) -> Tensor:
        """Apply the gradients taken so far; returns their norm before clipping, a scalar left on the device."""
        s = self.settings
        rate = learning_rate(
            self.step, steps=s.steps, peak=s.peak, warmup=s.warmup, decay_share=s.decay_share
        )
        for group in self._adam.param_groups:
            group["lr"] = rate
        self.replicas.add_up(self.masters.gradients.values())
        norm = self.masters.gradient_norm()
        self.masters.scale_gradients((s.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        self._adam.step()
        if self._muon:
            self._muon.step(rate, s.weight_decay)
        self.masters.forget_gradients()
        self.masters.give_back()
        self.ema.update(self.masters.flat)
        self.step += 1
        return norm

    def average(self) -> dict[str, Tensor]:
        """The averaged masters by parameter name, float32 views."""
        return self.masters.named(self.ema.average)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs: tensors (masters, moments or momentum, average) and plain values."""
        tensors: dict[str, Tensor] = {}
        for group, flat in self.masters.flat.items():
            tensors[f"master.{group}"] = flat.detach()
            tensors[f"average.{group}"] = self.ema.average[group]
        for group, flat in self._of_adam().items():
            moments = self._adam.state[flat]
            tensors[f"moment1.{group}"] = moments.get("exp_avg", torch.zeros_like(flat))
            tensors[f"moment2.{group}"] = moments.get("exp_avg_sq", torch.zeros_like(flat))
        if self._muon:
            tensors["momentum.hidden"] = self._muon.momentum
        return tensors, {"step": self.step, "layout": self._layout()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Continue from what `state` returned. Raises CheckpointError where the parameters are not the same ones."""
        if values["layout"] != self._layout():
            raise CheckpointError("The saved state belongs to other parameters: names or shapes differ.")
        self.step = self.ema.updates = int(values["step"])
        for group, flat in self.masters.flat.items():
            flat.copy_(tensors[f"master.{group}"])
            self.ema.average[group].copy_(tensors[f"average.{group}"])
        for group, flat in self._of_adam().items():
            if self.step:
                self._adam.state[flat] = {
                    "step": torch.tensor(float(self.step), device=flat.device),
                    "exp_avg": tensors[f"moment1.{group}"].to(flat.device, copy=True),
                    "exp_avg_sq": tensors[f"moment2.{group}"].to(flat.device, copy=True),
                }
        if self._muon:
            self._muon.momentum.copy_(tensors["momentum.hidden"])
        self.masters.give_back()

    def _of_adam(self) -> dict[str, nn.Parameter]:
        return {group: self.masters.flat[group] for group in ("matrices", "vectors")}

    def _layout(self) -> list[list[Any]]:
        return [[name, list(view.shape)] for name, view in self.masters.named(self.masters.flat).items()]
