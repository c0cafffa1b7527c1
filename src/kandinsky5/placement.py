"""Where a pipeline runs, in which dtype and mode: the one place where "auto" is resolved, and logged; the room there.

Comes in: names of devices, dtypes and modes, a network to be put into a mode, an autoencoder. Goes out: torch's
names, what a mode is on a device and why, and bytes. Refuses to know pipelines and checkpoints.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import torch
from torch import nn

from kandinsky5.autoencoder import prepare_for_speed as prepare_autoencoder
from kandinsky5.errors import RequestError
from kandinsky5.model.fast import FastPath, prepare_for_speed
from kandinsky5.model.float8_attention import why_no_float8_attention
from kandinsky5.model.kernels import kernels_for, why_no_triton
from kandinsky5.model.quantising import quantise, scale_heads
from kandinsky5.model.scaled import ScaledLinear, why_no_float8_products
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""How the command line names them."""

MODES: Final = MappingProxyType(
    {
        "exact": "the ordinary arithmetic in fewer passes over memory",
        "fp8": "the same with the visual blocks' products in float8, each row with its own scale",
        "fp8-attention": "fp8, and the visual tokens' attention to each other in float8 too",
    }
)
"""Ways to evaluate the network other than the ordinary one."""

FLOAT8_MODES: Final = ("fp8", "fp8-attention")
"""Of those, in which a network has float8 layers."""

AUTO: Final = "auto"
"""`automatic_mode`; a network that is in float8 already stays in fp8."""


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


@dataclass(frozen=True, kw_only=True)
class Mode:
    """What one of `MODES` is on a device.

    kernels: "triton" or "eager", who computes what stands between the products.
    products: the dtype that the visual blocks' layers are multiplied in.
    attention: the dtype that visual tokens attend to each other in.
    reasons: why it is not all that it could be, in words; empty where it is.
    """

    name: str
    kernels: str
    products: str
    attention: str
    reasons: tuple[str, ...]

    @property
    def told(self) -> str:
        """In words, without the reasons."""
        return f"{self.kernels} kernels, products in {self.products}, attention in {self.attention}"


def resolve_mode(name: str, device: torch.device, dtype: torch.dtype) -> Mode:
    """What a mode would be for a network of that dtype on a device. It runs everywhere, but is not faster everywhere.

    Raises:
        RequestError: an unknown mode.
    """
    if name not in MODES:
        raise RequestError(f"mode {name!r} is not one of {', '.join(MODES)}.")
    plain = str(dtype).removeprefix("torch.")
    float8 = name in FLOAT8_MODES
    reasons, products, attention = [why_no_triton(device, float8=float8)], plain, plain
    if float8:
        reasons.append(why_no_float8_products(device, dtype))
        products = "float8" if reasons[-1] is None else "float8 weights, widened to float32"
    if name == "fp8-attention" and reasons == [None, None]:
        reasons.append(why_no_float8_attention(device))
        attention = "float8" if reasons[-1] is None else plain
    return Mode(
        name=name,
        kernels=kernels_for(device, float8=float8).name,
        products=products,
        attention=attention,
        reasons=tuple(reason for reason in reasons if reason is not None),
    )


def automatic_mode(device: torch.device) -> str | None:
    """Which mode is used where nobody says: exact where its kernels are fused, which draws the same in half the time.

    None, the ordinary way, elsewhere: the eager twins of the kernels are no faster. Times: docs/performance.md.
    """
    return "exact" if why_no_triton(device, float8=False) is None else None


def use_mode(
    network: Kandinsky5Transformer3DModel,
    name: str | None,
    *,
    graphs: bool | None = None,
    device: torch.device | None = None,
) -> Mode | None:
    """Put a network into a mode, and log what that is on the device where it runs.

    Args:
        network: the float8 modes replace layers of its visual blocks for good, at half their memory.
        name: one of `MODES`, or `AUTO`; None is the ordinary way, which only an exact network can go back to.
        graphs: replay CUDA graphs where nothing changes between steps but tensors; None is where there is plenty of
            memory for what they keep.
        device: that an offloaded network runs on; by default the one it is on.

    Raises:
        RequestError: an unknown mode, a network with unfused adapters or another quantisation (float8), a device
            without float8, or a way back from it.
    """
    is_float8 = any(isinstance(module, ScaledLinear) for module in network.modules())
    device = device or network.device
    if name == AUTO:
        name = "fp8" if is_float8 else automatic_mode(device)
    if is_float8 and name not in FLOAT8_MODES:
        raise RequestError(f"A network in float8 has lost what mode {name!r} needs; load it again.")
    if name is None:
        network.fast_path = None
        return None
    mode = resolve_mode(name, device, network.dtype)
    float8 = name in FLOAT8_MODES
    if float8 and device.type == "mps":
        raise RequestError(f"MPS has no float8, so no mode {name!r}; 'exact' runs there.")
    if float8:
        quantise(network)
    if name == "fp8-attention":
        scale_heads(network)
    prepare_for_speed(network)
    network.fast_path = FastPath(float8=float8, float8_attention=name == "fp8-attention", graphs=graphs)
    because = f" ({'; '.join(mode.reasons)})" if mode.reasons else ""
    logger.info("mode: %s, %s%s", name, mode.told, because)
    return mode


def use_fast_autoencoder(vae: nn.Module | None, device: torch.device) -> bool:
    """Let an autoencoder encode and decode with fused kernels where they run on a device, and say so in the log.

    It is the same but for rounding; `autoencoder.undo` takes it back.

    Returns:
        Whether it does.
    """
    if vae is None:
        return False
    reason = why_no_triton(device, float8=False) or prepare_autoencoder(vae)
    because = "" if reason is None else f" ({reason})"
    logger.info("autoencoder: %s%s", "fused kernels" if reason is None else "ordinary", because)
    return reason is None


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
