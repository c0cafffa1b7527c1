"""The table of tensors at the start of a safetensors file, checked against the file's own length.

Comes in: a path. Goes out: name -> dtype and shape. No tensor is read. The rules are those of the format
(https://huggingface.co/docs/safetensors, "Format"): 8 bytes of header length, a JSON object, then tensors without holes
or overlaps up to the end of the file.
"""

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kandinsky5.checkpoint.document import parse_object
from kandinsky5.errors import CheckpointError

MAX_HEADER_BYTES = 16 * 2**20
"""The format allows 100 MB; the published checkpoints' longest header is below 1 MB."""

MAX_DIMENSIONS = 8

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits an element, by the format's name of a dtype."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor that has not been read: its name in the file, the format's name of its dtype, its shape, its file.

    start: its first byte in the file.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Name -> tensor, for a whole and well-formed safetensors file.

    Raises:
        CheckpointError: naming the file, and the tensor where one is at fault.
    """
    try:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing.")
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            _check_length(file, size, length)
            raw = opened.read(length)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"The header of {file} is damaged: {error}.") from error
    entries = parse_object(text, f"The header of {file}")
    if not text.startswith("{"):
        raise CheckpointError(f"The header of {file} does not start with an object.")
    _check_metadata(file, entries.pop("__metadata__", {}))
    tensors, spans = {}, []
    for name, entry in entries.items():
        tensor, span = _tensor(file, name, entry)
        tensors[name] = replace(tensor, start=8 + length + span[0])
        spans.append((*span, name))
    _check_spans(file, sorted(spans), size - 8 - length)
    return tensors


def _check_length(file: Path, size: int, length: int) -> None:
    if size < 8 or length > size - 8:
        raise CheckpointError(
            f"{file} is cut off or no safetensors file: {size} bytes cannot hold the {length} bytes of header that it "
            "announces. Fetch it again."
        )
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{file} announces a header of {length} bytes; at most {MAX_HEADER_BYTES} are read."
        )


def _check_metadata(file: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"The header of {file} has metadata that are not texts.")


def _tensor(file: Path, name: str, entry: Any) -> tuple[StoredTensor, tuple[int, int]]:
    """One entry of the header, and where its bytes start and end."""
    place = f"Tensor {name!r} in {file}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{place} must have dtype, shape and data_offsets.")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise CheckpointError(f"{place} has the unknown dtype {dtype!r}.")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{place} has the impossible shape {str(shape)[:80]}.")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"{place} has the impossible data_offsets {str(offsets)[:80]}.")
    needed = math.prod(shape) * BITS[dtype] // 8
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(
            f"{place}: {dtype} of shape {tuple(shape)} takes {needed} bytes, its data_offsets span "
            f"{offsets[1] - offsets[0]}."
        )
    return StoredTensor(name=name, dtype=dtype, shape=tuple(shape), file=file), (offsets[0], offsets[1])


def _counts(values: Any) -> bool:
    """Whether it is a list of numbers of bytes or elements; `True` and 1.0 are none."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_spans(file: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """Tensors follow each other without holes or overlaps, and end where the file ends."""
    end = 0
    for start, stop, name in spans:
        if stop > size:
            raise CheckpointError(
                f"{file} is cut off: tensor {name!r} ends at byte {stop} of the data, the file has {size}. "
                "Fetch it again."
            )
        if start != end:
            what = "overlaps the tensor before it" if start < end else "leaves a hole before it"
            raise CheckpointError(f"Tensor {name!r} in {file} {what} (byte {start}, expected {end}).")
        end = stop
    if end != size:
        raise CheckpointError(
            f"{file} has {size - end} bytes after its last tensor; it is not what was saved."
        )
