"""Numbers of a run for those who draw curves: TensorBoard and Weights & Biases, through the packages of these names.

In: steps and scalars. Out: event files, or what the service is told (with WANDB_MODE=offline, files). It refuses to
know what the numbers are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Events(Protocol):
    """Takes scalars of steps in rising order."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write these values at a step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoardEvents:
    """Event files in a folder; what an earlier start wrote of steps after `step` is no longer shown."""

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder, purge_step=step + 1)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write these values at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class WandbEvents:
    """A run of Weights & Biases with the folder's name; each start of the trainer is a run of its own there."""

    def __init__(self, project: str, folder: Path, settings: Mapping[str, Any]):
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project, name=folder.resolve().name, dir=str(folder), config=dict(settings)
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write these values at a step."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()
