"""Float32 masters of parameters that compute in a smaller dtype.

Comes in: named parameters of any floating dtype. Goes out: flat float32 tensors that an optimiser steps, with float32
gradients, and the way back into the parameters. A bfloat16 weight alone would swallow any update smaller than 1/256 of
it. Nothing here knows of learning rates, losses or files.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn


class Masters:
    """Float32 copies of `parameters`, kept in flat tensors: `matrices` (two axes or more) and `vectors`.

    The split is the usual one for weight decay: matrices decay, biases and norms do not. Flat tensors make clipping,
    AdamW and averaging a handful of kernels. Rows of every flat tensor follow the order of `parameters`.

    Matrices whose names are in `hidden` lie apart, those of one shape in one tensor (count, m, n); their tensors' names
    are then this object's `hidden`.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], hidden: Collection[str] = ()):
        device = next(iter(parameters.values())).device
        self._groups: dict[str, dict[str, nn.Parameter]] = {"matrices": {}, "vectors": {}}
        for name, p in parameters.items():
            group = "matrices" if p.ndim >= 2 else "vectors"
            if name in hidden:
                group = f"hidden_{p.shape[0]}x{p.shape[1]}"
            self._groups.setdefault(group, {})[name] = p
        self.hidden = tuple(self._groups)[2:]
        self.flat: dict[str, nn.Parameter] = {}
        self.gradients: dict[str, Tensor] = {}
        self._fresh: dict[str, Tensor] = {}
        for group, members in self._groups.items():
            rows = [p.detach().float().reshape(-1) for p in members.values()]
            flat = torch.cat(rows) if rows else torch.zeros(0, device=device)
            if group in self.hidden:
                flat = flat.view(len(members), *next(iter(members.values())).shape)
            self.flat[group] = nn.Parameter(flat)
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

    def _views(self, group: str, flat: Tensor) -> list[Tensor]:
        shapes = [p.shape for p in self._groups[group].values()]
        rows = flat.view(-1).split([shape.numel() for shape in shapes]) if shapes else ()
        return [row.view(shape) for row, shape in zip(rows, shapes, strict=True)]
