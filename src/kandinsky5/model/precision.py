"""Where float32 is asked for by name.

Comes in: tensors and layers of any floating dtype. Goes out: the same values, never narrower than float32. The rest of
the network uses these at the places where the released model computed in float32 (time embedding, modulation, norms,
gates, rotary positions), so that `.to(bfloat16)` and `.half()` change what is stored there but not what is computed.
Nothing here depends on `torch.autocast`.

The layers are modules that are called, not weights that a parent reads: offload hooks bring a leaf's weights to the
device when the leaf is called.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5

RMS_NORM_EPS = torch.finfo(torch.float32).eps
"""The authors' RMSNorm has no eps of its own: torch then takes that of the dtype it computes in, float32."""


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it came in float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class InputPrecisionLinear(nn.Linear):
    """A linear layer that computes in the dtype of its input, whatever dtype its weights are stored in.

    The released network runs its small layers (time embedding, modulation) in float32; stored in bfloat16 they are
    widened at use, which loses nothing, instead of narrowing the input.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), same dtype."""
        bias = None if self.bias is None else self.bias.to(input.dtype)
        weight, kind = self.weight.to(input.dtype), input.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return F.linear(input, weight, bias)
        with torch.autocast(kind, enabled=False):  # which of what is written in float32 narrows products only
            return F.linear(input, weight, bias)


class PreciseLayerNorm(nn.LayerNorm):
    """Layer norm in float32 or wider, returned in it."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., D) -> (..., D), at least float32."""
        x = at_least_float32(input)
        return F.layer_norm(
            x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps
        )
