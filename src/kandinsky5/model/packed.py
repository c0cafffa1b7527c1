"""Weights that torchao packed, in a model that runs in another dtype than they were packed from.

Comes in: a loaded model, and its dtype. Goes out: the model, whose packed weights unpack into that dtype; float8
weights would meet its activations in their own. Refuses to know: files, and what the values are.
"""

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def unpack_into(model: nn.Module, dtype: torch.dtype) -> None:
    """Let packed weights unpack into a dtype. No value changes."""
    for layer in model.modules():
        for name, weight in layer._parameters.items():
            if weight is None or not is_traceable_wrapper_subclass(weight.data):
                continue
            packed = weight.data
            names, context = packed.__tensor_flatten__()  # type: ignore[attr-defined]
            if context.get("dtype", dtype) != dtype:
                parts = {part: getattr(packed, part) for part in names}
                rebuilt = type(packed).__tensor_unflatten__(  # type: ignore[attr-defined]
                    parts, {**context, "dtype": dtype}, packed.size(), packed.stride()
                )
                layer._parameters[name] = nn.Parameter(rebuilt, requires_grad=False)
