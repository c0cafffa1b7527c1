"""Float32 masters of parameters that compute in a smaller dtype.

Comes in: named parameters of any floating dtype. Goes out: flat float32 tensors that an optimiser steps, with float32
gradients, and the way back into the parameters. A bfloat16 weight alone would swallow any update smaller than 1/256 of
it. Nothing here knows of learning rates, losses or files.
"""

from collections.abc import Collection, Mapping
from itertools import groupby

import torch
from torch import Tensor, nn


class Masters:
    """Float32 copies of `parameters`, kept in two flat tensors: `matrices` (two axes or more) and `vectors`.

    The split is the usual one for weight decay: matrices decay, biases and norms do not. Flat tensors make clipping,
    AdamW and averaging a handful of kernels. Rows of every flat tensor follow the order of `parameters`.

    Matrices whose names are in `hidden` form a third one, `hidden`, in which equal shapes lie together (`stacks`).
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], hidden: Collection[str] = ()):
        device = next(iter(parameters.values())).device
        others = {name: p for name, p in parameters.items() if name not in hidden}
        self._groups = {
            "matrices": {name: p for name, p in others.items() if p.ndim >= 2},
            "vectors": {name: p for name, p in others.items() if p.ndim < 2},
        }
        if hidden:
            by_shape = sorted(hidden, key=lambda name: tuple(parameters[name].shape))
            self._groups["hidden"] = {name: parameters[name] for name in by_shape}
        self.flat: dict[str, nn.Parameter] = {}
        self.gradients: dict[str, Tensor] = {}
        self._fresh: dict[str, Tensor] = {}
        for group, members in self._groups.items():
            rows = [p.detach().float().reshape(-1) for p in members.values()]
            self.flat[group] = nn.Parameter(torch.cat(rows) if rows else torch.zeros(0, device=device))
            self.flat[group].grad = self.gradients[group] = torch.zeros_like(self.flat[group])
            self._fresh[group] = torch.zeros_like(self.flat[group])

    @torch.no_grad()
    def take_gradients(self) -> None:
        """Add the parameters' gradients, upcast, to the masters' gradients, and drop them from the parameters.

        Call it once per micro-batch. Raises RuntimeError naming the first parameter that received no gradient.
        """
        for group, members in self._groups.items():
            given = [p.grad for p in members.values() if p.grad is not None]
            if len(given) < len(members):
                missing = [name for name, p in members.items() if p.grad is None]
                raise RuntimeError(f"{missing[0]} received no gradient, nor did {len(missing) - 1} others.")
            if members:
                torch._foreach_copy_(self._views(group, self._fresh[group]), given)
                self.gradients[group] += self._fresh[group]
            for p in members.values():
                p.grad = None

    def gradient_norm(self) -> Tensor:
        """L2 norm of all gradients taken since `forget_gradients`, a float32 scalar on their device."""
        norms = [torch.linalg.vector_norm(gradient) for gradient in self.gradients.values()]
        return torch.linalg.vector_norm(torch.stack(norms))

    @torch.no_grad()
    def scale_gradients(self, factor: Tensor) -> None:
        """Multiply all gradients taken by a scalar."""
        for gradient in self.gradients.values():
            gradient *= factor

    def forget_gradients(self) -> None:
        """Begin a new sum of gradients."""
        for gradient in self.gradients.values():
            gradient.zero_()

    @torch.no_grad()
    def give_back(self) -> None:
        """Round the masters into the parameters' own dtypes."""
        for group, members in self._groups.items():
            if members:
                torch._foreach_copy_(
                    [p.data for p in members.values()], self._views(group, self.flat[group].data)
                )

    def named(self, flat: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views by parameter name into flat tensors laid out as the masters are (the masters, an average of them)."""
        views: dict[str, Tensor] = {}
        for group, members in self._groups.items():
            views |= dict(zip(members, self._views(group, flat[group].detach()), strict=True))
        return views

    def stacks(self, flat: Tensor) -> list[Tensor]:
        """Views (B, m, n), one a shape, into a flat tensor laid out as `hidden` is."""
        shapes = [p.shape for p in self._groups["hidden"].values()]
        equal = [(shape, len(list(run))) for shape, run in groupby(shapes)]
        rows = flat.detach().split([count * shape.numel() for shape, count in equal])
        return [row.view(count, *shape) for row, (shape, count) in zip(rows, equal, strict=True)]

    def _views(self, group: str, flat: Tensor) -> list[Tensor]:
        shapes = [p.shape for p in self._groups[group].values()]
        rows = flat.split([shape.numel() for shape in shapes]) if shapes else ()
        return [row.view(shape) for row, shape in zip(rows, shapes, strict=True)]
