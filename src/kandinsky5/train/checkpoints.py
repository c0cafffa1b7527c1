"""Checkpoints of a run: folders of safetensors that any number of processes writes together and any other reads.

In: tensors, whole or this process's pieces of them, and JSON-able values. Out: a folder that is whole or not there.
Each process writes the rows it has; a reader takes the rows it wants from whichever files hold them. A folder appears
by renaming, so a run that is killed, or whose disk is full, keeps the last good one. No pickle. It refuses to know what
the tensors are.
"""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed
from torch.distributed.tensor import DTensor, Shard
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kandinsky5.checkpoint.document import parse_object, read_object, reason
from kandinsky5.errors import CheckpointError

FOLDER: Final = "checkpoints"
"""Where they are in the folder of a run."""

VALUES: Final = "values.json"
_NAME: Final = re.compile(r"step-(\d{7})")


@dataclass(frozen=True, kw_only=True)
class Span:
    """Rows [start, stop) of `total` that a process has of a tensor: all of a whole one, none at all of a number."""

    start: int
    stop: int
    total: int


class Checkpoints:
    """The checkpoints below a folder, of which the newest `keep` stay. `rank` of `count` processes is this one."""

    def __init__(self, folder: Path, *, keep: int, rank: int = 0, count: int = 1):
        self.folder = folder
        self._keep = keep
        self._rank = rank
        self._count = count

    def newest(self) -> Path | None:
        """The newest whole checkpoint, or None."""
        return self._all()[-1] if self._all() else None

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
        """Write a checkpoint with the other processes; older ones than `keep` go once it is there.

        Raises:
            CheckpointError: it cannot be written; the one before stays.
        """
        target = self.folder / f"step-{step:07d}"
        partial = self.folder / f".partial-{step:07d}"
        about = {**values, "count": self._count}

        def begin() -> None:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

        def finish() -> None:
            (partial / VALUES).write_text(json.dumps(about), encoding="utf-8")
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)

        self._together(target, partial, begin if self._rank == 0 else _nothing)
        self._together(target, partial, lambda: self._write_pieces(partial, tensors))
        self._together(target, partial, finish if self._rank == 0 else _nothing)
        if self._rank == 0:
            for old in self._all()[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)
        return target

    def _together(self, target: Path, partial: Path, action: Callable[[], None]) -> None:
        """Do a part of saving in every process; all go on only where all could. Raises CheckpointError in all."""
        problem = ""
        try:
            action()
        except (OSError, SafetensorError) as error:
            problem = reason(error)
        if self._any(bool(problem)):
            if self._rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            last = self.newest()
            kept = f"{last} is still good" if last else "there was none before"
            raise CheckpointError(f"{target} cannot be written ({problem or 'in another process'}); {kept}.")

    def load(self, path: Path, like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The tensors of a checkpoint, each cut and placed as the tensor of its name in `like` is, and the values.

        Tensors without a counterpart come whole, on the CPU; those of an optimiser are cut as their master.

        Raises:
            CheckpointError: a checkpoint that is damaged.
        """
        values = read_object(path / VALUES)
        pieces = _Pieces(path, int(values["count"]))
        found: dict[str, Tensor] = {}
        for name in pieces.names:
            master = like.get(name, like.get(_master_of(name)))
            found[name] = pieces.read(name, master)
        return found, values

    def clear_partial(self) -> None:
        """Remove what a killed writer left."""
        if self._rank == 0 and self.folder.is_dir():
            for left in self.folder.glob(".partial-*"):
                shutil.rmtree(left, ignore_errors=True)

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def _write_pieces(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        rows: dict[str, Tensor] = {}
        spans: dict[str, list[int]] = {}
        packed: dict[str, Any] = {}
        for name, tensor in tensors.items():
            mine, span, copy = _piece(tensor)
            if copy or (self._rank and not isinstance(tensor, DTensor)):
                continue  # somebody else's to write
            if is_traceable_wrapper_subclass(mine):  # of an 8-bit optimiser
                parts, (signed, dtype) = mine.__tensor_flatten__()  # type: ignore[attr-defined]
                packed[name] = {"parts": parts, "signed": signed, "dtype": str(dtype), "rows": _row(span)}
                rows |= {f"{name}/{part}": getattr(mine, part) for part in parts}
            else:
                rows[name] = mine
                spans[name] = _row(span)
        rows = {name: value.detach().to("cpu").contiguous() for name, value in rows.items()}
        about = json.dumps({"rows": spans, "packed": packed})
        save_file(rows, folder / _file(self._rank), metadata={"spans": about})

    def _any(self, here: bool) -> bool:
        """Whether it is so in any process."""
        if self._count == 1:
            return here
        word = torch.tensor([int(here)])
        distributed.all_reduce(word, op=distributed.ReduceOp.MAX)
        return bool(word)


class _Pieces:
    """All files of a checkpoint, and which rows of which tensor each holds."""

    def __init__(self, folder: Path, wrote: int):
        self._places: dict[str, list[tuple[Path, Span]]] = {}
        self._packed: dict[str, list[tuple[Path, Span, dict[str, Any]]]] = {}
        for number in range(wrote):
            file = folder / _file(number)
            try:
                with safe_open(file, framework="pt") as opened:
                    spans = parse_object((opened.metadata() or {}).get("spans", "{}"), str(file))
            except (OSError, SafetensorError) as error:
                raise CheckpointError(f"{file} cannot be read: {reason(error)}.") from error
            for name, about in spans["packed"].items():
                self._packed.setdefault(name, []).append((file, _span(about["rows"]), about))
            for name, row in spans["rows"].items():
                self._places.setdefault(name, []).append((file, _span(row)))

    @property
    def names(self) -> list[str]:
        """Of the tensors."""
        return list({**self._places, **self._packed})

    def read(self, name: str, like: Tensor | None) -> Tensor:
        """A tensor as this process is to have it: cut and placed as `like` where that has as many rows."""
        if name in self._packed:
            return self._unpacked(name, like)
        total = self._places[name][0][1].total
        if not isinstance(like, DTensor) or total != len(like):
            value = self._rows(name, Span(start=0, stop=total, total=total))
            return value if like is None or not total else value.to(like.device)
        return _placed(self._rows(name, _piece(like)[1]).to(like.device), like)

    def _rows(self, name: str, wanted: Span) -> Tensor:
        found = []
        for file, span in sorted(self._places[name], key=lambda place: place[1].start):
            with safe_open(file, framework="pt") as opened:
                if not span.total:
                    return opened.get_tensor(name)
                start, stop = max(span.start, wanted.start), min(span.stop, wanted.stop)
                if start < stop:
                    found.append(opened.get_slice(name)[start - span.start : stop - span.start])
        if found:
            return torch.cat(found)
        with safe_open(self._places[name][0][0], framework="pt") as opened:
            return opened.get_tensor(name)[:0]

    def _unpacked(self, name: str, like: Tensor | None) -> Tensor:
        """A tensor of an 8-bit optimiser, some of whose pieces may be too small to be packed.

        Pieces cannot be cut again: rows go to a process that has just these.
        """
        from torchao.optim.subclass_8bit import OptimState8bit

        places = self._packed[name]
        wanted = places[0][1] if like is None else _piece(like)[1]
        device = "cpu" if like is None else like.device
        value: Tensor | None = None
        for file, span, about in places:
            if span == wanted:
                with safe_open(file, framework="pt") as opened:
                    parts = [opened.get_tensor(f"{name}/{part}").to(device) for part in about["parts"]]
                dtype = getattr(torch, about["dtype"].removeprefix("torch."))
                value = OptimState8bit(*parts, about["signed"], dtype)
        if value is None and any(span == wanted for _, span in self._places.get(name, ())):
            value = self._rows(name, wanted).to(device)
        if value is None:
            raise CheckpointError(
                "The states of an 8-bit optimiser are continued by as many processes in a group as wrote them; with "
                'optimiser.name = "adamw" their number may change.'
            )
        return _placed(value, like) if isinstance(like, DTensor) else value


def _placed(piece: Tensor, like: DTensor) -> DTensor:
    return DTensor.from_local(
        piece, like.device_mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
    )


def _piece(tensor: Tensor) -> tuple[Tensor, Span, bool]:
    """This process's rows of a tensor, which they are, and whether another process has the same ones too and writes."""
    if not isinstance(tensor, DTensor):
        rows = len(tensor) if tensor.ndim else 0
        return tensor, Span(start=0, stop=rows, total=rows), False
    mesh, total = tensor.device_mesh, len(tensor)
    copy = False
    start, stop = 0, total
    for dimension, placement in enumerate(tensor.placements):
        coordinate = mesh.get_local_rank(dimension)
        if isinstance(placement, Shard):
            each = -(-total // mesh.size(dimension))
            start, stop = min(coordinate * each, total), min((coordinate + 1) * each, total)
        else:
            copy = copy or coordinate > 0
    return tensor.to_local(), Span(start=start, stop=stop, total=total), copy


def _row(span: Span) -> list[int]:
    return [span.start, span.stop, span.total]


def _span(row: list[int]) -> Span:
    start, stop, total = row
    return Span(start=start, stop=stop, total=total)


def _nothing() -> None:
    """What the others do meanwhile."""


def _master_of(name: str) -> str:
    """The master that a tensor of an optimiser or an average belongs to: "optimiser.a.b.exp_avg" -> "master.a.b"."""
    kind, _, rest = name.partition(".")
    return f"master.{rest.rpartition('.')[0]}" if kind == "optimiser" else f"master.{rest}"


def _file(rank: int) -> str:
    return f"pieces-{rank:05d}.safetensors"
