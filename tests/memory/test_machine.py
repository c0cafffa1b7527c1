"""What may be planned with: the least of what is free and of what was asked for."""

import pytest
import torch

from kandinsky5.budget import Budget
from kandinsky5.errors import RequestError
from kandinsky5.memory import machine, this_machine

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def free(monkeypatch):
    """`free(cpu=..., cuda=...)`: what the system says is free; of CUDA's speeds nothing is measured."""
    monkeypatch.setattr(machine, "anonymous_bytes", lambda: 0)
    monkeypatch.setattr(machine, "_speeds", lambda *_: (25e9, 1e14))

    def says(**amounts):
        monkeypatch.setattr(machine, "free_memory", lambda device: amounts[device.type])

    return says


def test_on_the_cpu_both_bounds_are_of_the_same_memory(free):
    free(cpu=32 * 10**9)
    for words in ("8GB", "auto:8GB", "12GB:8GB", "8GB:12GB"):
        assert this_machine(CPU, torch.bfloat16, Budget.of(words)).device_bytes == 76 * 10**8


def test_a_budget_says_what_the_system_does_not(free):
    """MacOS and Windows tell nothing of the host."""
    free(cpu=None, cuda=24 * 10**9)
    assert this_machine(CPU, torch.bfloat16, Budget.of("8GB")).device_bytes == 76 * 10**8
    found = this_machine(CUDA, torch.bfloat16, Budget.of("8GB:16GB"))
    assert found.device_bytes == int(7.15e9 * 0.97) and found.host_bytes == 145 * 10**8
    for device, words in ((CPU, "auto"), (CUDA, "8GB")):
        with pytest.raises(RequestError, match=r"does not say how much memory is free; name it.*8GB:16GB"):
            this_machine(device, torch.bfloat16, Budget.of(words))
