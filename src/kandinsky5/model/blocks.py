"""The repeated layers: a text block, a visual block, and the output layer.

Each sub-layer is one stanza: modulate, operate, gate. Comes in: token states in the network's dtype, the time vector in
float32. Goes out: token states. Nothing here knows of patches, times or prompts.

Shapes: B batch, N visual tokens, L text tokens, D width.
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from kandinsky5.model.attention import Attention
from kandinsky5.model.precision import InputPrecisionLinear, at_least_float32

LAYER_NORM_EPS = 1e-5


class VisualBlock(nn.Module):
    """Self-attention over the picture, cross-attention to the text, feed-forward; each shifted, scaled and gated."""

    def __init__(self, model_dim: int, time_dim: int, ff_dim: int, head_dim: int):
        super().__init__()
        self.visual_modulation = Modulation(time_dim, model_dim, 9)
        self.self_attention = Attention(model_dim, head_dim)
        self.cross_attention = Attention(model_dim, head_dim)
        self.feed_forward = FeedForward(model_dim, ff_dim)

    def forward(
        self, visual: Tensor, text: Tensor, text_mask: Tensor | None, time: Tensor, rotation: Tensor
    ) -> Tensor:
        """(B, N, D), (B, L, D), (B, L) or None, (B, time_dim) -> (B, N, D)."""
        shift, scale, gate, cross_shift, cross_scale, cross_gate, ff_shift, ff_scale, ff_gate = (
            self.visual_modulation(time)
        )
        out = self.self_attention(modulate(visual, shift, scale), rotation=rotation)
        visual = add_gated(visual, gate, out)

        out = self.cross_attention(modulate(visual, cross_shift, cross_scale), text, text_mask)
        visual = add_gated(visual, cross_gate, out)

        out = self.feed_forward(modulate(visual, ff_shift, ff_scale))
        return add_gated(visual, ff_gate, out)


class TextBlock(nn.Module):
    """Self-attention over the prompt and feed-forward; modulated by time, so text changes from step to step."""

    def __init__(self, model_dim: int, time_dim: int, ff_dim: int, head_dim: int):
        super().__init__()
        self.text_modulation = Modulation(time_dim, model_dim, 6)
        self.self_attention = Attention(model_dim, head_dim)
        self.feed_forward = FeedForward(model_dim, ff_dim)

    def forward(self, text: Tensor, text_mask: Tensor | None, time: Tensor, rotation: Tensor) -> Tensor:
        """(B, L, D), (B, L) or None, (B, time_dim) -> (B, L, D); rows where the mask is False are not meaningful."""
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.text_modulation(time)
        out = self.self_attention(modulate(text, shift, scale), key_mask=text_mask, rotation=rotation)
        text = add_gated(text, gate, out)

        out = self.feed_forward(modulate(text, ff_shift, ff_scale))
        return add_gated(text, ff_gate, out)


class OutputLayer(nn.Module):
    """Token states back to latent patches."""

    def __init__(self, model_dim: int, time_dim: int, channels: int, patch_size: Sequence[int]):
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.modulation = Modulation(time_dim, model_dim, 2)
        self.out_layer = InputPrecisionLinear(model_dim, math.prod(patch_size) * channels)

    def forward(self, visual: Tensor, time: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, N, D), (B, time_dim), patches an axis (T, H, W) -> (B, T pt, H ph, W pw, C), dtype of `visual`."""
        shift, scale = self.modulation(time)
        patches = self.out_layer(modulate(visual, shift, scale))
        x = patches.unflatten(-1, (-1, *self.patch_size)).unflatten(
            1, tuple(grid)
        )  # (B, T, H, W, C, pt, ph, pw)
        return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(5, 6).flatten(3, 4).flatten(1, 2)


class Modulation(nn.Module):
    """Shifts, scales and gates from the time vector, float32; starts at zero, so a new block passes its input on."""

    def __init__(self, time_dim: int, model_dim: int, num_params: int):
        super().__init__()
        self.num_params = num_params
        self.activation = nn.SiLU()
        self.out_layer = InputPrecisionLinear(time_dim, num_params * model_dim)
        nn.init.zeros_(self.out_layer.weight)
        nn.init.zeros_(self.out_layer.bias)

    def forward(self, time: Tensor) -> tuple[Tensor, ...]:
        """(B, time_dim) -> `num_params` tensors (B, 1, D), dtype of `time`."""
        return self.out_layer(self.activation(time)).unsqueeze(1).chunk(self.num_params, dim=-1)


class FeedForward(nn.Module):
    """Two linear layers without bias around an exact (erf) GELU."""

    def __init__(self, dim: int, ff_dim: int):
        super().__init__()
        self.in_layer = nn.Linear(dim, ff_dim, bias=False)
        self.activation = nn.GELU()
        self.out_layer = nn.Linear(ff_dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return self.out_layer(self.activation(self.in_layer(x)))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """`layer_norm(x) (1 + scale) + shift`, in float32; (B, N, D) with (B, 1, D), returned in the dtype of `x`."""
    normed = F.layer_norm(at_least_float32(x), x.shape[-1:], eps=LAYER_NORM_EPS)
    return (normed * (1 + scale) + shift).to(x.dtype)


def add_gated(x: Tensor, gate: Tensor, out: Tensor) -> Tensor:
    """`x + gate out`, in float32; (B, N, D) with (B, 1, D), returned in the dtype of `x`."""
    return (at_least_float32(x) + gate * out).to(x.dtype)
