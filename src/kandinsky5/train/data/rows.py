"""A micro-batch as tensors, read from the cache while the one before is computed.

In: picks, and the rows they name. Out: latents, sources and texts on the CPU, with the seed of each row's chance. It
refuses to know devices, times and noise.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from kandinsky5.errors import CheckpointError
from kandinsky5.records import Conditioning
from kandinsky5.train.data.cache import TensorCache
from kandinsky5.train.data.encoding import Learnable
from kandinsky5.train.data.order import MicroBatch

AHEAD = 2
"""Micro-batches read before they are wanted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """B rows of one size.

    mean, deviation: (B, 1, h, w, C) of the latents. source_mean, source_deviation: the same of the sources of edits.
    conditioning: of the B texts. seeds: what each row's times and noise start from.
    """

    mean: Tensor
    deviation: Tensor
    source_mean: Tensor | None
    source_deviation: Tensor | None
    conditioning: Conditioning
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.mean)


class RowReader:
    """Reads micro-batches of these rows from the cache. Words are left out of a share of them."""

    def __init__(self, rows: Sequence[Learnable], cache: TensorCache, *, unconditional: float, seed: int):
        self._rows = rows
        self._cache = cache
        self._unconditional = unconditional
        self._seed = seed

    def read(self, picks: MicroBatch, first: int) -> Rows:
        """The tensors of a micro-batch whose first row has the number `first` in the run."""
        seeds = tuple(_seed(self._seed, first + i) for i in range(len(picks)))
        rows = [self._rows[pick.row] for pick in picks]
        texts = [
            row.empty if (seed % 2**20) / 2**20 < self._unconditional else row.texts[pick.text]
            for row, pick, seed in zip(rows, picks, seeds, strict=True)
        ]
        pictures = [self._entry(row.picture) for row in rows]
        sources = [self._entry(row.source) for row in rows if row.source is not None]
        words = [self._entry(key) for key in texts]
        return Rows(
            mean=torch.stack([entry["mean"] for entry in pictures]),
            deviation=torch.stack([entry["deviation"] for entry in pictures]),
            source_mean=torch.stack([entry["mean"] for entry in sources]) if sources else None,
            source_deviation=torch.stack([entry["deviation"] for entry in sources]) if sources else None,
            conditioning=Conditioning.stack([conditioning_of(entry) for entry in words]),
            seeds=seeds,
        )

    def stream(self, batches: Iterable[tuple[MicroBatch, int]]) -> Iterator[Rows]:
        """`read` of each, some read ahead."""
        waiting: list[Future[Rows]] = []
        with ThreadPoolExecutor(AHEAD) as threads:
            for picks, first in batches:
                waiting.append(threads.submit(self.read, picks, first))
                if len(waiting) > AHEAD:
                    yield waiting.pop(0).result()
            for future in waiting:
                yield future.result()

    def _entry(self, key: str) -> dict[str, Tensor]:
        entry = self._cache.get(key)
        if entry is None:
            raise CheckpointError(
                f"{self._cache.path(key)} is gone or damaged; start the run again, which encodes it anew and goes on."
            )
        return entry


def conditioning_of(entry: dict[str, Tensor]) -> Conditioning:
    """A text's entry of the cache as one row."""
    text = entry["text"][None]
    return Conditioning(
        text=text, mask=torch.ones(text.shape[:2], dtype=torch.bool), pooled=entry["pooled"][None]
    )


def _seed(seed: int, number: int) -> int:
    """63 bits that depend on both, and on nothing else."""
    return int.from_bytes(hashlib.sha256(f"row {number} of {seed}".encode()).digest()[:8], "big") >> 1
