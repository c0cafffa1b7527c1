"""Which of the network's layers are multiplied in float8, and the step there.

Comes in: a network in bfloat16 or float32. Goes out: the same network with those layers replaced by `ScaledLinear`,
half their size; there is no way back but loading it again. Refuses to know: how a float8 product is computed.
"""

from collections.abc import Iterator
from types import MappingProxyType
from typing import Any, Final

from torch import Tensor, nn

from kandinsky5.errors import RequestError
from kandinsky5.model.float8_attention import HeadScales
from kandinsky5.model.scaled import ScaledLinear, is_float8_packed

FLOAT8_LAYERS: Final = (
    "self_attention.to_query",
    "self_attention.to_key",
    "self_attention.to_value",
    "self_attention.out_layer",
    "cross_attention.to_query",
    "cross_attention.out_layer",
    "feed_forward.in_layer",
    "feed_forward.out_layer",
)
"""Of each visual block: all products over visual tokens, 99 % of a forward's linear arithmetic at 1024 x 1024."""

KEPT_LAYERS: Final = MappingProxyType(
    {
        "cross_attention.to_key": "a few hundred text tokens: its time is reading the weights",
        "cross_attention.to_value": "as to_key",
        "text_transformer_blocks": "computed for many steps at once; 1 % of a forward",
        "time_embeddings, pooled_text_embeddings, modulation": "float32 by the checkpoint's arithmetic",
        "text_embeddings, visual_embeddings, out_layer": "the ends of the network: their error reaches every token",
    }
)
"""What stays as it is, and why."""


def float8_layers(network: Any) -> Iterator[tuple[str, nn.Module, str]]:
    """(name in the network, parent, name in the parent) of each layer to be multiplied in float8."""
    for i, block in enumerate(network.visual_transformer_blocks):
        for name in FLOAT8_LAYERS:
            path, _, leaf = name.rpartition(".")
            yield f"visual_transformer_blocks.{i}.{name}", block.get_submodule(path), leaf


def quantise(network: Any) -> None:
    """Replace the layers of `FLOAT8_LAYERS` by float8 ones, one at a time, so that memory only falls.

    A network that is in float8 already is left as it is.

    Raises:
        RequestError: a layer that is not a plain linear one: an adapter that is not fused, or another quantisation.
    """
    found = list(float8_layers(network))
    for name, parent, leaf in found:
        layer = getattr(parent, leaf)
        kind = type(layer)
        packed = kind is nn.Linear and type(layer.weight.data) is not Tensor and not is_float8_packed(layer)
        if kind not in (nn.Linear, ScaledLinear) or packed:
            known = f"packed {kind.__name__}" if packed else kind.__name__
            raise RequestError(
                f"Layer {name} is a {known}, which cannot be made float8: fuse adapters first "
                "(fuse_lora(), then unload_lora_weights()), and load the network without another quantisation."
            )
    for _, parent, leaf in found:
        layer = getattr(parent, leaf)
        if type(layer) is nn.Linear:
            setattr(parent, leaf, ScaledLinear.of(layer))


def scale_heads(network: Any) -> None:
    """Give each self-attention of a quantised network the scales of float8 attention, once."""
    for block in network.visual_transformer_blocks:
        if block.self_attention.head_scales is None:
            block.self_attention.head_scales = HeadScales.of(block.self_attention)
