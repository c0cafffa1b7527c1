"""How a command imports torch and the libraries around it: without searches for garbage meanwhile, and quietly.

What is imported stays until the process ends, so that Python's collector looks through ever more of it in vain: imports
take 7.3 s of the processor instead of 8.1 (benchmarks/results/2026-11-28-cold-start.json). Refuses to know: what is
imported.
"""

import gc
import logging
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


def quieten_libraries() -> None:
    """No bars and no notes of diffusers and transformers, which would run through ours; `--debug` shows them.

    What is wrong with a request is said by our own errors.
    """
    with collecting_later():
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

    if not logging.getLogger("kandinsky5").isEnabledFor(logging.DEBUG):
        for library in (diffusers_logging, transformers_logging):
            library.set_verbosity_error()
            library.disable_progress_bar()
