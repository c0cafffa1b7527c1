"""Peaks of memory while something runs: the device's as the driver counts it, the host's by kind.

Comes in: nothing. Goes out: bytes. Refuses to know: what runs.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

KINDS = {"anonymous": "RssAnon", "files": "RssFile", "shared": "RssShmem", "all": "VmRSS"}
"""Of host memory, and their lines in /proc/self/status. Locked memory of this package is anonymous."""


@contextmanager
def watched(device: torch.device, every: float = 0.005) -> Iterator[dict[str, Any]]:
    """The peaks of what runs inside, when it is over.

    device_bytes is what the driver says is taken of the device (context, libraries and other processes included, as
    NVML has it); allocated and reserved are torch's; host by kind; locked_by_torch is page-locked memory of torch's own
    pool, which no line of the process's status holds.
    """
    found: dict[str, Any] = {"host": dict.fromkeys(KINDS, 0), "device_bytes": 0}
    done = threading.Event()
    cuda = device.type == "cuda"

    def look() -> None:
        for kind, size in host_bytes().items():
            found["host"][kind] = max(found["host"][kind], size)
        if cuda:
            free, total = torch.cuda.mem_get_info(device)
            found["device_bytes"] = max(found["device_bytes"], total - free)

    def watch() -> None:
        while not done.wait(every):
            look()

    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    watcher = threading.Thread(target=watch, daemon=True)
    look()
    watcher.start()
    try:
        yield found
    finally:
        done.set()
        watcher.join()
        look()
        if cuda:
            found["allocated"] = torch.cuda.max_memory_allocated(device)
            found["reserved"] = torch.cuda.max_memory_reserved(device)
            found["locked_by_torch"] = torch.cuda.host_memory_stats().get("allocated_bytes.peak", 0)


def host_bytes() -> dict[str, int]:
    """Of this process now, by kind."""
    lines = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
    )
    return {kind: 1024 * int(lines[name].split()[0]) for kind, name in KINDS.items()}
