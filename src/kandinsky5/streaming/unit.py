"""A module's tensors as one run of bytes that can be anywhere.

Comes in: a module. Goes out: where each of its tensors is in the run, and the module with its tensors in a buffer that
holds the run, or back where they rest. A tensor that a library packed (a traceable wrapper, as torchao's) is its parts.
Refuses to know: who copies the bytes, and when.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kandinsky5.errors import RequestError

ALIGNMENT: Final = 256
"""Bytes; what CUDA's own allocations are aligned to."""


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """A plain tensor of a unit: its module's name for it, the tensor at rest, and its first byte in the run.

    part: of a packed tensor, which of its tensors this is; None for a tensor that is not packed.
    """

    name: str
    part: str | None
    tensor: Tensor
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return self.tensor.numel() * self.tensor.element_size()

    def view(self, run: Tensor) -> Tensor:
        """The tensor as it is in a run (bytes,) uint8."""
        flat = run[self.start : self.start + self.nbytes]
        return flat.view(self.tensor.dtype).view(self.tensor.shape)


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A parameter or buffer: its owner, its name there, itself at rest, and its leaves."""

    owner: nn.Module
    name: str
    rest: Tensor
    leaves: Sequence[Leaf]

    def prepared(self, run: Tensor) -> Tensor:
        """What to `put` so that the tensor is in a run."""
        views = [leaf.view(run) for leaf in self.leaves]
        if self.leaves[0].part is None:
            return views[0]
        parts = dict(zip((leaf.part for leaf in self.leaves), views, strict=True))
        return nn.Parameter(_rebuilt(self.rest, parts), requires_grad=False)

    def put(self, prepared: Tensor) -> None:
        """Make it the tensor's values."""
        if self.leaves[0].part is not None:
            self.owner._parameters[self.name] = prepared  # type: ignore[assignment]
            return
        self.tensor.data = prepared

    @property
    def tensor(self) -> Tensor:
        """The parameter or buffer as its owner has it now."""
        table: Any = self.owner._parameters if self.name in self.owner._parameters else self.owner._buffers
        return table[self.name]


class Unit:
    """Tensors that come and go together.

    Args:
        name: for messages.
        module: whose parameters and buffers they are, those of its submodules too.
        without: submodules that are left out, since they are units of their own.
    """

    def __init__(self, name: str, module: nn.Module, *, without: Collection[nn.Module] = ()):
        self.name = name
        self.module = module
        self._pieces: list[_Piece] = []
        self._known: set[int] = set()
        self.nbytes = 0
        for path, owner, leaf_name, tensor in _owned(module, without):
            leaves = [self._leaf(f"{path}{leaf_name}", part, inner) for part, inner in _plain_tensors(tensor)]
            rest = tensor if leaves[0].part is not None else tensor.data
            self._pieces.append(_Piece(owner=owner, name=leaf_name, rest=rest, leaves=leaves))
            self._known.add(id(tensor))
        self._prepared: dict[int, list[Tensor]] = {}
        self._rests = True
        self._without = {id(part) for left_out in without for part in left_out.modules()}

    @property
    def leaves(self) -> Iterator[Leaf]:
        """All plain tensors, in the order of their bytes."""
        return (leaf for piece in self._pieces for leaf in piece.leaves)

    @property
    def parameters(self) -> list[Tensor]:
        """The module's parameters among its tensors."""
        named = (piece.owner._parameters.get(piece.name) for piece in self._pieces)
        return [parameter for parameter in named if parameter is not None]

    def put_in(self, run: Tensor) -> None:
        """Make the bytes of a run (at least `nbytes`,) uint8 the module's tensors."""
        self._rests = False
        key = run.data_ptr()
        if key not in self._prepared:
            self._prepared[key] = [piece.prepared(run) for piece in self._pieces]
        for piece, prepared in zip(self._pieces, self._prepared[key], strict=True):
            piece.put(prepared)

    def rest(self) -> None:
        """Give the module the tensors back that it has when it is not used; one that rests keeps what it has."""
        if not self._rests:
            for piece in self._pieces:
                piece.put(piece.rest)
            self._rests = True

    def rest_in(self, run: Tensor) -> None:
        """From now on the tensors rest in this run, whose bytes are theirs already."""
        self._pieces = [
            _Piece(
                owner=piece.owner,
                name=piece.name,
                rest=piece.prepared(run),
                leaves=[
                    Leaf(name=leaf.name, part=leaf.part, tensor=leaf.view(run), start=leaf.start)
                    for leaf in piece.leaves
                ],
            )
            for piece in self._pieces
        ]
        for piece in self._pieces:
            piece.put(piece.rest)

    def at_rest(self) -> Iterator[tuple[Leaf, Tensor]]:
        """The tensors that no library packed as they are now, of a unit that rests: others may have put new ones there
        (an adapter fused by peft's safe way).
        """
        yield from (
            (piece.leaves[0], piece.tensor.data) for piece in self._pieces if piece.leaves[0].part is None
        )

    def forget(self) -> None:
        """Drop what is remembered of runs, which keeps their memory."""
        self._prepared.clear()

    def settle_scales(self, device: torch.device) -> None:
        """Of weights that bitsandbytes packed the scales are no tensors of the module; they go to the device.

        Raises:
            RequestError: such weights on the CPU, where that library packs them anew when they are first used.
        """
        for piece in self._pieces:
            scales = getattr(piece.owner._parameters.get(piece.name), "quant_state", None)
            if scales is not None and device.type == "cpu":
                raise RequestError(f"{self.name} is in four bits, which are not streamed to the CPU.")
            if scales is not None:
                scales.to(device)

    def bring_strays(self, device: torch.device) -> None:
        """What joined the module since (adapters) goes to the device, and stays."""
        if len(self._known) == self._count():
            return
        for _, owner, name, tensor in _owned(self.module, ()):
            if tensor.device != device and id(owner) not in self._without and not self._has(owner, name):
                tensor.data = tensor.data.to(device)

    def _count(self) -> int:
        return sum(1 for part in self.module.modules() if id(part) not in self._without for _ in _own(part))

    def _has(self, owner: nn.Module, name: str) -> bool:
        return any(piece.owner is owner and piece.name == name for piece in self._pieces)

    def _leaf(self, name: str, part: str | None, tensor: Tensor) -> Leaf:
        start = math.ceil(self.nbytes / ALIGNMENT) * ALIGNMENT
        leaf = Leaf(name=name, part=part, tensor=tensor, start=start)
        self.nbytes = start + leaf.nbytes
        return leaf


def _owned(module: nn.Module, without: Collection[nn.Module]) -> list[tuple[str, nn.Module, str, Tensor]]:
    """(path of the owner with a dot, owner, name, tensor), each tensor once.

    All weights come before all biases, so that layers that follow each other are one matrix (`model.products`).
    """
    left_out = {id(part) for one in without for part in one.modules()}
    found: dict[int, tuple[str, nn.Module, str, Tensor]] = {}
    for path, owner in module.named_modules():
        if id(owner) not in left_out:
            for name, tensor in _own(owner):
                found.setdefault(id(tensor), (f"{path}." if path else "", owner, name, tensor))
    return sorted(found.values(), key=lambda entry: entry[2] != "weight")


def _own(owner: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for table in (owner._parameters, owner._buffers):
        yield from ((name, tensor) for name, tensor in table.items() if tensor is not None)


def _plain_tensors(tensor: Tensor) -> list[tuple[str | None, Tensor]]:
    """The tensor alone, or the parts of a packed one by their names."""
    if not is_traceable_wrapper_subclass(tensor):
        return [(None, tensor.data.contiguous())]
    names = tensor.__tensor_flatten__()[0]  # type: ignore[attr-defined]
    return [(name, getattr(tensor, name).contiguous()) for name in names]


def _rebuilt(packed: Any, parts: dict[str | None, Tensor]) -> Tensor:
    """The packed tensor with other parts."""
    _, context = packed.__tensor_flatten__()
    return type(packed).__tensor_unflatten__(parts, context, packed.size(), packed.stride())
