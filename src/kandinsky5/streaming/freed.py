"""What was let go of, given back to the system.

The C library keeps pieces below its threshold (up to 32 MB, so most packed weights) for its own later use when they
are freed, unless they are the last of its heap. Comes in: nothing. Goes out: nothing. Refuses to know: what was freed.
"""

import ctypes
import sys
from functools import cache
from typing import Any


def give_back() -> None:
    """Whole pages that nobody uses go back to the system, where the C library has a call for it (glibc)."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
