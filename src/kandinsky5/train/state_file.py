"""A run's state on disk: one safetensors file, tensors inside and plain values as JSON in its header.

No pickle, so a state can be shared. Written to a temporary name and renamed: a run that dies while saving leaves the
last whole state behind.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kandinsky5.errors import CheckpointError


def save_state(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write `tensors` (any device) and JSON-able `values` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    rows = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    save_file(rows, partial, metadata={"values": json.dumps(values)})
    partial.replace(path)


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_state` wrote, on the CPU. Raises CheckpointError naming the file."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads(file.metadata()["values"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is not a saved training state: {error}") from error
