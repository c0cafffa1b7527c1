"""Numbers of a run for TensorBoard, through the package of that name.

In: steps and scalars. Out: event files. It refuses to know what the numbers are.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from kandinsky5.errors import RequestError


class Events:
    """A writer of event files in a folder. Raises RequestError where tensorboard is not installed."""

    def __init__(self, folder: Path):
        if find_spec("tensorboard") is None:
            raise RequestError(
                "watch.tensorboard = true needs the package tensorboard: pip install tensorboard."
            )
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(folder)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write these values at a step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
