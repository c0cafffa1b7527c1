"""What a person watches while bytes are fetched and checked: two bars on standard error.

In: how many bytes there are to fetch and to check, and counts as they pass. Out: nothing but the bars. Refuses to know:
files, hubs and pipelines. One piece serves `from_pretrained` and the command line.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

from huggingface_hub.utils import are_progress_bars_disabled

logger = logging.getLogger(__name__)

Counted = Literal["fetched", "checked", "waiting"]

FetchedBytes = Callable[[Counted, int], None]
"""Called from several threads with the bytes that were fetched or checked since the last call (negative: again), and
with 1 for a file that another process is fetching, -1 when it is waited for no more. What it raises ends the fetch."""

Watch = Callable[[int, int], AbstractContextManager[FetchedBytes]]
"""(bytes to fetch, bytes to check) -> what is told of them, for as long as the fetch takes."""


@contextmanager
def unseen(to_fetch: int, to_check: int) -> Iterator[FetchedBytes]:
    """Shows nothing."""
    yield lambda what, count: None


def _only_waiting(what: Counted, count: int) -> None:
    """A line where there is no bar: nothing moves meanwhile."""
    if what == "waiting" and count > 0 and not are_progress_bars_disabled():
        logger.warning("Another process is fetching the same file; waiting for it.")


@contextmanager
def bars(to_fetch: int, to_check: int) -> Iterator[FetchedBytes]:
    """Bars with speed and an estimate; nothing where standard error is no terminal, where there is nothing to do, and
    where `huggingface_hub` was told to show none (HF_HUB_DISABLE_PROGRESS_BARS).
    """
    if not sys.stderr.isatty() or are_progress_bars_disabled() or not to_fetch + to_check:
        yield _only_waiting
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
    from rich.progress import TimeRemainingColumn as EstimateColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        EstimateColumn(),
    )
    lock = threading.Lock()
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks = {
            "fetched": shown.add_task("fetching", total=to_fetch, visible=to_fetch > 0),
            "checked": shown.add_task("checking", total=to_check),
        }

        waited_for = 0

        def on_bytes(what: Counted, count: int) -> None:
            nonlocal waited_for
            with lock:
                if what != "waiting":
                    shown.advance(tasks[what], count)
                    return
                waited_for += count
                others = f" ({waited_for} by another process)" if waited_for else ""
                shown.update(tasks["fetched"], description=f"fetching{others}", visible=True)

        yield on_bytes
