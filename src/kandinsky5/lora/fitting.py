"""Whether a network can take an adapter, said in words before anything of it is changed.

Comes in: an adapter and a network. Goes out: nothing, or a `CheckpointError` that says which layers or shapes do not
fit and what that means. It refuses to know files and peft.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kandinsky5.errors import CheckpointError
from kandinsky5.lora.record import Lora


def check_fits(lora: Lora, network: nn.Module) -> None:
    """Refuse an adapter of another model.

    Raises:
        CheckpointError: layers that the network does not have, or other widths than its layers'.
    """
    modules = dict(network.named_modules())
    strangers = [layer for layer in lora.layers if not _is_linear(_base(modules, layer))]
    if strangers:
        others = "all of them are" if len(strangers) == len(lora.layers) else "they are"
        raise CheckpointError(
            f"{lora.source} does not fit this network: {len(strangers)} of its {len(lora.layers)} layers, the first "
            f"{strangers[0]!r:.120}, are none of the network's; {others} of another model, or of another version."
        )
    for layer, parts in lora.layers.items():
        base = _base(modules, layer)
        wanted, found = (base.out_features, base.in_features), _shape(parts)
        if found != wanted:
            raise CheckpointError(
                f"{lora.source} does not fit this network: its layer {layer} is made for {found[1]} channels in and "
                f"{found[0]} out, the network's has {wanted[1]} and {wanted[0]}. It is of a model of another size."
            )
        if "magnitude" in parts and len(parts["magnitude"]) != wanted[0]:
            raise CheckpointError(
                f"{lora.source}: the magnitude of {layer} has {len(parts['magnitude'])} values for {wanted[0]} "
                "channels."
            )


def _base(modules: Mapping[str, nn.Module], layer: str) -> Any:
    """The network's own layer of that name, also where adapters stand around it already; None if it has none."""
    return modules.get(f"{layer}.base_layer", modules.get(layer))


def _is_linear(module: Any) -> bool:
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def _shape(parts: Mapping[str, Tensor]) -> tuple[int, int]:
    """(out, in) of the layer that these parts change."""
    if "A" in parts:
        return len(parts["B"]), parts["A"].shape[1]
    rows, columns = 1, 1
    for w in ("w1", "w2"):
        first, last = (parts[w], parts[w]) if w in parts else (parts[f"{w}_a"], parts[f"{w}_b"])
        rows, columns = rows * len(first), columns * last.shape[-1]
    return rows, columns
