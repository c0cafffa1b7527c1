"""Matrix products of one layer, or of several that read the same rows, as one.

Comes in: layers, and rows of token states or float8. Goes out: their results. Layers that lie behind each other in
memory (`lay_together`) are multiplied in one product: no byte more, no name changed, and whoever loads, saves, merges
an adapter or counts sees the layers it knows. What moves them apart again (an offload, a cast) costs speed, not the
result: `joined` then finds that they are apart. Refuses to know: what the layers are for.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kandinsky5.model.kernels import Rows
from kandinsky5.model.scaled import ScaledLinear, ScaledRows, scaled_product

STACKED = ("weight", "bias", "scale")
"""Tensors of a layer whose first dimension is its outputs."""


def lay_together(layers: Sequence[nn.Module]) -> None:
    """Put the layers' weights into one storage, in their order, each with the values it had.

    Layers that are not all `nn.Linear` or all `ScaledLinear` are left as they are.
    """
    if not _are_plain(layers):
        return
    for name in STACKED:
        parts = [getattr(layer, name, None) for layer in layers]
        tensors = [part for part in parts if part is not None]
        if len(tensors) != len(layers) or joined(tensors) is not None:
            continue
        whole = torch.cat([tensor.detach().view(_carrier(tensor)) for tensor in tensors])
        pieces = whole.view(tensors[0].dtype).split([len(tensor) for tensor in tensors])
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.data = piece


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """The tensors as one, along their first dimension, if they lie behind each other in one storage; else None."""
    first = tensors[0]
    expected = first.storage_offset()
    for tensor in tensors:
        together = (
            tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
            and tensor.storage_offset() == expected
            and tensor.is_contiguous()
            and tensor.dtype == first.dtype
            and tensor.shape[1:] == first.shape[1:]
        )
        if not together:
            return None
        expected += tensor.numel()
    shape = (sum(len(tensor) for tensor in tensors), *first.shape[1:])
    return first.detach().as_strided(shape, first.stride(), first.storage_offset())


def read_float8(layers: Sequence[nn.Module]) -> bool:
    """Whether all of the layers want their rows in float8."""
    return all(type(layer) is ScaledLinear for layer in layers)


def product(layer: nn.Module, rows: Rows) -> Tensor:
    """(..., in) -> (..., out). Float8 rows are for layers that `read_float8`; others are called as they are."""
    if isinstance(rows, ScaledRows):
        assert isinstance(layer, ScaledLinear)
        return layer.multiply(rows)
    return layer(rows)


def products(layers: Sequence[nn.Module], rows: Rows) -> Sequence[Tensor]:
    """`product` of each layer with the same rows; views of one result where the layers lie together."""
    whole = [_joined_parts(layers, name) for name in STACKED] if _are_plain(layers) else [None]
    weight = whole[0]
    if weight is None or len({layer.out_features for layer in layers}) > 1:
        return [product(layer, rows) for layer in layers]
    _, bias, scale = whole
    if bias is None and layers[0].bias is not None:
        return [product(layer, rows) for layer in layers]
    if isinstance(rows, ScaledRows):
        assert scale is not None
        return scaled_product(rows, weight, scale, bias).chunk(len(layers), dim=-1)
    if scale is not None:
        return [product(layer, rows) for layer in layers]
    return F.linear(rows, weight, bias).chunk(len(layers), dim=-1)


def _joined_parts(layers: Sequence[nn.Module], name: str) -> Tensor | None:
    parts = [getattr(layer, name, None) for layer in layers]
    tensors = [part for part in parts if part is not None]
    return joined(tensors) if len(tensors) == len(layers) else None


def _are_plain(layers: Sequence[nn.Module]) -> bool:
    """Whether nobody changed what calling the layers does: no adapter, no hook, no packed weights."""
    kind = type(layers[0])
    return kind in (nn.Linear, ScaledLinear) and all(
        type(layer) is kind
        and type(layer.weight) in (Tensor, nn.Parameter)
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and "forward" not in vars(layer)
        for layer in layers
    )


def _carrier(tensor: Tensor) -> torch.dtype:
    """A dtype of the same size that can be concatenated everywhere; float8 cannot."""
    return torch.uint8 if tensor.element_size() == 1 else tensor.dtype
