"""Where the bytes of units stay: in page-locked host memory, or in the checkpoint's files.

Comes in: units. Goes out: a unit's bytes, or their copy into a run. Refuses to know: devices' slots, and when.
"""

import mmap
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from kandinsky5.checkpoint.finite import is_finite
from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.streaming.freed import give_back
from kandinsky5.streaming.unit import Leaf, Unit

READERS: Final = 4
"""Threads that read a unit's bytes; one thread copies from the page cache at a third of what a link carries."""

READ_BYTES: Final = 32 * 2**20
"""Of one read; a unit is shared out among the readers in these."""

SAMPLE_BYTES: Final = 64
"""Compared of each tensor at every read, to notice what was written to it in memory."""


PRIVATE: Final[dict[str, Any]] = (
    {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
)
"""Memory of this process alone, where the system tells it apart."""


class _Pages(mmap.mmap):
    """Memory of whole pages; `before_unmapping` is called when nobody holds it any more."""

    before_unmapping: Callable[[], Any] | None = None

    def __del__(self) -> None:
        if self.before_unmapping is not None:
            self.before_unmapping()


class HostBytes:
    """Units in host memory, each in one piece, page-locked where the device is one that copies from it.

    The memory is of exactly the size it must have: torch's own page-locked memory comes in powers of two. The units'
    tensors rest in it, so that reading and writing them (saving, fusing adapters) works.
    """

    def __init__(self, units: Sequence[Unit], *, lock: bool):
        self._runs: dict[int, Tensor] = {}
        for unit in units:  # one after the other, so that never more than one is there twice
            run = self._runs[id(unit)] = exact_memory(unit.nbytes, lock=lock)
            for leaf in unit.leaves:
                leaf.view(run).copy_(leaf.tensor)
            unit.rest_in(run)
            give_back()  # what the tensors were before

    def run(self, unit: Unit) -> Tensor:
        """(nbytes,) uint8 of a unit that rests, with the values that its tensors have by now."""
        run = self._runs[id(unit)]
        changed = [(leaf, now) for leaf, now in unit.at_rest() if now.data_ptr() != leaf.tensor.data_ptr()]
        for leaf, now in changed:
            leaf.view(run).copy_(now)
        if changed:
            unit.rest_in(run)
        return run


class FileBytes:
    """Units in safetensors files, read anew each time they are used.

    Args:
        stored: for each unit its tensors as they are in the files, by their name in the unit. What a library packed is
            not read this way.

    Raises:
        RequestError: a tensor that is stored in another dtype or shape than it has in memory.
    """

    def __init__(self, stored: Mapping[Unit, Mapping[str, StoredTensor]]):
        if not hasattr(os, "preadv"):
            raise RequestError("This system has no preadv, with which weights are read from disk each time.")
        self._places: dict[int, list[tuple[Leaf, StoredTensor]]] = {}
        for unit, tensors in stored.items():
            self._places[id(unit)] = [
                (leaf, _same(leaf, tensors.get(leaf.name), unit)) for leaf in unit.leaves
            ]
        files = {place.file for places in self._places.values() for _, place in places}
        self._files = {file: _opened(file) for file in files}
        self._pool = ThreadPoolExecutor(READERS, thread_name_prefix="weights")
        self._seen: set[int] = set()
        weakref.finalize(self, _close, list(self._files.values()), self._pool)

    def read(self, unit: Unit, run: Tensor) -> None:
        """Put a unit's bytes into a run (at least `unit.nbytes`,) uint8 in host memory.

        The first time, the values must be finite, since nobody looked at them when the model was loaded.

        Raises:
            CheckpointError: a file that ends early, cannot be read, or holds values that are no numbers.
            RequestError: the tensors were written to in memory, which files do not know.
        """
        target = memoryview(run.numpy().data)
        jobs = []
        for leaf, place in self._places[id(unit)]:
            for at in range(0, leaf.nbytes, READ_BYTES):
                size = min(READ_BYTES, leaf.nbytes - at)
                part = target[leaf.start + at : leaf.start + at + size]
                jobs.append(self._pool.submit(_read, self._files[place.file], part, place.start + at, place))
        wait(jobs)  # also where one fails: nobody writes to the run any more
        for job in jobs:
            job.result()
        self._check(unit, run)

    def _check(self, unit: Unit, run: Tensor) -> None:
        first = id(unit) not in self._seen
        for (leaf, place), (_, now) in zip(self._places[id(unit)], unit.at_rest(), strict=True):
            values = leaf.view(run)
            if first and not is_finite(values):
                raise CheckpointError(
                    f"Tensor {place.name!r} in {place.file} has values that are not finite (NaN or infinity). Fetch it "
                    "again."
                )
            if not torch.equal(_sample(now), _sample(values)):
                raise RequestError(
                    f"Tensor {leaf.name!r} of {unit.name} was changed in memory (a fused adapter, say), but this plan "
                    f"reads it from {place.file.name} each time it is used; load the pipeline with more memory."
                )
        self._seen.add(id(unit))


def exact_memory(size: int, *, lock: bool) -> Tensor:
    """(size,) uint8 of host memory that begins at a page; page-locked for CUDA if `lock`, until it is let go.

    Raises:
        torch.OutOfMemoryError: the system does not have or does not lock so much.
    """
    try:
        held = _Pages(-1, max(size, 1), **PRIVATE)
    except OSError as error:
        raise torch.OutOfMemoryError(f"The system has no {size / 1e9:.1f} GB of host memory.") from error
    memory = torch.frombuffer(held, dtype=torch.uint8, count=max(size, 1))
    if lock:
        cudart: Any = torch.cuda.cudart()
        if int(cudart.cudaHostRegister(memory.data_ptr(), len(memory), 0)) != 0:
            raise torch.OutOfMemoryError(
                f"The system locks no {size / 1e9:.1f} GB of host memory for the device."
            )
        address = memory.data_ptr()
        held.before_unmapping = lambda: cudart.cudaHostUnregister(address)
    return memory[:size]


def _same(leaf: Leaf, place: StoredTensor | None, unit: Unit) -> StoredTensor:
    if (
        place is None
        or leaf.part is not None
        or place.nbytes != leaf.nbytes
        or place.shape != leaf.tensor.shape
    ):
        raise RequestError(
            f"Tensor {leaf.name!r} of {unit.name} is not in the files as it is in memory, so it cannot be read from "
            "there each time."
        )
    return place


def _sample(values: Tensor) -> Tensor:
    return values.reshape(-1)[: SAMPLE_BYTES // values.element_size()].view(torch.uint8)


def _opened(file: Path) -> int:
    try:
        return os.open(file, os.O_RDONLY)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error


def _read(opened: int, target: memoryview, start: int, place: StoredTensor) -> None:
    done = 0
    while done < len(target):
        try:
            count = os.preadv(opened, [target[done:]], start + done)
        except OSError as error:
            raise CheckpointError(f"{place.file} cannot be read: {error}.") from error
        if count == 0:
            raise CheckpointError(f"{place.file} was cut off while it was in use; load the model again.")
        done += count


def _close(files: Sequence[int], pool: ThreadPoolExecutor) -> None:
    pool.shutdown(wait=True)
    for file in files:
        os.close(file)
