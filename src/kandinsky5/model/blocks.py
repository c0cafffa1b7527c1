"""The repeated layers: a text block, a visual block, and the output layer.

Each sub-layer is one stanza: operate on what the stretch before it left, then gate, add, and modulate for the next.
Comes in: token states in the network's dtype, the time vector in float32. Goes out: token states. Nothing here knows of
patches, times or prompts.

Shapes: B batch, N visual tokens, L text tokens, D width.
"""

import math
from collections.abc import Sequence

from torch import Tensor, nn

from kandinsky5.model.attention import Attention
from kandinsky5.model.precision import InputPrecisionLinear
from kandinsky5.model.stretches import EAGER_STRETCHES, Stretches


class VisualBlock(nn.Module):
    """Self-attention over the picture, cross-attention to the text, feed-forward; each shifted, scaled and gated."""

    stretches: Stretches = EAGER_STRETCHES

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
        between = self.stretches
        shift, scale, gate, cross_shift, cross_scale, cross_gate, ff_shift, ff_scale, ff_gate = (
            self.visual_modulation(time).unbind(1)
        )
        rows = between.norm_modulate(visual, shift, scale)

        out = self.self_attention(rows, rotation=rotation)
        visual, rows = between.add_gated_norm_modulate(visual, gate, out, cross_shift, cross_scale)

        out = self.cross_attention(rows, text, text_mask)
        visual, rows = between.add_gated_norm_modulate(visual, cross_gate, out, ff_shift, ff_scale)

        return between.add_gated(visual, ff_gate, self.feed_forward(rows))


class TextBlock(nn.Module):
    """Self-attention over the prompt and feed-forward; modulated by time, so text changes from step to step."""

    stretches: Stretches = EAGER_STRETCHES

    def __init__(self, model_dim: int, time_dim: int, ff_dim: int, head_dim: int):
        super().__init__()
        self.text_modulation = Modulation(time_dim, model_dim, 6)
        self.self_attention = Attention(model_dim, head_dim)
        self.feed_forward = FeedForward(model_dim, ff_dim)

    def forward(self, text: Tensor, text_mask: Tensor | None, time: Tensor, rotation: Tensor) -> Tensor:
        """(B, L, D), (B, L) or None, (B, time_dim) -> (B, L, D); rows where the mask is False are not meaningful."""
        between = self.stretches
        shift, scale, gate, ff_shift, ff_scale, ff_gate = self.text_modulation(time).unbind(1)
        rows = between.norm_modulate(text, shift, scale)

        out = self.self_attention(rows, key_mask=text_mask, rotation=rotation)
        text, rows = between.add_gated_norm_modulate(text, gate, out, ff_shift, ff_scale)

        return between.add_gated(text, ff_gate, self.feed_forward(rows))


class OutputLayer(nn.Module):
    """Token states back to latent patches."""

    stretches: Stretches = EAGER_STRETCHES

    def __init__(self, model_dim: int, time_dim: int, channels: int, patch_size: Sequence[int]):
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.modulation = Modulation(time_dim, model_dim, 2)
        self.out_layer = InputPrecisionLinear(model_dim, math.prod(patch_size) * channels)

    def forward(self, visual: Tensor, time: Tensor, grid: Sequence[int]) -> Tensor:
        """(B, N, D), (B, time_dim), patches an axis (T, H, W) -> (B, T pt, H ph, W pw, C), dtype of `visual`."""
        shift, scale = self.modulation(time).unbind(1)
        patches = self.out_layer(self.stretches.norm_modulate(visual, shift, scale))
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

    def forward(self, time: Tensor) -> Tensor:
        """(B, time_dim) -> (B, num_params, D), dtype of `time`."""
        return self.out_layer(self.activation(time)).unflatten(-1, (self.num_params, -1))


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
