"""Where the float32 weights that an optimiser steps are kept.

Two ways. `ReplicatedWeights`: every process has all of them, flat, beside parameters of a smaller dtype (`Masters`);
for adapters and small networks. `ShardedWeights`: they are the network's own parameters, in float32, cut into pieces
over the processes by FSDP2, which casts them for use; for every weight. Nothing here knows optimisers or losses.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from kandinsky5.errors import CheckpointError
from kandinsky5.train.masters import Masters
from kandinsky5.train.replicas import Replicas
from kandinsky5.train.tuning.sharding import SHARD


class Weights(Protocol):
    """What `Stepper` needs of them."""

    @property
    def masters(self) -> Mapping[str, nn.Parameter]:
        """Float32, this process's pieces, each with its gradient in `.grad` once `gather` was called."""

    @property
    def hidden(self) -> Collection[str]:
        """Names of the masters that are matrices inside blocks, told apart only where an optimiser asks for it."""

    def take_gradients(self) -> None:
        """Called after each micro-batch's backward pass."""

    def gather(self) -> None:
        """Gradients become those of all processes' micro-batches together."""

    def norm(self, pieces: Sequence[Tensor]) -> Tensor:
        """L2 norm over all of all processes' pieces, a float32 scalar."""

    def forget_gradients(self) -> None:
        """A new sum begins."""

    def give_back(self, values: Mapping[str, Tensor]) -> None:
        """The network computes with these values of the masters from now on."""

    def named(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Values of the masters by the parameters' names, as this process has them."""

    def whole(self, name: str, piece: Tensor) -> Tensor:
        """The tensor over all processes that a tensor of a master's shape is this process's piece of."""


class ReplicatedWeights:
    """Flat masters, the same in every process; gradients are averaged over the processes."""

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], replicas: Replicas, hidden: Collection[str] = ()
    ):
        self._masters = Masters(parameters, hidden)
        self._replicas = replicas

    @property
    def masters(self) -> dict[str, nn.Parameter]:
        """Flat tensors, those that are not empty."""
        return {name: flat for name, flat in self._masters.flat.items() if flat.numel()}

    @property
    def hidden(self) -> tuple[str, ...]:
        """Those with the matrices that were named, of one shape each."""
        return self._masters.hidden

    def take_gradients(self) -> None:
        """Add up in float32."""
        self._masters.take_gradients()

    def gather(self) -> None:
        """The mean over processes."""
        if self._replicas.count > 1:
            self._replicas.add_up(self._masters.gradients.values())
            for gradient in self._masters.gradients.values():
                gradient /= self._replicas.count

    def norm(self, pieces: Sequence[Tensor]) -> Tensor:
        """Every process has all."""
        return total_norm(pieces)

    def forget_gradients(self) -> None:
        """Set the sums to zero."""
        self._masters.forget_gradients()

    @torch.no_grad()
    def give_back(self, values: Mapping[str, Tensor]) -> None:
        """Round the values into the parameters."""
        flat = self._masters.flat
        others = {name: value for name, value in values.items() if value is not flat[name]}
        kept = {name: flat[name].detach().clone() for name in others}
        for name, value in others.items():
            flat[name].copy_(value)
        self._masters.give_back()
        for name, value in kept.items():
            flat[name].copy_(value)

    def named(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views into the values. Raises CheckpointError for values of other parameters."""
        for name, master in self.masters.items():
            if name not in values or values[name].shape != master.shape:
                raise CheckpointError("The saved weights belong to other parameters: names or shapes differ.")
        empty = {name: flat for name, flat in self._masters.flat.items() if not flat.numel()}
        return self._masters.named({**values, **empty})

    def whole(self, name: str, piece: Tensor) -> Tensor:
        """It is whole."""
        return piece


class ShardedWeights:
    """A network that `tuning.sharding` has cut up. Its masters share their memory with the network's pieces."""

    def __init__(self, network: Any, parameters: Mapping[str, nn.Parameter], hidden: Collection[str] = ()):
        self.hidden = hidden
        self._network = network
        self._parameters: dict[str, Any] = dict(parameters)
        self._masters = {name: nn.Parameter(local(p.detach())) for name, p in parameters.items()}

    @property
    def masters(self) -> dict[str, nn.Parameter]:
        """This process's pieces of the network's parameters, as plain tensors."""
        return self._masters

    def take_gradients(self) -> None:
        """Nothing: FSDP2 averages each micro-batch over the processes, and torch adds up the pieces."""

    def gather(self) -> None:
        """Hand the pieces of the gradients to the masters."""
        for name, parameter in self._parameters.items():
            self._masters[name].grad = None if parameter.grad is None else local(parameter.grad)

    def norm(self, pieces: Sequence[Tensor]) -> Tensor:
        """The processes of a group add up their squares; every group has all."""
        square = total_norm(pieces).square()
        mesh = next(iter(self._parameters.values())).device_mesh
        distributed.all_reduce(square, group=mesh.get_group(SHARD))
        return square.sqrt()

    def forget_gradients(self) -> None:
        """Drop the sums."""
        for name, parameter in self._parameters.items():
            parameter.grad = self._masters[name].grad = None

    @torch.no_grad()
    def give_back(self, values: Mapping[str, Tensor]) -> None:
        """Put the values into the network, where they are not already, and drop what was gathered of older ones.

        FSDP2 leaves the outermost layers gathered after a forward pass that has no backward pass.
        """
        for name, value in values.items():
            if value is not self._masters[name]:
                self._masters[name].copy_(value)
        for module in self._network.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def named(self, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """They have these names."""
        return values

    def whole(self, name: str, piece: Tensor) -> Tensor:
        """Cut as the parameter of this name is."""
        return as_piece_of(piece, self._parameters[name])


def local(tensor: Tensor) -> Tensor:
    """This process's piece of a tensor; a whole one is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_piece_of(piece: Tensor, like: DTensor) -> DTensor:
    """The tensor that is cut as `like` is and of which `piece` is here."""
    return DTensor.from_local(
        piece, like.device_mesh, like.placements, shape=like.shape, stride=like.stride(), run_check=False
    )


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """L2 norm over all of these, a float32 scalar on their device."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors))))
