"""Values that are no numbers: found in files, or in a module that was just loaded.

Of a tensor in memory the largest bit patterns tell: infinities and NaN stand above all numbers (IEEE 754, 3.4), as
signed integers those of positive sign, as unsigned ones those of negative sign. numpy finds them in one thread, and
several tensors are looked at at once: 1 s for 29 GB in the page cache, where torch's own minimum and maximum, each by
all of 64 virtual cores, took 14 s (benchmarks/results/2026-11-28-loading-h100.json). On other devices they tell. Every
loaded module is looked at; what is read from its files again and again is when it is first read.
"""

import math
import os
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kandinsky5.checkpoint.safetensors_header import read_header
from kandinsky5.errors import CheckpointError

READERS = min(8, os.cpu_count() or 1)
"""Threads that look at the tensors of a module in the host's memory."""

PIECE_BYTES = 2**21
"""Read twice, and the second time from the cache."""

INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
"""As wide as the floating point numbers."""


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


def check_finite(module: nn.Module, where: str | Path, *, without: Collection[Tensor] = ()) -> None:
    """Refuse a loaded module with NaN or infinity in a parameter other than those that somebody else looks at.

    Raises:
        CheckpointError: naming the parameter.
    """
    if _postponed.get():
        return
    left_out = {id(parameter) for parameter in without}
    parameters = [
        (name, parameter if hasattr(parameter, "quant_state") else parameter.data)
        for name, parameter in module.named_parameters()
        if id(parameter) not in left_out
    ]
    for (name, _), good in zip(parameters, _looked_at([tensor for _, tensor in parameters]), strict=True):
        if not good:
            raise CheckpointError(
                f"Tensor {name!r} in {where} has values that are not finite (NaN or infinity). Fetch it again."
            )


def _looked_at(tensors: list[Tensor]) -> Iterator[bool]:
    """`is_finite` of each, by several threads where all of them are in the host's memory."""
    if any(tensor.device.type not in ("cpu", "meta") for tensor in tensors):
        yield from map(is_finite, tensors)
        return
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(is_finite, tensors)


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
    if tensor.device.type == "cpu" and tensor.dtype in INTEGERS and tensor.is_contiguous():
        return _has_no_special_pattern(tensor)
    extremes = torch.aminmax(tensor if tensor.dtype.itemsize > 1 else tensor.float())
    return all(math.isfinite(float(extreme)) for extreme in extremes)


def _has_no_special_pattern(tensor: Tensor) -> bool:
    """Whether no value of a contiguous tensor has the bits of an infinity or a NaN."""
    wide = INTEGERS[tensor.dtype]
    infinity = int(torch.tensor(math.inf, dtype=tensor.dtype).view(wide))
    signed = tensor.detach().view(-1).view(wide).numpy()
    unsigned = signed.view(f"u{signed.dtype}")
    negative_infinity = infinity + 2 ** (8 * signed.itemsize - 1)
    step = PIECE_BYTES // signed.itemsize
    return all(
        int(signed[i : i + step].max()) < infinity and int(unsigned[i : i + step].max()) < negative_infinity
        for i in range(0, len(signed), step)
    )
