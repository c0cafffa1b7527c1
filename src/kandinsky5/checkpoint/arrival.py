"""Whether what a library loaded is what the files hold: a sample of each tensor, compared.

A library that does not recognise a name fills the parameter with random numbers and goes on. Names and shapes are
checked before (`weights.compare`), but with our idea of how the library renames; this looks at the outcome. Comes in: a
loaded module and its stored tensors. It refuses to know why something did not arrive.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.errors import CheckpointError

SAMPLE = 16
"""Values compared a tensor: the first of its first row."""


def check_arrived(
    module: nn.Module,
    stored: Mapping[str, StoredTensor],
    where: Path,
    current_name: Callable[[str], str] = lambda name: name,
) -> None:
    """Refuse a module with a parameter whose first values are not those of its file.

    Args:
        module: just loaded; what is quantised or not in memory is not looked at.
        stored: by current name.
        where: the folder, for the message.
        current_name: of a parameter, as `stored` has it.

    Raises:
        CheckpointError: naming the parameter.
    """
    by_file = defaultdict(list)
    for name, parameter in module.named_parameters():
        tensor = stored.get(current_name(name))
        if tensor is None:
            raise CheckpointError(
                f"Nothing in {where} is called {name!r}, which the library loaded as random."
            )
        if type(parameter.data) is Tensor and not parameter.is_meta and parameter.is_floating_point():
            by_file[tensor.file].append((name, parameter.data, tensor))
    for file, loaded in by_file.items():
        with safe_open(file, framework="pt") as opened:
            for name, values, tensor in loaded:
                stored_values = (
                    opened.get_slice(tensor.name) if tensor.shape else opened.get_tensor(tensor.name)
                )
                if not _same(_sample(values).cpu(), _sample(stored_values).to(values.dtype)):
                    raise CheckpointError(
                        f"Tensor {tensor.name!r} in {file} did not arrive in {name!r}: this version of the library "
                        "calls it something else. Report it, with the versions of diffusers and transformers."
                    )


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all values are; NaN is NaN here, and refused for what it is elsewhere (`finite`)."""
    return torch.allclose(one.float(), other.float(), rtol=0, atol=0, equal_nan=True)


def _sample(values: Any) -> Tensor:
    """The first values of a tensor, or of a slice of a file."""
    dimensions = len(values.shape if isinstance(values, Tensor) else values.get_shape())
    if dimensions == 0:
        return values.reshape(1)
    return values[: SAMPLE if dimensions == 1 else 1].reshape(-1)[:SAMPLE]
