"""How others call the tensors of an adapter, and which layer and part of it that is.

Comes in: a name out of a file of diffusers, peft, ComfyUI, kohya or the authors' trainer. Goes out: the layer's name in
the network, and the part. ComfyUI and the authors build the network under the same names as the published checkpoints,
so only what stands around a layer's name differs. Nothing here knows tensors or networks.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

PREFIXES: Final = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "dit.")
"""peft's and the authors', ComfyUI's twice, diffusers', and the authors' name of the network."""

KOHYA_PREFIXES: Final = ("lora_unet_", "lora_transformer_", "lycoris_")
"""Of names whose dots became underscores."""

_PARTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        r"\.lora_A(\.\w+)?\.weight": "A",
        r"\.lora_B(\.\w+)?\.weight": "B",
        r"\.lora_down\.weight": "A",
        r"\.lora_up\.weight": "B",
        r"[._]lora\.down\.weight": "A",
        r"[._]lora\.up\.weight": "B",
        r"\.lora_magnitude_vector(\.\w+)?(\.weight)?": "magnitude",
        r"\.dora_scale": "magnitude",
        r"\.lokr_(?P<lokr>w[12](_[ab])?)(\.\w+)?": "",
        r"\.alpha": "alpha",
    }
)
_SUFFIX: Final = re.compile(
    "(?P<layer>.+?)(?:" + "|".join(f"(?P<p{i}>{pattern})" for i, pattern in enumerate(_PARTS)) + ")"
)

_MODULATION: Final = "(?:text|visual)_modulation|modulation"
_LEAVES: Final = "to_query|to_key|to_value|in_layer|out_layer"
_KOHYA_LAYER: Final = re.compile(
    rf"(?P<blocks>(?:text|visual)_transformer_blocks)_(?P<index>\d+)_"
    rf"(?P<part>self_attention|cross_attention|feed_forward|{_MODULATION})_(?P<leaf>{_LEAVES})"
)
_KOHYA_ENDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        name.replace(".", "_"): name
        for name in (
            "time_embeddings.in_layer",
            "time_embeddings.out_layer",
            "text_embeddings.in_layer",
            "pooled_text_embeddings.in_layer",
            "visual_embeddings.in_layer",
            "out_layer.modulation.out_layer",
            "out_layer.out_layer",
        )
    }
)


def split_name(name: str) -> tuple[str, str] | None:
    """(layer, part) of a tensor's name; None for a name that is none of an adapter's that are known here.

    Parts are those of `record`, and "alpha". A layer that the network does not have keeps the name it had.
    """
    match = _SUFFIX.fullmatch(name)
    if match is None:
        return None
    pattern = next(i for i in range(len(_PARTS)) if match[f"p{i}"] is not None)
    part = match["lokr"] or list(_PARTS.values())[pattern]
    return _layer(match["layer"]), part


def _layer(name: str) -> str:
    for prefix in KOHYA_PREFIXES:
        if name.startswith(prefix):
            return _from_kohya(name.removeprefix(prefix))
    while name.startswith(PREFIXES):
        name = next(name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix))
    return name


def _from_kohya(name: str) -> str:
    """A layer whose dots became underscores; only the network's own layers can be told."""
    if match := _KOHYA_LAYER.fullmatch(name):
        return f"{match['blocks']}.{match['index']}.{match['part']}.{match['leaf']}"
    return _KOHYA_ENDS.get(name, name)
