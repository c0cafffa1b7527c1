"""Tensors that stay in their safetensors files until somebody asks for them.

Comes in: entries of file headers. Goes out: the tensors, mapped from the files, so that they take address space and
page cache but no memory of their own; or that the files are no longer those that were looked at. It refuses to know
what the tensors belong to.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from safetensors import SafetensorError, safe_open
from torch import Tensor

from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class TensorsOnDisk:
    """Tensors by the name their owner has for them, and size and time of change (ns) of their files."""

    tensors: Mapping[str, StoredTensor]
    stamps: Mapping[Path, tuple[int, int]]

    @classmethod
    def of(cls, tensors: Mapping[str, StoredTensor]) -> Self:
        """These tensors, in the files as they are now."""
        found = {name: replace(tensor, file=tensor.file.absolute()) for name, tensor in tensors.items()}
        return cls(tensors=found, stamps={file: _stamp(file) for file in {t.file for t in found.values()}})

    @property
    def nbytes(self) -> int:
        """Bytes they take in the files."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def read(self) -> Iterator[tuple[str, Tensor]]:
        """Each name and its tensor, file by file.

        Raises:
            CheckpointError: a file is gone, or was changed since.
        """
        by_file = defaultdict(list)
        for name, tensor in self.tensors.items():
            by_file[tensor.file].append(name)
        for file in by_file:
            if _stamp(file) != self.stamps[file]:
                raise CheckpointError(
                    f"{file} was changed since the model was loaded, and what was left in it is no longer there; "
                    "load the model again."
                )
        for file, names in by_file.items():
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in names:
                        yield name, opened.get_tensor(self.tensors[name].name)
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file} cannot be read: {error}.") from error


def _stamp(file: Path) -> tuple[int, int]:
    try:
        status = file.stat()  # of the blob behind a link, in a cache
    except OSError as error:
        raise CheckpointError(
            f"{file} is gone, and with it what was left in it when the model was loaded ({error.strerror}); put it "
            "back, or load the model from another folder."
        ) from error
    return status.st_size, status.st_mtime_ns
