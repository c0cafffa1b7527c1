"""Values that are no numbers: found in files, or in a module that was just loaded.

Minimum and maximum tell: a NaN spreads to both, an infinity is one of them. One thread reads bfloat16 at more than
10 GB/s that way, so every loaded module is looked at; what is offloaded to disk is not.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kandinsky5.checkpoint.safetensors_header import read_header
from kandinsky5.errors import CheckpointError


def find_non_finite(folder: Path) -> list[tuple[Path, str]]:
    """(file, tensor) of each stored tensor below a folder that holds NaN or infinity; one tensor in memory at a time.

    Raises:
        CheckpointError: a file that cannot be read.
    """
    found = []
    for file in sorted(Path(folder).rglob("*.safetensors")):
        names = read_header(file)
        try:
            with safe_open(file, framework="pt") as opened:
                found += [(file, name) for name in names if not is_finite(opened.get_tensor(name))]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} cannot be read: {error}.") from error
    return found


_postponed: ContextVar[bool] = ContextVar("whether values are looked at later", default=False)


@contextmanager
def postponed() -> Iterator[None]:
    """Loads that run meanwhile look at no values: whoever reads them looks (`streaming.FileBytes`)."""
    token = _postponed.set(True)
    try:
        yield
    finally:
        _postponed.reset(token)


def check_finite(module: nn.Module, where: str | Path) -> None:
    """Refuse a loaded module with NaN or infinity in a parameter.

    Raises:
        CheckpointError: naming the parameter.
    """
    if _postponed.get():
        return
    for name, parameter in module.named_parameters():
        if not is_finite(parameter if hasattr(parameter, "quant_state") else parameter.data):
            raise CheckpointError(
                f"Tensor {name!r} in {where} has values that are not finite (NaN or infinity). Fetch it again."
            )


def is_finite(tensor: Tensor) -> bool:
    """Whether all values are numbers; a tensor without storage (meta) counts as such.

    Of a packed tensor (torchao's and bitsandbytes' classes) the parts are looked at: a NaN or infinity among the values
    that were packed is in their scale.
    """
    if is_traceable_wrapper_subclass(tensor):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]  # type: ignore[attr-defined]
        return all(is_finite(part) for part in parts if isinstance(part, Tensor))
    scales = getattr(tensor, "quant_state", None)
    if scales is not None:  # bitsandbytes: where it packed the scales too, theirs tell
        nested = scales.state2.absmax if scales.nested else scales.absmax
        return is_finite(nested) and (not scales.nested or is_finite(scales.offset))
    if tensor.is_meta or not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    extremes = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())
    return all(math.isfinite(float(extreme)) for extreme in extremes)
