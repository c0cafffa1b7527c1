"""What a plan asks of a running call: slots given back between the stages, and words for a device that is full.

Comes in: a plan, components, an error. Goes out: room, or a CapacityError. Refuses to know: how plans are made.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from kandinsky5.errors import CapacityError
from kandinsky5.out_of_memory import is_out_of_memory
from kandinsky5.streaming import release


def leave(plan: Any, component: nn.Module | None) -> None:
    """Give back what a component that is used no more holds of the device for a while."""
    if plan is None or component is None:
        return
    release(component)
    if torch.device(plan.device).type == "cuda":
        torch.cuda.empty_cache()


@contextmanager
def planned(plan: Any) -> Iterator[None]:
    """Running out of memory against a plan, as a CapacityError with the plan and the peak."""
    if plan is None:
        yield
        return
    device = torch.device(plan.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
        reached = f" {peak / 1e9:.1f} GB were reached." if peak else ""
        raise CapacityError(
            f"Memory ended although the plan said it would do ({plan}).{reached} Ask for a smaller picture or fewer at "
            "a time, or load the model with a smaller memory= (--memory)."
        ) from error
