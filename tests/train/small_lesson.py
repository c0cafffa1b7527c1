"""The least that the loop can carry out: a small net, rows by their numbers, and a run of it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from kandinsky5.train.checkpoints import FOLDER, Checkpoints
from kandinsky5.train.lesson import PlainLesson
from kandinsky5.train.replicas import ALONE, Replicas
from kandinsky5.train.settings import OptimiserSettings, Plan, RunSettings, WatchSettings
from kandinsky5.train.training import Training
from kandinsky5.train.tuning.holders import ReplicatedWeights

OPTIMISER = OptimiserSettings(rate=1e-2, warmup=2, decay_share=0.25, weight_decay=0.01)
MUON = replace(OPTIMISER, name="muon")
RUN = RunSettings(steps=6, batch=4, micro_batch=4, ema=0.999)
HIDDEN = ["0.weight", "3.weight"]


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def on_step(self, step: int, steps: int, loss: float | None) -> None:
        pass


def small_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3)).to(dtype)


def rows(number: int, count: int = 4) -> Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(number))


class SmallLesson(PlainLesson):
    """What comes out is to be nothing."""

    def __init__(
        self,
        optimiser: OptimiserSettings = OPTIMISER,
        *,
        replicas: Replicas = ALONE,
        net: nn.Module | None = None,
        count: int = 4,
        learns_from: str = "noise",
    ):
        self.net = net or small_net(torch.bfloat16)
        hidden = HIDDEN if optimiser.name == "muon" else ()
        self.weights = ReplicatedWeights(dict(self.net.named_parameters()), replicas, hidden)
        self.device = torch.device("cpu")
        self._count = count
        self._learns_from = learns_from

    def batches(self, numbers: range) -> Iterable[Tensor]:
        return (rows(number, self._count) for number in numbers)

    def loss(self, batch: Tensor, number: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert torch.equal(batch, rows(number, self._count))
        dtype = next(self.net.parameters()).dtype
        loss = self.net(batch.to(dtype)).float().square().mean()
        return loss, {
            "loss": loss,
            "of_rows": torch.stack([loss * len(batch), torch.tensor(len(batch))])[:, None],
        }

    def digest(self) -> Mapping[str, str]:
        return {"what is learnt from": self._learns_from}


def plan_of(output: Path, optimiser: OptimiserSettings = OPTIMISER, run: RunSettings = RUN) -> Plan:
    recipe = {"optimiser": vars(optimiser), "run": run.recipe()}
    return Plan(output=output, optimiser=optimiser, run=run, recipe=recipe, watch=WatchSettings(log_every=1))


def learn(
    output: Path,
    optimiser: OptimiserSettings = OPTIMISER,
    run: RunSettings = RUN,
    *,
    lesson: PlainLesson | None = None,
    told: Told | None = None,
) -> Training:
    """A run in a folder, from where it is to where it ends or pauses."""
    training = Training(plan_of(output, optimiser, run), lesson or SmallLesson(optimiser), told or Told())
    training.carry_out()
    return training


def newest(output: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """The tensors and values of a run's newest checkpoint."""
    checkpoints = Checkpoints(output / FOLDER, keep=1)
    path = checkpoints.newest()
    assert path is not None
    return checkpoints.load(path, {})
