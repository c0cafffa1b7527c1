"""Where the float32 weights that an optimiser steps are kept.

Two ways. `ReplicatedWeights`: every process has all of them, flat, beside parameters of a smaller dtype (`Masters`);
for adapters. `ShardedWeights`: they are the network's own parameters, in float32, cut into pieces over the processes by
FSDP2, which casts them for use; for every weight. Nothing here knows optimisers or losses.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from kandinsky5.train.masters import Masters
from kandinsky5.train.replicas import Replicas


class Weights(Protocol):
    """What `Stepper` needs of them."""

    @property
    def masters(self) -> Mapping[str, nn.Parameter]:
        """Float32, each with its gradient in `.grad` once `gather` was called."""

    def before_backward(self, last: bool) -> None:
        """Called before each micro-batch's backward pass; `last` for the step's last."""

    def take_gradients(self) -> None:
        """Called after each micro-batch's backward pass."""

    def gather(self) -> None:
        """Gradients become those of all processes' micro-batches together."""

    def forget_gradients(self) -> None:
        """A new sum begins."""

    def give_back(self, values: Mapping[str, Tensor]) -> None:
        """The network computes with these values of the masters from now on."""


class ReplicatedWeights:
    """Flat masters, the same in every process; gradients are averaged over the processes."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], replicas: Replicas):
        self._masters = Masters(parameters)
        self._replicas = replicas

    @property
    def masters(self) -> dict[str, nn.Parameter]:
        """Two flat tensors, those that are not empty."""
        return {name: flat for name, flat in self._masters.flat.items() if flat.numel()}

    def before_backward(self, last: bool) -> None:
        """Nothing: gradients are summed once, in `gather`."""

    def take_gradients(self) -> None:
        """Add up in float32."""
        self._masters.take_gradients()

    def gather(self) -> None:
        """The mean over processes."""
        self._replicas.add_up(self._masters.gradients.values())
        for gradient in self._masters.gradients.values():
            gradient /= self._replicas.count

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


class ShardedWeights:
    """A network that `tuning.sharding` has cut up."""

    def __init__(self, network: Any, parameters: Mapping[str, nn.Parameter]):
        self._network = network
        self._parameters = dict(parameters)

    @property
    def masters(self) -> dict[str, nn.Parameter]:
        """The network's parameters, this process's pieces of them."""
        return self._parameters

    def before_backward(self, last: bool) -> None:
        """Gradients travel once a step."""
        self._network.set_requires_gradient_sync(last)

    def take_gradients(self) -> None:
        """Nothing: torch adds up."""

    def gather(self) -> None:
        """Nothing: FSDP2 averages in the last backward pass."""

    def forget_gradients(self) -> None:
        """Drop the sums."""
        for parameter in self._parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def give_back(self, values: Mapping[str, Tensor]) -> None:
        """Put the values into the network, where they are not already."""
        for name, value in values.items():
            if value is not self._parameters[name]:
                self._parameters[name].copy_(value)


def local(tensor: Tensor) -> Tensor:
    """This process's piece of a tensor; a whole one is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_norm(tensors: list[Tensor]) -> Tensor:
    """L2 norm over all of all processes' pieces, a float32 scalar."""
    norms = [torch.linalg.vector_norm(tensor) for tensor in tensors]
    return torch.linalg.vector_norm(
        torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms])
    )
