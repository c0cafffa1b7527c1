"""How a command imports torch and the libraries around it: without searches for garbage meanwhile.

What is imported stays until the process ends, so that Python's collector looks through ever more of it in vain: imports
take 7.3 s of the processor instead of 8.1 (benchmarks/results/2026-11-28-cold-start.json). Refuses to know: what is
imported.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collecting_later() -> Iterator[None]:
    """No collections while heavy modules are imported; afterwards as before."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
