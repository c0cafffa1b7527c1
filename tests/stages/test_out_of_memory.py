"""Errors that say that memory ended, and those that do not."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from kandinsky5.errors import CapacityError
from kandinsky5.out_of_memory import is_out_of_memory
from kandinsky5.pipelines.room import planned


def raised(function) -> BaseException:
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        function()
    return caught.value


def test_those_of_this_machine():
    assert is_out_of_memory(raised(lambda: torch.empty(2**50, dtype=torch.uint8)))
    assert is_out_of_memory(raised(lambda: np.empty(2**50, dtype=np.uint8)))
    assert not is_out_of_memory(raised(lambda: torch.zeros(2) @ torch.zeros(3)))


@pytest.mark.parametrize(("error", "expected"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."), True),
    (MemoryError(), True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"), True),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
    (RuntimeError("CUDA error: out of memory"), True),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    (CapacityError("8 requests are waiting"), False),
    (ValueError("out of range"), False),
])  # fmt: skip
def test_those_of_other_machines(error, expected):
    assert is_out_of_memory(error) is expected


def test_against_a_plan_they_are_a_lack_of_room_and_others_are_not():
    plan = SimpleNamespace(device="cpu")
    with pytest.raises(CapacityError, match="Memory ended although"), planned(plan):
        torch.empty(2**50, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="a bug") as caught, planned(plan):
        raise RuntimeError("a bug")
    assert not isinstance(caught.value, CapacityError)
