"""What a benchmark found so far, within the seconds it was given: printed and written down as it comes.

Comes in: sections, each a name, a guess of its cost and a function that yields rows. Goes out: a table on standard
output, one JSON line a row in a file, and at the end one JSON object. A section that no longer fits is skipped and
listed; one that fails is listed with its error, and the next one runs. Refuses to know: what is measured.
"""

import json
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

Row = Mapping[str, Any]


class Ledger:
    """Rows by section, and the time that is left."""

    def __init__(self, budget: float, file: Path | None, only: Iterable[str] = ()):
        self._end = time.monotonic() + budget
        self._file = file
        self._only = set(only)
        self.rows: dict[str, list[Row]] = {}
        self.skipped: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.seconds: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Seconds."""
        return self._end - time.monotonic()

    def section(self, name: str, cost: float, measure: Callable[[], Iterable[Row]]) -> None:
        """Run one if it is wanted and its cost (seconds, a guess) is left."""
        if self._only and name not in self._only:
            return
        if cost > self.left:
            self.skipped[name] = f"needs some {cost:.0f} s, {self.left:.0f} s were left"
            self._print(f"--- {name}: skipped, {self.skipped[name]}")
            return
        self._print(f"--- {name} ({self.left:.0f} s left)")
        start = time.monotonic()
        try:
            for row in measure():
                self._add(name, row)
        except Exception as error:
            self.errors[name] = f"{type(error).__name__}: {str(error)[:500]}"
            self._print("".join(traceback.format_exc(limit=-6)))
        self.seconds[name] = round(time.monotonic() - start, 1)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def find(self, section: str, **wanted: Any) -> Row | None:
        """The first row of a section with these values."""
        rows = self.rows.get(section, [])
        return next((row for row in rows if all(row.get(k) == v for k, v in wanted.items())), None)

    def summary(self) -> dict[str, Any]:
        """Everything, for the last line."""
        return {
            "sections": self.rows,
            "seconds": self.seconds,
            "skipped": self.skipped,
            "errors": self.errors,
        }

    def _add(self, section: str, row: Row) -> None:
        self.rows.setdefault(section, []).append(row)
        self._print("  " + "  ".join(f"{name}={_short(value)}" for name, value in row.items()))
        if self._file is not None:
            with self._file.open("a") as opened:
                opened.write(json.dumps({"section": section, **row}) + "\n")

    @staticmethod
    def _print(line: str) -> None:
        print(line, flush=True)


def seconds_of(function: Callable[[], Any], device: torch.device) -> float:
    """Of one call, by CUDA events where there are some."""
    if device.type != "cuda":
        start = time.perf_counter()
        function()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def median_seconds(
    function: Callable[[], Any], device: torch.device, repeats: int, warm_ups: int = 1
) -> float:
    """Median of so many calls, after some that are not counted."""
    for _ in range(warm_ups):
        function()
    return statistics.median(seconds_of(function, device) for _ in range(repeats))


def pooled_bytes(device: torch.device) -> int:
    """What CUDA graphs keep for the tensors of their replays, which nobody counts as allocated."""
    if device.type != "cuda":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def peak_gib(device: torch.device) -> float | None:
    """Most memory that tensors took since `reset_peak`; None where nobody counts."""
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2) if device.type == "cuda" else None


def reset_peak(device: torch.device) -> None:
    """Count from here."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return json.dumps(value) if isinstance(value, list | dict) else str(value)
