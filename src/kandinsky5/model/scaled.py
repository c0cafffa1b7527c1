"""Linear layers whose weights are float8 with a scale for each output channel, and the rows they multiply.

Comes in: a linear layer, or rows of activations. Goes out: a layer of half the size or less, or float8 rows with
a scale each, and their product in the network's dtype. A row's scale is its largest magnitude over 448, the largest
float8 number (OCP 8-bit floating point, E4M3), so nothing overflows and no scale is shared between tokens. Refuses to
know: which layers of a network are worth it (`fast`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from kandinsky5.errors import RequestError

FLOAT8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FLOAT8).max
LEAST_SCALE = 1e-12
"""Of a row of zeros; far below what float8 resolves of any other."""


@dataclass(frozen=True, kw_only=True)
class ScaledRows:
    """Rows of activations in float8.

    values: (..., D) float8.
    scale: (..., 1) float32; a row is `values scale`.
    dtype: that a product of them is returned in.
    """

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    def widened(self) -> Tensor:
        """(..., D) float32."""
        return self.values.to(torch.float32) * self.scale


def quantise_rows(x: Tensor, dtype: torch.dtype) -> ScaledRows:
    """Each row of `x` (..., D) rounded to float8 at its own scale; a row that is not finite stays not finite."""
    x = x.to(torch.float32)
    scale = (x.abs().amax(dim=-1, keepdim=True) / LARGEST).clamp(min=LEAST_SCALE)
    return ScaledRows(values=(x * (1 / scale)).clamp(-LARGEST, LARGEST).to(FLOAT8), scale=scale, dtype=dtype)


class ScaledLinear(nn.Module):
    """A linear layer over float8 rows. Rows that come in wider are quantised here.

    weight: (out, in) float8; scale: (out,) float32; bias: (out,) or None, in the network's dtype. Buffers, so that
    the network's dtype stays that of its parameters; `.to(dtype)` moves but never casts weight and scale.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> Self:
        """The layer quantised; one that torchao packed in the same format hands over what it holds."""
        bias = None if layer.bias is None else layer.bias.detach()
        if is_float8_packed(layer):
            weight: Any = layer.weight
            return cls(weight.qdata, weight.scale[:, 0].to(torch.float32), bias)
        rows = quantise_rows(layer.weight.detach(), layer.weight.dtype)
        return cls(rows.values, rows.scale[:, 0], bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) in the dtype of `x`."""
        return self.multiply(quantise_rows(x, x.dtype))

    def multiply(self, rows: ScaledRows) -> Tensor:
        """(..., in) float8 rows -> (..., out) in their `dtype`."""
        return scaled_product(rows, self.weight, self.scale, self.bias)

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Refuse: no loader knows these tensors, and the originals are where the network came from.

        Raises:
            RequestError: always.
        """
        raise RequestError(
            f"Layer {prefix.rstrip('.')} is float8, which no checkpoint holds: save the network before it is put into "
            "fp8, or load it again."
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As `nn.Module`, but a cast of the network reaches the bias only."""
        kept = {"weight": FLOAT8, "scale": torch.float32}

        def moved(tensor: Tensor, dtype: torch.dtype) -> Tensor:
            there = fn(tensor)
            return there if there.dtype == dtype else tensor.to(there.device)

        for name, dtype in kept.items():
            self._buffers[name] = moved(getattr(self, name), dtype)
        if self.bias is not None:
            self._buffers["bias"] = fn(self.bias)
        return self


def is_float8_packed(layer: nn.Linear) -> bool:
    """Whether a layer's weight is torchao's float8 with a scale for each output channel."""
    values, scale = (getattr(layer.weight, name, None) for name in ("qdata", "scale"))
    return (
        isinstance(values, Tensor)
        and isinstance(scale, Tensor)
        and values.dtype == FLOAT8
        and scale.shape == (len(values), 1)
    )


def scaled_product(rows: ScaledRows, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """`rows weight^T + bias` -> (..., out): on float8 units where there are some, else widened to float32.

    Args:
        rows: (..., in).
        weight: (out, in) float8.
        scale: (out,) float32, of the output channels.
        bias: (out,) or None.
    """
    if why_no_float8_products(weight.device, rows.dtype) is not None:
        found = torch.matmul(rows.values.to(torch.float32), weight.to(torch.float32).T) * rows.scale * scale
        return (found if bias is None else found + bias).to(rows.dtype)
    values = rows.values.flatten(0, -2)
    found = torch._scaled_mm(
        values,
        weight.T,
        scale_a=rows.scale.reshape(-1, 1),
        scale_b=scale[None],
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )
    return found.unflatten(0, rows.values.shape[:-1])


def why_no_float8_products(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a device does not multiply float8 rows into this dtype, in words; None where it does."""
    if device.type != "cuda" or torch.version.hip is not None:
        return (
            f"float8 products need a CUDA device, not {device.type if torch.version.hip is None else 'ROCm'}"
        )
    if torch.cuda.get_device_capability(device) < (9, 0):
        return "products of float8 rows with a scale each need compute capability 9.0 (Hopper) or later"
    if dtype != torch.bfloat16:
        return f"float8 products are returned in bfloat16, and the network is in {str(dtype).removeprefix('torch.')}"
    return None
