"""Which modules of a component come and go together, and in which order they are used.

Comes in: a component's name and the component, with or without values. Goes out: its groups of units; one truth for
the sizes that are planned with and for what is placed. Refuses to know: where anything is put.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, kw_only=True)
class Place:
    """A module that can be a unit: its path in the component, itself, and what of it is a unit of its own."""

    path: str
    module: nn.Module
    without: tuple[nn.Module, ...] = ()


def groups_of(component: str, model: nn.Module) -> Mapping[str, Sequence[Place]]:
    """The groups of a component, each in the order of use; empty for the autoencoder, which stays."""
    if component == "transformer":
        return {
            "blocks": [
                Place(path=path, module=block, without=(block.get_submodule("visual_modulation"),))
                for path, block in _numbered(model, "visual_transformer_blocks")
            ],
            "modulation": [
                Place(path=f"{path}.visual_modulation", module=block.get_submodule("visual_modulation"))
                for path, block in _numbered(model, "visual_transformer_blocks")
            ],
            "text": [Place(path=p, module=m) for p, m in _numbered(model, "text_transformer_blocks")],
        }
    if component == "text_encoder":
        found = {"layers": _numbered(model, "model.language_model.layers")}
        if isinstance(getattr(model.get_submodule("model.visual"), "blocks", None), nn.ModuleList):
            found["vision"] = _numbered(model, "model.visual.blocks")
        return {group: [Place(path=p, module=m) for p, m in places] for group, places in found.items()}
    if component == "text_encoder_2":
        return {"whole": [Place(path="", module=model)]}
    return {}


def table_of(component: str, model: nn.Module) -> nn.Module | None:
    """A table of vectors of which only a few are looked up; none where the encoder's head multiplies by all of them."""
    if component != "text_encoder":
        return None
    table, head = model.get_submodule("model.language_model.embed_tokens"), model.get_submodule("lm_head")
    return None if getattr(head, "weight", None) is table.weight else table


def _numbered(model: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    modules = model.get_submodule(path)
    assert isinstance(modules, nn.ModuleList)
    return [(f"{path}.{i}", module) for i, module in enumerate(modules)]
