"""The numbers in the configs of the libraries' models, before anything of such a size is built.

Comes in: a `config.json`, and how many tensors its folder holds: what is built has some, so more layers than tensors
are a lie. Goes out: nothing, or which number cannot be. The network's own are in `model.layout`. Refuses to know: what
is built of them.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky5.errors import CheckpointError

LARGEST_NUMBER = 2**31
LAYER_COUNTS = ("num_hidden_layers", "depth", "layers_per_block", "num_labels", "num_key_value_heads")
"""Fields of the libraries' configs that say how much is built: each layer has tensors, so more is a lie."""


def check_sizes(config: Any, tensors: int, file: Path) -> None:
    """Refuse numbers that would make a library build without end. Raises CheckpointError."""
    if isinstance(config, list):
        for value in config:
            check_sizes(value, tensors, file)
    elif isinstance(config, dict):
        for key, value in config.items():
            check_sizes(value, tensors, file)
            if key in LAYER_COUNTS and type(value) in (int, float) and not 0 <= value <= tensors:
                raise CheckpointError(f"{file}: {key} is {str(value)[:80]}, but there are {tensors} tensors.")
    elif type(config) in (int, float) and not abs(config) < LARGEST_NUMBER:
        raise CheckpointError(f"{file} has the number {str(config)[:80]}, which no size or setting is.")


def check_vae(config: Mapping[str, Any], tensors: int, file: Path) -> None:
    """How many levels the autoencoder has, each of them with tensors, and the settings that the pipelines read.

    Raises:
        CheckpointError: naming the field.
    """
    layers = config.get("layers_per_block", 1)
    for field, value in config.items():
        if isinstance(value, list) and len(value) * (layers if type(layers) is int else 1) > tensors:
            raise CheckpointError(
                f"{file}: {field} has {len(value)} entries, for {layers} layers each; there are {tensors} tensors."
            )
    size = config.get("sample_size", 1024)
    sides = size if isinstance(size, list) else [size]
    is_pair = not isinstance(size, list) or len(size) == 2
    if not is_pair or not all(type(side) is int and 1 <= side <= 2**16 for side in sides):
        raise CheckpointError(
            f"{file}: sample_size must be a side in pixels or a list of two, not {str(size)[:80]}."
        )
    scale = config.get("scaling_factor", 1.0)
    if type(scale) not in (int, float) or not math.isfinite(scale) or scale <= 0:
        raise CheckpointError(f"{file}: scaling_factor must be a number above 0, not {str(scale)[:80]}.")
