"""What a run learns, as the loop of training sees it.

In: nothing yet. Out: numbered micro-batches, the loss of each, and what is made of weights that have learnt. A lesson
knows where rows come from and what they are asked; it refuses to know optimisers, checkpoints and when anything is due.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kandinsky5.train.replicas import Replicas
from kandinsky5.train.settings import TrainingSettings
from kandinsky5.train.tuning.holders import Weights
from kandinsky5.train.tuning.stepper import Stepper


class Lesson(ABC):
    """Micro-batch `number` of a run and its gradient depend on it and on weights: never on who computes them."""

    weights: Weights
    """Masters of everything that learns."""

    device: torch.device
    """Where it learns."""

    @abstractmethod
    def batches(self, numbers: range) -> Iterable[Any]:
        """The micro-batches of these numbers, in order, made ahead where that takes time."""

    @abstractmethod
    def take_gradients(self, batch: Any, number: int, parts: int) -> Mapping[str, Tensor]:
        """Give the weights a `parts`-th of the gradient of a micro-batch's loss.

        Returns numbers for the log, left on the device. Of a number the mean over the micro-batches of a step is
        logged, of (2, n) sums and counts the n averages. "loss" is always among them; "tokens" become a rate.
        """

    def digest(self) -> Mapping[str, str]:
        """What tells that which this run learns from, or begins with, from others: by its name for people."""
        return {}

    def is_due(self, step: int, edge: bool) -> bool:
        """Whether there is something to `show` after this step; `edge`: before the first one or after the last."""
        return False

    def show(self, step: int, edge: bool) -> Mapping[str, float]:
        """Show what weights that are put to use can do by now; returns numbers for the log."""
        return {}

    def keep(self, stepper: Stepper) -> None:  # noqa: B027 (many have nothing to leave)
        """A checkpoint was written; leave what is wanted beside it."""

    def finish(self, stepper: Stepper) -> None:  # noqa: B027
        """The last step is done; leave the results."""


class PlainLesson(Lesson):
    """A lesson that says what the loss of a micro-batch is, and leaves its gradient to torch."""

    @abstractmethod
    def loss(self, batch: Any, number: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """A scalar with its graph, and the numbers of `take_gradients`."""

    def take_gradients(self, batch: Any, number: int, parts: int) -> Mapping[str, Tensor]:
        """See `Lesson`."""
        loss, numbers = self.loss(batch, number)
        (loss / parts).backward()
        self.weights.take_gradients()
        return numbers


LessonMaker = Callable[[TrainingSettings, Path, Replicas, Callable[[str], None]], Lesson]
"""Maps settings, the folder that their paths count from, processes and who is told to a lesson that can begin."""
