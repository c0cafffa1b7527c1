"""A file, or the tensors of one, as a `Lora`.

Comes in: a safetensors file as diffusers, peft, ComfyUI, kohya or the authors' trainer write it, or a mapping of its
tensors. Goes out: a `Lora`. What scales it is taken from the file's own alphas, else from its metadata, else from the
config that peft and the authors' trainer write beside it; of a config only numbers are believed. It refuses to know the
network.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from kandinsky5.checkpoint.document import parse_object, read_object, reason
from kandinsky5.checkpoint.finite import is_finite
from kandinsky5.checkpoint.safetensors_header import read_header
from kandinsky5.errors import CheckpointError
from kandinsky5.lora.names import split_name
from kandinsky5.lora.record import Lora, LoraKind

CONFIG_FILES: Final = ("adapter_config.json", "config_lora.json")
"""What peft and the authors' trainer write beside the tensors."""

METADATA_KEY: Final = "lora_adapter_metadata"
"""Where diffusers keeps the same inside the file."""

_PLAIN: Final = re.compile(r"\^?\w+(\.\w+)*")
"""A key of peft's patterns that is a layer's name or the end of one. Others are regular expressions, and a file may not
have them run: some take for ever."""

MAX_NUMBER: Final = 1e6
"""Of a rank or an alpha; beyond it a file is damaged."""


def read_lora(file: Path) -> Lora:
    """The adapter in a safetensors file.

    Raises:
        CheckpointError: a file that is missing, damaged, a pickle, or holds something else.
    """
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"{file} is not a .safetensors file; pickles (.bin, .pt, .ckpt) can run code and are not read here."
        )
    names = read_header(file)
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read: {reason(error)}.") from error
    config = _config_in(metadata, file) or _config_beside(file)
    return recognise(tensors, source=str(file), config=config, trigger=metadata.get("trigger", ""))


def recognise(
    tensors: Mapping[str, Tensor],
    *,
    source: str = "The adapter",
    config: Mapping[str, Any] | None = None,
    trigger: str = "",
) -> Lora:
    """The adapter whose tensors these are, by the names of any format that is known here.

    Args:
        tensors: of a file.
        source: what messages call it.
        config: peft's config of it; only `r`, `lora_alpha` (`alpha` of a LoKr), their patterns and `use_rslora` are
            looked at.
        trigger: see `Lora`.

    Raises:
        CheckpointError: no adapter, or one of a kind that is not known here; layers that miss a part; values that are
            no numbers.
    """
    layers: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, tensor in tensors.items():
        found = split_name(name)
        if found is None:
            unknown.append(name)
            continue
        layer, part = found
        if part in layers.setdefault(layer, {}):
            raise CheckpointError(f"{source} has {part} of layer {layer} twice, under different names.")
        if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or part == "alpha"):
            held = tensor.dtype if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
            raise CheckpointError(f"Tensor {name!r} of {source} is {held}, not of floating-point numbers.")
        if not is_finite(tensor):
            raise CheckpointError(f"Tensor {name!r} of {source} has values that are not finite.")
        layers[layer][part] = tensor
    if unknown or not layers:
        raise CheckpointError(_no_adapter(source, unknown, len(tensors)))
    alphas = {
        layer: _number(parts.pop("alpha"), source) for layer, parts in layers.items() if "alpha" in parts
    }
    kind = _kind(layers, source)
    lora = Lora(kind=kind, layers=layers, scales=dict.fromkeys(layers, 1.0), source=source, trigger=trigger)
    if kind == "dora":
        for layer, parts in layers.items():
            parts["magnitude"] = _magnitude(parts["magnitude"], layer, source)
    scales = {layer: _scale(lora, layer, alphas.get(layer), config) for layer in layers}
    return Lora(kind=kind, layers=layers, scales=scales, source=source, trigger=trigger)


def _no_adapter(source: str, unknown: list[str], count: int) -> str:
    if not count:
        return f"{source} holds no tensors."
    return (
        f"{source} holds no LoRA, DoRA or LoKr that is known here: {len(unknown)} of its {count} tensors have names of "
        f"none, the first {unknown[0]!r:.120}."
    )


def _kind(layers: Mapping[str, Mapping[str, Tensor]], source: str) -> LoraKind:
    """What all layers are. Raises CheckpointError for layers of several kinds, or without a part."""
    kinds = {_kind_of(parts) for parts in layers.values()}
    incomplete = [layer for layer, parts in layers.items() if _kind_of(parts) is None]
    if incomplete:
        found = (f"{part} {tuple(tensor.shape)}" for part, tensor in sorted(layers[incomplete[0]].items()))
        raise CheckpointError(
            f"{source} has {', '.join(found) or 'an alpha alone'} of layer {incomplete[0]}, which make no LoRA, DoRA "
            f"or LoKr of a linear layer, and {len(incomplete) - 1} more layers like it; it was cut off, made of "
            "several files, or is of convolutions."
        )
    if len(kinds) > 1:
        raise CheckpointError(f"{source} mixes {' and '.join(sorted(str(kind) for kind in kinds))}.")
    kind = kinds.pop()
    assert kind is not None
    return kind


def _kind_of(parts: Mapping[str, Tensor]) -> LoraKind | None:
    names = frozenset(parts)
    if names >= {"A", "B"} and _is_product(parts["A"], parts["B"]):
        return "lora" if len(names) == 2 else "dora" if names == {"A", "B", "magnitude"} else None
    forms = [({w}, {f"{w}_a", f"{w}_b"}) for w in ("w1", "w2")]
    whole = any(names == first | second for first in forms[0] for second in forms[1])
    return "lokr" if whole and all(_is_factor(parts, w) for w in ("w1", "w2")) else None


def _is_factor(parts: Mapping[str, Tensor], w: str) -> bool:
    return parts[w].ndim == 2 if w in parts else _is_product(parts[f"{w}_b"], parts[f"{w}_a"])


def _is_product(a: Tensor, b: Tensor) -> bool:
    return a.ndim == b.ndim == 2 and len(a) == b.shape[1] > 0


def _magnitude(tensor: Tensor, layer: str, source: str) -> Tensor:
    """(out,), from peft's (out,) or kohya's (out, 1)."""
    if tensor.ndim == 2 and len(tensor) == 1 < tensor.shape[1]:
        raise CheckpointError(
            f"{source} has magnitudes {tuple(tensor.shape)} of layer {layer}: one for each channel in (LyCORIS without "
            "wd_on_out), and peft computes with one for each channel out only."
        )
    return tensor.reshape(-1)


def _scale(lora: Lora, layer: str, alpha: float | None, config: Mapping[str, Any] | None) -> float:
    rank = lora.rank(layer)
    if alpha is not None:  # ComfyUI and kohya: of a LoKr only where a factor is a product
        whole = lora.kind == "lokr" and not {"w1_b", "w2_b"} & lora.layers[layer].keys()
        return 1.0 if whole else alpha / rank
    if config is None:
        return 1.0
    wanted = _from_config(config, "alpha", layer, lora.source)
    if wanted is None:
        return 1.0
    counted = rank
    if lora.kind == "lokr":
        counted = int(_from_config(config, "rank", layer, lora.source) or rank)
    return wanted / (math.sqrt(counted) if config.get("use_rslora") is True else counted)


def _from_config(config: Mapping[str, Any], what: str, layer: str, source: str) -> float | None:
    """The rank or alpha that a config gives a layer: its own where there is a pattern for it, else the common one."""
    patterns = config.get(f"{what}_pattern")
    found = {} if not isinstance(patterns, dict) else patterns
    for name, value in found.items():
        plain = str(name).removesuffix("$").replace("\\.", ".")
        if not _PLAIN.fullmatch(plain):
            raise CheckpointError(
                f"{source} gives {what}s by the pattern {name!r:.80}, and only names of layers are understood there: "
                "write out the names that it stands for."
            )
        whole = plain.removeprefix("^")
        if layer == whole or (whole == plain and layer.endswith(f".{plain}")):
            return _number(value, source)
    names = ("lora_alpha", "alpha") if what == "alpha" else ("r",)
    value = next((config[name] for name in names if config.get(name) is not None), None)
    return None if value is None else _number(value, source)


def _number(value: Any, source: str) -> float:
    number = value.reshape(-1)[0].item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < abs(number) <= MAX_NUMBER:
        raise CheckpointError(f"{source} gives {number!r:.60} as a rank or alpha.")
    return float(number)


def _config_in(metadata: Mapping[str, str], file: Path) -> dict[str, Any] | None:
    """What diffusers keeps of peft's config inside a file, without the component's name before each key."""
    text = metadata.get(METADATA_KEY)
    if text is None:
        return None
    config = parse_object(text, f"The metadata of {file}")
    return {name.removeprefix("transformer."): value for name, value in config.items()}


def _config_beside(file: Path) -> dict[str, Any] | None:
    for name in CONFIG_FILES:
        if (file.parent / name).is_file():
            return read_object(file.parent / name)
    return None
