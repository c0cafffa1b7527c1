"""What holds for the whole suite: no network, few threads, no test that hears of another's `--quiet`.

Also which tests stay together where several processes share them (`-n`).
"""

import gc
import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

# Read by the libraries when they are first imported, so before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
# The tiny models gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")


TOGETHER = {
    "the running servers": ("tests/server/",),
    "the toy system": tuple(
        f"tests/demo/test_{name}.py"
        for name in (
            *("caption_reading", "demo_command", "drawn_sets", "examination"),
            *("network_training", "recipe", "tokenizers"),
        )
    ),
}
"""Files by what they share, which is set up once in a process."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay together, and all that ask the same running servers: what they share is costly to set up."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((name for name, files in TOGETHER.items() if file.startswith(files)), file)

    return Together(config, log)


def pytest_collection_finish() -> None:
    """What is imported by now stays: collections look at what comes after. They took a tenth of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_is_quiet() -> Iterator[None]:
    """The command line sets log levels and bars of its process, which here is everybody's."""
    for name in ("kandinsky5", "kandinsky5.conditioning"):
        logging.getLogger(name).setLevel(logging.NOTSET)
    if "huggingface_hub" in sys.modules:
        from huggingface_hub.utils import enable_progress_bars

        enable_progress_bars()
    yield


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts are written out in 24 tokens of this process, not 256."""
    from kandinsky5.expansion import expand

    monkeypatch.setattr("kandinsky5.pipelines.drawing.expand", partial(expand, most_tokens=24))
