"""Where a pipeline runs and in which dtype: the one place where "auto" is resolved, and logged; and the room there.

Comes in: names of devices and dtypes. Goes out: torch's, and bytes. Refuses to know pipelines and checkpoints.
"""

import logging
from pathlib import Path

import torch

from kandinsky5.errors import RequestError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""How the command line names them."""


def resolve_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is the first of CUDA, MPS and CPU that is here.

    Raises:
        RequestError: a device that is unknown or absent.
    """
    if name == "auto":
        kind = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        logger.info("device: %s (auto)", kind)
        return torch.device(kind)
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise RequestError(
            f"Device {name!r} cannot be used: {reason}. Available: {', '.join(available_devices())}."
        ) from None
    return device


def available_devices() -> list[str]:
    """Names that `resolve_device` takes on this machine."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["auto", *cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of that name, long or short; "auto" is bfloat16 where the device multiplies it fast, else float32.

    Raises:
        RequestError: an unknown dtype.
    """
    if name == "auto":
        dtype = torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
        logger.info("dtype: %s (auto)", str(dtype).removeprefix("torch."))
        return dtype
    known = DTYPES | SHORT_DTYPES
    if name not in known:
        raise RequestError(f"dtype {name!r} is not one of auto, {', '.join(known)}.")
    return known[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run on units made for them: Ampere and later, AVX512-BF16, AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # torch before 2.12 does not list the processor's features; float32 is then the safe choice.
        features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be had on a device; None where nobody says."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    amounts = [amount for amount in (_available_to_machine(), _available_to_group()) if amount is not None]
    return min(amounts, default=None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left. Torch has no class for the CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _available_to_machine() -> int | None:
    """Linux's own estimate, without swap."""
    table = _numbers(Path("/proc/meminfo"))
    return table["MemAvailable:"] * 1024 if "MemAvailable:" in table else None


def _available_to_group() -> int | None:
    """What the container's limit leaves (control groups, version 2); files in memory give way."""
    group = Path("/sys/fs/cgroup")
    limit, used = (_number(group / name) for name in ("memory.max", "memory.current"))
    if limit is None or used is None:
        return None
    return max(0, limit - used + _numbers(group / "memory.stat").get("file", 0))


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None  # no such file, or "max"


def _numbers(file: Path) -> dict[str, int]:
    """A table of "name number" lines; empty where there is no such file."""
    try:
        lines = [line.split() for line in file.read_text(encoding="ascii").splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}
