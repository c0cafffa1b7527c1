"""What holds for the whole suite: no network, few threads, and no test that hears of another's `--quiet`."""

import logging
import os
import sys
from collections.abc import Iterator
from functools import partial

import pytest

# Read by the libraries when they are first imported, so before any test module is.
os.environ["HF_HUB_OFFLINE"] = "1"
# The tiny models gain nothing from more.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
