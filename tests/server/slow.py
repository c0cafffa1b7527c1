"""Workers whose steps take as long as a test wants them to, or that hang while they load.

In: a folder with an editing model, and a file that may hold a number of seconds. Out: engines. It is opened in the
worker's process, so this file imports little.
"""

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky5.cli.opening import open_engines
from kandinsky5.errors import CheckpointError


def open_slow(folder: str, seconds: Path) -> Mapping[Any, Any]:
    """The engines of a folder; while the file is there, each forward pass waits that long."""
    engines = open_engines(folder, "cpu", "float32")
    network = engines["editing"].pipeline.transformer
    forward = network.forward

    def slowly(*arguments: Any, **named: Any) -> Any:
        if seconds.exists():
            time.sleep(float(seconds.read_text()))
        return forward(*arguments, **named)

    network.forward = slowly
    return engines


def open_stuck(how: str, once: Path) -> Mapping[Any, Any]:
    """Hangs in that way while the file is there, which it removes; the next time it says that it was asked again."""
    if once.exists():
        once.unlink()
        if how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait()
    raise CheckpointError("asked again")


def open_working(seconds: float) -> Mapping[Any, Any]:
    """Takes that long, now computing, now waiting, and then says that it was left alone."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(100_000))
        time.sleep(0.01)
    raise CheckpointError("left alone")
