"""Formats of weights: how many bytes a layer takes in each, and which layers may be packed.

Comes in: a format's name and a layer. Goes out: bytes; the libraries' own configs. `bf16` stands for weights as they
are stored. Libraries pack: torchao 8 bits, bitsandbytes 4. Refuses to know: what is chosen.
"""

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn

from kandinsky5.errors import RequestError
from kandinsky5.model import four_bits

FORMATS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bf16": "as stored, no loss",
        "int8": "8 bits and a scale for each output channel (torchao, weights only)",
        "fp8": "float8 with a scale for each output channel (torchao); on Hopper its products are float8 too",
        "nf4": "4 bits on the quantiles of a normal distribution, in blocks of 64 (bitsandbytes, scales packed again)",
    }
)

LIBRARY: Final[Mapping[str, str]] = MappingProxyType(
    {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}
)

KEPT: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "transformer": (
            *("time_embeddings", "text_embeddings", "pooled_text_embeddings", "visual_embeddings"),
            *("text_modulation", "visual_modulation", "out_layer.modulation", "out_layer.out_layer"),
        ),
        "text_encoder": ("lm_head", "model.visual"),
    }
)
"""Parts that are never packed: of the network both ends and what is float32 there; of Qwen what sees and speaks."""

PACKED: Final = tuple(KEPT)
"""Components that are packed; CLIP and the autoencoder are 1 % of the whole."""

NF4_BLOCK: Final = 64
NF4_SCALES_BLOCK: Final = 256


def packs(component: str, name: str, layer: nn.Module, form: str) -> bool:
    """Whether a layer of a component is packed where its component is in a format."""
    kept = KEPT.get(component)
    if kept is None or type(layer) is not nn.Linear:
        return False
    if form == "nf4" and layer.in_features % NF4_BLOCK:
        return False  # a block would reach over the end of a row
    return not any(f"{part}." in f"{name}." for part in kept)


def weight_bytes(name: str, weight: torch.Tensor, dtype: torch.dtype) -> tuple[int, int]:
    """(bytes that move with the layer, bytes of scales that stay on the device) of a weight (out, in) in a format."""
    count, rows = weight.numel(), weight.shape[0]
    if name == "int8":
        return count + rows * (torch.float32.itemsize + 1), 0  # scale and zero point
    if name == "fp8":
        return count + rows * torch.float32.itemsize, 0
    if name == "nf4":
        blocks = -(-count // NF4_BLOCK)
        scales = blocks + -(-blocks // NF4_SCALES_BLOCK) * torch.float32.itemsize
        return -(-count // 2), scales + (16 + 256 + 1) * torch.float32.itemsize  # both tables, and the mean
    return count * dtype.itemsize, 0


def why_not(name: str, component: str) -> str | None:
    """Why a format cannot be had here, in words; None where it can.

    Raises:
        RequestError: there is no such format.
    """
    if name not in FORMATS:
        raise RequestError(f"format {name!r} is not one of {', '.join(FORMATS)}.")
    if component not in PACKED:
        return f"{component} is never packed"
    library = LIBRARY.get(name)
    if library is not None and importlib.util.find_spec(library) is None:
        return f"{library} is not installed (pip install 'kandinsky5[quantize]')"
    return None


def config(name: str, component: str) -> Any:
    """The library's config that packs a component while it is loaded.

    Raises:
        RequestError: a format that cannot be had here.
    """
    reason = why_not(name, component)
    if reason is not None:
        raise RequestError(f"Format {name} cannot be had for {component}: {reason}.")
    kept = list(KEPT[component])
    if name == "nf4":
        from transformers import BitsAndBytesConfig

        if component == "transformer":
            return four_bits.settings(kept)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            llm_int8_skip_modules=kept,
        )
    kind = _torchao(name)
    if component == "transformer":
        from diffusers import TorchAoConfig as NetworkConfig

        return NetworkConfig(kind, modules_to_not_convert=kept)
    from transformers import TorchAoConfig as EncoderConfig

    return EncoderConfig(kind, modules_to_not_convert=kept)


def pack(model: Any, component: str, name: str, device: torch.device) -> None:
    """Pack a loaded component in place, a layer at a time: memory only falls, and the device holds one weight.

    Args:
        model: on the host, in bfloat16.
        component: which one it is.
        name: of the format.
        device: where weights are packed, in turn.
    """
    layers = {path: layer for path, layer in model.named_modules() if packs(component, path, layer, name)}
    if name == "nf4" and component == "transformer":
        four_bits.pack(model, layers, KEPT[component], device)
    elif name == "nf4":
        four_bits.replace_layers(model, layers, device)
    else:
        from torchao.quantization import quantize_

        for layer in layers.values():
            layer.weight = nn.Parameter(layer.weight.data.to(device), requires_grad=False)
            quantize_(layer, _torchao(name))
            layer.weight = nn.Parameter(layer.weight.to("cpu"), requires_grad=False)


def _torchao(name: str) -> Any:
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

    return Int8WeightOnlyConfig() if name == "int8" else Float8WeightOnlyConfig()
