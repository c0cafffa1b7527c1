"""What stages hand to each other: prompts as tensors.

Rows of a `Conditioning` belong together: text states, mask and pooled vector are only ever repeated, padded and moved
as one. Nothing here computes with a model.

Shapes: B rows, L text tokens (valid ones first), E width of the text states, P width of the pooled vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from kandinsky5.errors import RequestError


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """Encoded prompts, one a row.

    text: (B, L, E) states of the text encoder; rows shorter than L are padded on the right.
    mask: (B, L) bool, True for real tokens.
    pooled: (B, P) pooled vector of the second encoder.
    """

    text: Tensor
    mask: Tensor
    pooled: Tensor

    def __post_init__(self) -> None:
        rows = {len(self.text), len(self.mask), len(self.pooled)}
        if len(rows) > 1 or self.mask.shape != self.text.shape[:2]:
            raise RequestError(
                f"Text states {tuple(self.text.shape)}, mask {tuple(self.mask.shape)} and pooled vectors "
                f"{tuple(self.pooled.shape)} do not describe the same prompts."
            )

    def __len__(self) -> int:
        return len(self.text)

    @classmethod
    def from_cu_seqlens(cls, text: Tensor, pooled: Tensor, cu_seqlens: Tensor) -> Self:
        """From diffusers' form: (B, L, E) right-padded states and (B + 1,) cumulative lengths.

        Raises:
            RequestError: tensors of other dimensions, no rows at all, or lengths that contradict the states.
        """
        if (text.ndim, pooled.ndim, cu_seqlens.ndim) != (3, 2, 1) or not len(text):
            raise RequestError(
                f"Text states {tuple(text.shape)}, pooled vectors {tuple(pooled.shape)} and cu_seqlens "
                f"{tuple(cu_seqlens.shape)} must be (rows, tokens, channels), (rows, channels) and (rows + 1)."
            )
        lengths = cu_seqlens.diff()
        if len(lengths) != len(text):
            raise RequestError(
                f"cu_seqlens has {len(cu_seqlens)} entries for {len(text)} rows of text states; it must have rows + 1."
            )
        if bool((lengths < 1).any()) or int(lengths.max()) > text.shape[1]:
            raise RequestError(
                f"cu_seqlens gives lengths {lengths.tolist()}; each must be from 1 to the {text.shape[1]} tokens "
                "of the text states."
            )
        positions = torch.arange(text.shape[1], device=text.device)
        return cls(text=text, mask=positions < lengths.to(text.device)[:, None], pooled=pooled)

    @cached_property
    def padding_mask(self) -> Tensor | None:
        """The mask, or None where no row is padded, which is faster. Looked at once, since it waits for the device."""
        return None if bool(self.mask.all()) else self.mask

    @property
    def lengths(self) -> Tensor:
        """(B,) real tokens a row."""
        return self.mask.sum(dim=1)

    @property
    def cu_seqlens(self) -> Tensor:
        """(B + 1,) int32 cumulative lengths, diffusers' form of the mask."""
        return F.pad(self.lengths.cumsum(0), (1, 0)).to(torch.int32)

    def repeat(self, n: int) -> Self:
        """Each row n times in a row: a, a, b, b."""
        return replace(
            self,
            text=self.text.repeat_interleave(n, dim=0),
            mask=self.mask.repeat_interleave(n, dim=0),
            pooled=self.pooled.repeat_interleave(n, dim=0),
        )

    def rows(self, start: int, stop: int) -> Self:
        """Some of the rows, without the padding that only others needed."""
        length = int(self.lengths[start:stop].max())
        return replace(
            self,
            text=self.text[start:stop, :length],
            mask=self.mask[start:stop, :length],
            pooled=self.pooled[start:stop],
        )

    def pad(self, length: int) -> Self:
        """The same rows with room for `length` tokens; the room is zeros, and masked."""
        room = length - self.text.shape[1]
        if room < 0:
            raise ValueError(f"Rows of {self.text.shape[1]} tokens do not fit into {length}.")
        return replace(self, text=F.pad(self.text, (0, 0, 0, room)), mask=F.pad(self.mask, (0, room)))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Self:
        """The same rows elsewhere, states and pooled vector in `dtype`."""
        return replace(
            self,
            text=self.text.to(device, dtype),
            mask=self.mask.to(device),
            pooled=self.pooled.to(device, dtype),
        )

    @classmethod
    def stack(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts below each other, padded to the longest."""
        length = max(part.text.shape[1] for part in parts)
        padded = [part.pad(length) for part in parts]
        return cls(
            text=torch.cat([part.text for part in padded]),
            mask=torch.cat([part.mask for part in padded]),
            pooled=torch.cat([part.pooled for part in padded]),
        )
