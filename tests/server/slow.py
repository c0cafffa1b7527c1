"""A worker whose steps take as long as a test wants them to.

In: a folder with an editing model, and a file that may hold a number of seconds. Out: engines. It is opened in the
worker's process, so this file imports little.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky5.cli.opening import open_engines


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
