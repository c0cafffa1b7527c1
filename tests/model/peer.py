"""diffusers' network as a peer: as released, and with its rotary rounding taken out.

diffusers 0.42.1 sends queries and keys through bfloat16 after the rotation even in float32. `without_rounding` swaps
its attention processors for one that keeps the dtype, so that the rest of the class can be compared to rounding error.
`in_float64` also lifts the class's explicit float32 casts and tables: then only mathematics is left to compare.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.transformers.transformer_kandinsky import (
    Kandinsky5Attention,
    Kandinsky5Transformer3DModel,
)
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Kandinsky5Transformer3DModel", "in_float64", "without_rounding"]


class ExactRotaryProcessor:
    """Attention of diffusers' module; queries and keys are normed and rotated in float32 and rounded once, after."""

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: Kandinsky5Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        rotary_emb: Tensor | None = None,
        sparse_params: dict | None = None,
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            layer(x).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
            for layer, x in ((attn.to_query, hidden_states), (attn.to_key, context), (attn.to_value, context))
        )
        query, key = attn.query_norm(query.float()), attn.key_norm(key.float())
        if rotary_emb is not None:
            rotary_emb = rotary_emb.transpose(1, 2)  # (.., N, 1, K/2, 2, 2) -> (.., 1, N, K/2, 2, 2)
            query, key = (
                torch.einsum("...ij,...j->...i", rotary_emb.to(x), x.unflatten(-1, (-1, 2))).flatten(-2)
                for x in (query, key)
            )
        out = F.scaled_dot_product_attention(query.to(value), key.to(value), value)
        return attn.out_layer(out.transpose(1, 2).flatten(-2))


def without_rounding(model: Kandinsky5Transformer3DModel) -> Kandinsky5Transformer3DModel:
    """`model` itself, its rotations now exact in its own dtype."""
    for module in model.modules():
        if isinstance(module, Kandinsky5Attention):
            module.set_processor(ExactRotaryProcessor())
    return model


@contextmanager
def in_float64(model: Kandinsky5Transformer3DModel) -> Iterator[Kandinsky5Transformer3DModel]:
    """`model` in float64 throughout: weights, tables, and (while the context is open) its `.float()` casts."""
    model = without_rounding(model.double())
    time = model.time_embeddings
    time.freqs = _exact_frequencies(time.model_dim)
    text = model.text_rope_embeddings
    text.args = torch.outer(torch.arange(text.max_pos).double(), _exact_frequencies(text.dim))
    visual = model.visual_rope_embeddings
    for i, (dim, longest) in enumerate(zip(visual.axes_dims, visual.max_pos, strict=True)):
        setattr(visual, f"args_{i}", torch.outer(torch.arange(longest).double(), _exact_frequencies(dim)))
    to_float, epsilon = Tensor.float, torch.finfo(torch.float32).eps
    for module in model.modules():
        if isinstance(module, torch.nn.RMSNorm):
            module.eps = epsilon
    Tensor.float = Tensor.double  # type: ignore[method-assign]
    try:
        yield model
    finally:
        Tensor.float = to_float  # type: ignore[method-assign]


def _exact_frequencies(dim: int) -> Tensor:
    return torch.tensor([10000.0 ** (-2 * i / dim) for i in range(dim // 2)], dtype=torch.float64)
