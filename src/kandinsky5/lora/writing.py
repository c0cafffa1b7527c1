"""An adapter as a file that others load: in diffusers' and peft's names, or in ComfyUI's.

Comes in: a `Lora` and a path. Goes out: one safetensors file, whole or not there. It refuses to know how an adapter
came about.
"""

import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, tensor

from kandinsky5.checkpoint.document import reason
from kandinsky5.errors import CheckpointError
from kandinsky5.lora.peft_form import peft_config, peft_tensors
from kandinsky5.lora.reading import METADATA_KEY
from kandinsky5.lora.record import Lora


class LoraFormat(StrEnum):
    """Whose names a file's tensors have."""

    diffusers = "diffusers"
    comfyui = "comfyui"


_COMFYUI_PARTS = {"A": "lora_down.weight", "B": "lora_up.weight", "magnitude": "dora_scale"}


def comfyui_tensors(lora: Lora) -> dict[str, Tensor]:
    """The tensors by ComfyUI's names, with alphas among them, so that they say all there is."""
    if lora.kind == "lokr":
        return {f"diffusion_model.{name}": value for name, value in peft_tensors(lora).items()}
    named: dict[str, Tensor] = {}
    for layer, parts in lora.layers.items():
        for part, value in parts.items():
            shaped = value[:, None] if part == "magnitude" else value
            named[f"diffusion_model.{layer}.{_COMFYUI_PARTS[part]}"] = shaped
        named[f"diffusion_model.{layer}.alpha"] = tensor(float(lora.scales[layer] * lora.rank(layer)))
    return named


def write_lora(lora: Lora, path: Path, form: LoraFormat, *, about: Mapping[str, str] | None = None) -> None:
    """Write the adapter; the file appears when it is whole.

    Args:
        lora: the adapter.
        path: of the file, ending in .safetensors; one that is there is replaced.
        form: whose names its tensors get.
        about: more metadata of the file.

    Raises:
        CheckpointError: it cannot be written (disk full, no permission).
    """
    metadata = {"format": "pt", **(about or {})}
    if lora.trigger:
        metadata["trigger"] = lora.trigger
    config = peft_config(lora)
    if form is LoraFormat.diffusers and config is not None:
        metadata[METADATA_KEY] = json.dumps({f"transformer.{name}": value for name, value in config.items()})
    if form is LoraFormat.diffusers:
        named = {f"transformer.{name}": value for name, value in peft_tensors(lora).items()}
    else:
        named = comfyui_tensors(lora)
    tensors = {name: value.detach().to("cpu").contiguous().clone() for name, value in named.items()}
    partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, partial, metadata=metadata)
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {reason(error)}") from error
    finally:
        with suppress(OSError):
            partial.unlink()
