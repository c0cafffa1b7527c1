"""Where a pipeline runs and in which dtype: the one place where "auto" is resolved, and logged.

Comes in: names of devices and dtypes. Goes out: torch's. Refuses to know pipelines and files.
"""

import logging

import torch

from kandinsky5.errors import RequestError

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


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
    """The dtype of that name; "auto" is bfloat16 where the device multiplies it fast, else float32.

    Raises:
        RequestError: an unknown dtype.
    """
    if name == "auto":
        dtype = torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
        logger.info("dtype: %s (auto)", str(dtype).removeprefix("torch."))
        return dtype
    if name not in DTYPES:
        raise RequestError(f"dtype {name!r} is not one of auto, {', '.join(DTYPES)}.")
    return DTYPES[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run on units made for them: Ampere and later, AVX512-BF16, AMX."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # torch before 2.12 does not list the processor's features; float32 is then the safe choice.
        features = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False
