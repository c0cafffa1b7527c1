"""The autoencoder's attention: one head as wide as all channels, between all places of a picture.

Comes in: (N, C, H, W) states in the middle of the encoder or decoder. Goes out: the same plus what is attended to. No
back end of torch that is fast takes a head of 512 channels; where Triton's kernels run, the two products are cuBLAS's,
with a softmax of scores in float32 between, for some thousand places at a time. Refuses to know: how places are normed.

Shapes: N pictures, L places, C channels.
"""

from collections.abc import Callable
from typing import Any, Final

import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor

from kandinsky5.autoencoder.group_norm import goes_ordinary_way
from kandinsky5.model.kernels import why_no_triton

ROWS: Final = 4096
"""Places that attend at a time: enough for the second product to fill a GPU. Their scores and weights take 24 KB for
each place of a picture, of which the last layers of a decoder take 80."""


class WideHeadAttention(AttnProcessor2_0):
    """Of an `Attention` with one head, a group norm before it and a residual sum after it."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """(N, C, H, W) -> (N, C, H, W); an autoencoder gives nothing else."""
        others = (encoder_hidden_states, attention_mask, temb)
        if (
            goes_ordinary_way()
            or any(given is not None for given in others)
            or hidden_states.dtype not in (torch.bfloat16, torch.float16)
            or why_no_triton(hidden_states.device, float8=False) is not None
        ):
            return super().__call__(attn, hidden_states, *others, *args, **kwargs)
        from kandinsky5.autoencoder.triton_softmax import triton_softmax

        return attended(attn, hidden_states, triton_softmax)


def attended(attn: Any, x: Tensor, softmax: Callable[[Tensor, float, torch.dtype], Tensor]) -> Tensor:
    """`x` and what its places attend to, (N, C, H, W).

    Args:
        attn: the layers.
        x: bfloat16 or float16.
        softmax: (scores (N, M, L) float32, scale, dtype) -> softmax of `scale scores` over the last dimension.
    """
    places = attn.group_norm(x).flatten(2).transpose(1, 2)  # (N, L, C)
    query, key, value = attn.to_q(places), attn.to_k(places), attn.to_v(places)
    found = torch.empty_like(query)
    for rows, into in zip(query.split(ROWS, dim=1), found.split(ROWS, dim=1), strict=True):
        # No names: scores go when there are weights, and weights before there are other scores.
        scale = query.shape[-1] ** -0.5
        into.copy_(torch.bmm(softmax(product_in_float32(rows, key.transpose(1, 2)), scale, x.dtype), value))
    out = attn.to_out[1](attn.to_out[0](found))
    return x + out.transpose(1, 2).unflatten(2, x.shape[2:])


def product_in_float32(a: Tensor, b: Tensor) -> Tensor:
    """(N, M, C), (N, C, L) -> (N, M, L) float32, whose sums are not rounded to the dtype that comes in."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda else torch.bmm(a.float(), b.float())
