"""Where float32 is asked for by name.

Comes in: tensors and layers of any floating dtype. Goes out: the same values, never narrower than float32. The rest of
the network says `at_least_float32` at the places where the released model computed in float32 (time embedding,
modulation, norms, gates, rotary positions), so that `.to(bfloat16)` and `.half()` change what is stored there but not
what is computed. Nothing here depends on `torch.autocast`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        return F.linear(input, self.weight.to(input.dtype), bias)
