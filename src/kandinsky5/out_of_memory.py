"""What torch and Python raise where memory ends, on any device.

Comes in: an error. Goes out: whether it says that. Refuses to know: what was being computed, and what would help.
"""

from typing import Final

import torch

WORDS: Final = (
    "can't allocate memory",  # torch on the CPU, which has no class for it
    "DefaultCPUAllocator: not enough memory",  # the same on Windows
    "MPS backend out of memory",
    "CUDA error: out of memory",  # from the driver, past torch's own allocator
)
"""How errors of no class of their own begin or go on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in str(error) for words in WORDS
    )
