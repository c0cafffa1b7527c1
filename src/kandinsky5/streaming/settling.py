"""What does not stream: put on the device for good, or looked up where it is.

Comes in: a module, and those of its parts that are somewhere else. Goes out: the module, ready to be called with inputs
on the device. Refuses to know: why a part is where.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def settle(module: nn.Module, device: torch.device, *, without: Collection[nn.Module] = ()) -> None:
    """Put all tensors of a module on a device but those of some of its parts."""
    elsewhere = {id(part) for one in without for part in one.modules()}
    for part in module.modules():
        if id(part) in elsewhere:
            continue
        for name, parameter in part._parameters.items():
            if parameter is None or parameter.device == device:
                continue
            if is_traceable_wrapper_subclass(parameter):
                part._parameters[name] = nn.Parameter(parameter.to(device), requires_grad=False)
            elif hasattr(parameter, "quant_state"):  # bitsandbytes: its scales go along
                part._parameters[name] = parameter.to(device)  # type: ignore[assignment]
            else:
                parameter.data = parameter.data.to(device)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.device != device:
                part._buffers[name] = buffer.to(device)


def look_up_on_host(embedding: nn.Module, device: torch.device) -> None:
    """Leave an embedding's table where it is; what is looked up goes to the device."""

    def before(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(x.cpu() if isinstance(x, Tensor) else x for x in arguments)

    def after(_: nn.Module, __: Any, found: Tensor) -> Tensor:
        return found.to(device)

    embedding.register_forward_pre_hook(before)
    embedding.register_forward_hook(after)
