"""The optimisers by name, each over the same groups of parameters.

In: float32 masters and settings. Out: a torch optimiser. Nothing here knows what it updates, or when.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from kandinsky5.errors import RequestError
from kandinsky5.train.muon import MuonWithAdamW

EPS: Final = 1e-8
FUSED: Final = frozenset({"cpu", "cuda", "mps", "xpu"})
"""Devices on which torch updates in one pass; otherwise AdamW makes copies as large as all masters."""

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=rate, betas=betas, eps=EPS, fused=_in_one_pass(groups))


def _muon(groups: Groups, rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    return MuonWithAdamW(groups, rate, betas=betas, eps=EPS, fused=_in_one_pass(groups))


def _adamw8bit(groups: Groups, rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    _require("adamw8bit", "torchao")
    from torchao.optim import AdamW8bit

    return AdamW8bit(groups, lr=rate, betas=betas, eps=EPS)


def _prodigy(groups: Groups, rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    _require("prodigy", "prodigyopt")
    from prodigyopt import Prodigy

    return Prodigy(groups, lr=rate, betas=betas, eps=EPS, safeguard_warmup=True, use_bias_correction=True)


def _schedule_free(groups: Groups, rate: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    _require("schedule-free", "schedulefree")
    from schedulefree import AdamWScheduleFree

    return AdamWScheduleFree(groups, lr=rate, betas=betas, eps=EPS, foreach=False)


OPTIMISERS: Final[Mapping[str, Callable[[Groups, float, tuple[float, float]], torch.optim.Optimizer]]] = (
    MappingProxyType(
        {
            "adamw": _adamw,
            "adamw8bit": _adamw8bit,
            "prodigy": _prodigy,
            "schedule-free": _schedule_free,
            "muon": _muon,
        }
    )
)


def make_optimiser(
    name: str,
    matrices: Iterable[nn.Parameter],
    vectors: Iterable[nn.Parameter],
    hidden: Iterable[nn.Parameter] = (),
    *,
    rate: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> torch.optim.Optimizer:
    """An optimiser of `OPTIMISERS`. Matrices decay, vectors do not; `hidden` are matrices inside blocks, for Muon.

    Raises:
        RequestError: a name that is none, or whose library is not here; Muon without anything to step.
    """
    if name not in OPTIMISERS:
        raise RequestError(f"Optimiser {name!r} is not one of {', '.join(OPTIMISERS)}.")
    groups = [
        {"params": list(parameters), "weight_decay": decay}
        for parameters, decay in ((hidden, weight_decay), (matrices, weight_decay), (vectors, 0.0))
    ]
    if name == "muon" and not groups[0]["params"]:
        raise RequestError(
            'optimiser.name = "muon" has nothing to step: no matrices inside blocks learn; use "adamw".'
        )
    return OPTIMISERS[name]([group for group in groups if group["params"]], rate, betas)


def moves_to_result(optimiser: torch.optim.Optimizer) -> bool:
    """Whether it learns at other weights than those it arrives at (schedule-free)."""
    return callable(getattr(optimiser, "eval", None))


def switch_to_result(optimiser: torch.optim.Optimizer, on: bool) -> None:
    """Put the weights where such an optimiser arrives, or back to where it learns; the way back rounds."""
    if moves_to_result(optimiser):
        optimiser.eval() if on else optimiser.train()  # type: ignore[attr-defined]


def _in_one_pass(groups: Groups) -> bool:
    return {parameter.device.type for group in groups for parameter in group["params"]} <= FUSED


def _require(name: str, package: str) -> None:
    if find_spec(package) is None:
        raise RequestError(f"optimiser.name = {name!r} needs the package {package}: pip install {package}.")
