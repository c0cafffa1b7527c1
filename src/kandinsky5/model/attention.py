"""Multi-head attention with normalised queries and keys, over the visual tokens or from them to the text.

Comes in: token states, optionally a context, a mask of the context's real tokens, a rotation. Goes out: token states.
Which kernel computes the softmax product is diffusers' attention dispatch, so `set_attention_backend` reaches it; this
file does not know which back ends exist.

Shapes: B batch, N query tokens, M key tokens, D width, A heads of K channels.
"""

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import dispatch_attention_fn
from torch import Tensor, nn

from kandinsky5.model.precision import at_least_float32

RMS_NORM_EPS = torch.finfo(torch.float32).eps
"""The authors' RMSNorm has no eps of its own: torch then takes that of the dtype it computes in, float32."""


class SoftmaxAttention:
    """The computation between the projections; holds the back end that diffusers' setters choose."""

    _attention_backend = None
    _parallel_config = None

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """(B, N, A, K), (B, M, A, K), (B, M, A, K), (B, M) bool -> (B, N, A, K)."""
        return dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=key_mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )


class Attention(nn.Module, AttentionModuleMixin):
    """Self-attention, or cross-attention when a context is given."""

    _default_processor_cls = SoftmaxAttention
    _available_processors = (SoftmaxAttention,)
    _supports_qkv_fusion = False

    def __init__(self, model_dim: int, head_dim: int):
        super().__init__()
        self.num_heads = model_dim // head_dim
        self.to_query = nn.Linear(model_dim, model_dim)
        self.to_key = nn.Linear(model_dim, model_dim)
        self.to_value = nn.Linear(model_dim, model_dim)
        self.query_norm = nn.RMSNorm(head_dim)
        self.key_norm = nn.RMSNorm(head_dim)
        self.out_layer = nn.Linear(model_dim, model_dim)
        self.set_processor(SoftmaxAttention())

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        key_mask: Tensor | None = None,
        rotation: Tensor | None = None,
    ) -> Tensor:
        """(B, N, D) -> (B, N, D).

        Args:
            x: token states.
            context: (B, M, D) states that keys and values are taken from; `x` itself when None.
            key_mask: (B, M) bool, True where a key may be attended to; None means everywhere.
            rotation: (N, K / 2, 2) cosine and sine, applied to queries and keys (self-attention only).
        """
        source = x if context is None else context
        query, key, value = (
            layer(states).unflatten(-1, (self.num_heads, -1))
            for layer, states in ((self.to_query, x), (self.to_key, source), (self.to_value, source))
        )
        query = _normalise(query, self.query_norm, rotation)
        key = _normalise(key, self.key_norm, rotation)
        return self.out_layer(self.processor(query, key, value, key_mask).flatten(-2))


def _normalise(heads: Tensor, norm: nn.RMSNorm, rotation: Tensor | None) -> Tensor:
    """RMSNorm over the channels of each head, then the rotation, in float32 without rounding in between."""
    x = at_least_float32(heads)
    x = F.rms_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), RMS_NORM_EPS)
    if rotation is not None:
        x = rotate(x, rotation)
    return x.to(heads.dtype)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each interleaved pair of channels by its token's angle: (B, N, A, K), (N, K / 2, 2) -> (B, N, A, K)."""
    cos, sin = rotation[:, None].to(x.dtype).unbind(-1)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
