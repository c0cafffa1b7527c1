"""Whether a pipeline's components can be written as they are in memory.

Comes in: components by name. Goes out: nothing, or a RequestError that says what would work; and those that the index
does not know of yet. How they are written is the libraries' affair, and where `staging`'s.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from kandinsky5.errors import RequestError
from kandinsky5.pipelines.quantization import is_packed_in_memory


def check_savable(components: Mapping[str, Any]) -> None:
    """Refuse models that are not whole in one place, packed without a library that knows of it, or wear adapters."""
    for name, part in components.items():
        if isinstance(part, nn.Module) and _has_adapters(part):
            raise RequestError(
                f"Adapters stand around layers of {name!r}, which would be saved under names that nothing loads: put "
                "them into the weights with fuse_lora(), if they are to be saved, and call unload_lora_weights() then."
            )
        if isinstance(part, nn.Module) and any(parameter.is_meta for parameter in part.parameters()):
            raise RequestError(
                f"Layers of {name!r} are offloaded one by one and not in one place to be saved from: call "
                "remove_all_hooks() first."
            )
        if isinstance(part, nn.Module) and is_packed_in_memory(part):
            raise RequestError(
                f"{name!r} was packed in memory (memory=, a float8 mode, layerwise casting), which no library would "
                "know in a folder: save a pipeline loaded without. `kandinsky5 quantize` writes a packed folder."
            )


def joined_later(components: Mapping[str, Any], index: Mapping[str, Any]) -> dict[str, Any]:
    """Components that were None when they were registered, whose entries diffusers leaves as they were."""
    return {name: part for name, part in components.items() if part is not None and index[name][0] is None}


def _has_adapters(model: nn.Module) -> bool:
    """Whether peft has put layers of its own around the model's, which are "base_layer" inside."""
    return any(name.endswith(".base_layer") for name, _ in model.named_modules())
