"""What a machine has: memory that is free, and how fast bytes and products go.

Comes in: a device and a budget. Goes out: a `Machine`. Speeds are measured in some hundredths of a second; they decide
between plans, and no plan depends on them for being right. Refuses to know: models.
"""

import logging
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch

from kandinsky5.budget import Budget
from kandinsky5.errors import RequestError
from kandinsky5.placement import free_memory

logger = logging.getLogger(__name__)

CONTEXT: Final = 850 * 10**6
"""Bytes of a CUDA device that its context and libraries take, beside what torch allocates: 0.81 to 0.85 GB of an H100
(benchmarks/results/2026-11-28-memory-h100.json, the driver's peak less what was reserved)."""

HOST_LIBRARIES: Final = 1500 * 10**6
"""Bytes of host memory that CUDA's context and libraries come to take, beside what the process has by now. An estimate
until it is measured."""

SLACK: Final = 0.95
"""Of memory that is free, what is planned with: predictions are not exact, allocators leave holes, and on CUDA some
libraries are yet to come."""

ASKED_SLACK: Final = 0.97
"""The same of what was asked for of a CUDA device, less `CONTEXT`: the allocator reserved up to 1.4 % more than was
predicted (same file)."""

DISK_SPEED: Final = 3e9
"""Bytes a second of a solid-state disk; not measured, since a file may be in the page cache or not."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What plans may use.

    device: where everything is computed.
    device_bytes: for weights and activations there. On the CPU that is host memory, and all there is.
    host_bytes: for weights that wait on the host; on the CPU the same memory.
    link: bytes a second from host to device.
    disk: bytes a second from a file.
    products: multiplications and additions a second of one product in the dtype of the run, each counted.
    """

    device: torch.device
    device_bytes: int
    host_bytes: int
    link: float
    disk: float = DISK_SPEED
    products: float


def this_machine(device: torch.device, dtype: torch.dtype, budget: Budget) -> Machine:
    """This machine as far as a budget allows.

    Raises:
        RequestError: a device that nothing can be streamed to, or a system that does not say what is free and a budget
            that does not either.
    """
    if device.type not in ("cuda", "cpu"):
        raise RequestError(f"memory= is for CUDA devices and the CPU; on {device.type} leave it out.")
    free = [_free(device), _free(torch.device("cpu"))]
    if device.type == "cpu":
        asked = [
            None if amount is None else int(max(0, amount - anonymous_bytes()) * SLACK)
            for amount in (budget.device_bytes, budget.host_bytes)
        ]
        device_bytes = host_bytes = _least(*free, *asked)
    else:
        of_device, of_host = budget.device_bytes, budget.host_bytes
        device_bytes = _least(
            free[0], None if of_device is None else int(max(0, of_device - CONTEXT) * ASKED_SLACK)
        )
        host_bytes = _least(
            free[1], None if of_host is None else max(0, of_host - anonymous_bytes() - HOST_LIBRARIES)
        )
    link, products = _speeds(device, dtype)
    return Machine(
        device=device,
        device_bytes=device_bytes,
        host_bytes=host_bytes,
        link=link,
        products=products,
    )


def _free(device: torch.device) -> int | None:
    """Bytes to plan with of what is free; None where nobody says."""
    free = free_memory(device)
    return None if free is None else int(free * SLACK)


def _least(*amounts: int | None) -> int:
    """The smallest of those that are known."""
    known = [amount for amount in amounts if amount is not None]
    if not known:
        raise RequestError(
            "This system does not say how much memory is free; name it, first the device's and then the host's: "
            "--memory 8GB:16GB."
        )
    return min(known)


def anonymous_bytes() -> int:
    """Memory of this process that is no file's; 0 where nobody says."""
    try:
        text = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon")), 0)


@lru_cache(maxsize=8)
def _speeds(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """(bytes a second to the device, operations a second), each the best of three."""
    rows, width, wide = (2048, 2560, 10240) if device.type == "cuda" else (128, 1024, 1024)
    x, y = (
        torch.randn(rows, width, device=device, dtype=dtype),
        torch.randn(width, wide, device=device, dtype=dtype),
    )
    source = torch.empty(32 * 2**20, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty_like(source, device=device)
    copy = min(_seconds(lambda: target.copy_(source, non_blocking=True), device) for _ in range(4))
    product = min(_seconds(lambda: x @ y, device) for _ in range(4))
    link, products = source.nbytes / copy, 2 * rows * width * wide / product
    logger.info("%s: %.1f GB/s to it, %.1f TFLOP/s", device, link / 1e9, products / 1e12)
    return link, products


def _seconds(function: object, device: torch.device) -> float:
    assert callable(function)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
