"""Self-attention in float8 (E4M3), by cuDNN: queries, keys, values and the weights of their sums.

Comes in: heads after the products, the head norms' weights, a rotation, scales. Goes out: float8 rows for the product
behind it. A scale is made of the weights alone, so that nothing waits for a pass over activations: a normed query or
key of K channels is at most sqrt(K) times its norm's largest weight, and a value of a token of deviation 1 at most
sqrt(D) times the longest row of its layer's matrix. float8 keeps its four binary digits over five orders of magnitude,
so a scale that leaves room costs none of them. Refuses to know: which network, which steps. Importing this file needs
neither Triton nor cuDNN.

Shapes: B batch, N tokens, D width, A heads of K channels.
"""

import logging
import math
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any, Final, Self

import torch
from torch import Tensor

from kandinsky5.model.scaled import LARGEST, ScaledLinear, ScaledRows

logger = logging.getLogger(__name__)

VALUE_ROOM: Final = 2.0
"""How far beyond the bound above a value may be before it is clipped."""

SHARE_SCALE: Final = LARGEST
"""Of a sum's weights, which are at most 1."""


@dataclass(frozen=True, kw_only=True)
class HeadScales:
    """What the queries, keys and values of one attention are multiplied by on their way to float8."""

    query: float
    key: float
    value: float
    _on: dict[torch.device, tuple[Tensor, ...]] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, attention: Any) -> Self:
        """Of an attention whose value layer is a `ScaledLinear`."""
        layer: ScaledLinear = attention.to_value
        longest = (layer.weight.to(torch.float32).norm(dim=1) * layer.scale).max()
        bias = 0.0 if layer.bias is None else float(layer.bias.abs().max())
        most = float(longest) * math.sqrt(layer.in_features) + bias
        return cls(
            query=_bound(attention.query_norm.weight),
            key=_bound(attention.key_norm.weight),
            value=LARGEST / (VALUE_ROOM * most) if most > 0 else 1.0,
        )

    def numbers(self, device: torch.device) -> tuple[Tensor, ...]:
        """One over query, key, value and sums' weights, the scale of those weights and of the result, on a device.

        Made once for each, so that a CUDA graph may hold their addresses for as long as the attention lives.
        """
        if device not in self._on:
            given = (1 / self.query, 1 / self.key, 1 / self.value, 1 / SHARE_SCALE, SHARE_SCALE, self.value)
            self._on[device] = tuple(
                torch.full((1, 1, 1, 1), number, dtype=torch.float32, device=device) for number in given
            )
        return self._on[device]


def why_no_float8_attention(device: torch.device) -> str | None:
    """Why a device does not attend in float8, in words; None where it does."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "float8 attention needs a CUDA device"
    if torch.cuda.get_device_capability(device) < (9, 0):
        return "float8 attention needs compute capability 9.0 (Hopper) or later"
    if find_spec("cudnn") is None:
        return "float8 attention needs cuDNN's front end: pip install kandinsky5[fp8]"
    return _why_no_cudnn()


def attend_self(
    query: Tensor,
    query_weight: Tensor,
    key: Tensor,
    key_weight: Tensor,
    value: Tensor,
    rotation: Tensor,
    scales: HeadScales,
) -> ScaledRows | None:
    """Attention of all tokens to each other, in float8 throughout; None where there is no kernel for it.

    There is one for bfloat16, K a power of two, and what shapes cuDNN takes.

    Args:
        query, key, value: (B, N, A, K), as the products return them.
        query_weight, key_weight: (K,) of the head norms.
        rotation: (N, K / 2, 2) of the tokens.
        scales: of this attention.

    Returns:
        (B, N, A K) rows, each at one over the values' scale: no sum of values is larger than the largest.
    """
    B, N, A, K = query.shape
    fits = query.dtype == torch.bfloat16 and K & (K - 1) == 0
    plan = plan_of(B, N, A, K, query.device) if fits else None
    if plan is None:
        return None
    from kandinsky5.model.triton_kernels import heads_in_float8

    given = (
        heads_in_float8(query, query_weight, rotation, scales.query),
        heads_in_float8(key, key_weight, rotation, scales.key),
        heads_in_float8(value, None, None, scales.value),
    )
    rows = torch.full((B, N, 1), 1 / scales.value, dtype=torch.float32, device=query.device)
    return ScaledRows(
        values=plan(given, scales.numbers(query.device)).flatten(-2), scale=rows, dtype=query.dtype
    )


class Plan:
    """cuDNN's kernel for one shape on one device (cudnn-frontend, `pygraph.sdpa_fp8`)."""

    def __init__(self, B: int, N: int, A: int, K: int, device: torch.device):
        """Raises what cuDNN raises for a shape that it has no kernel for."""
        import cudnn

        self._handle = _handle(device)
        number = cudnn.data_type.FLOAT
        graph = cudnn.pygraph(
            io_data_type=cudnn.data_type.FP8_E4M3,
            intermediate_data_type=number,
            compute_data_type=number,
            handle=self._handle,
        )
        heads = {"dim": (B, A, N, K), "stride": (N * A * K, K, A * K, 1)}  # of (B, N, A, K) in memory
        one = {"dim": (1, 1, 1, 1), "stride": (1, 1, 1, 1), "data_type": number}
        self._given = [graph.tensor(**heads, data_type=cudnn.data_type.FP8_E4M3) for _ in range(3)]
        names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
        scales = {name: graph.tensor(**one) for name in names}
        self._numbers = list(scales.values())
        query, key, value = self._given
        out, _, *largest = graph.sdpa_fp8(
            q=query, k=key, v=value, **scales, attn_scale=1 / math.sqrt(K), generate_stats=False
        )
        out.set_output(True).set_dim(heads["dim"]).set_stride(heads["stride"])
        out.set_data_type(cudnn.data_type.FP8_E4M3)
        for found in largest:  # of sums' weights and of the result, which cuDNN insists on telling
            found.set_output(True).set_dim(one["dim"]).set_stride(one["stride"]).set_data_type(number)
        graph.build([cudnn.heur_mode.A])
        self._graph, self._out, self._largest = graph, out, largest
        self._told = [torch.zeros(1, 1, 1, 1, device=device) for _ in largest]

    def __call__(self, given: tuple[Tensor, ...], numbers: tuple[Tensor, ...]) -> Tensor:
        """Queries, keys and values (B, N, A, K) float8 -> (B, N, A, K) float8, on the current stream."""
        import cudnn

        out = torch.empty_like(given[0])
        room = torch.empty(max(1, self._graph.get_workspace_size()), dtype=torch.uint8, device=out.device)
        cudnn.set_stream(handle=self._handle, stream=torch.cuda.current_stream(out.device).cuda_stream)
        places = [*self._given, *self._numbers, self._out, *self._largest]
        tensors = [*given, *numbers, out, *self._told]
        self._graph.execute(dict(zip(places, tensors, strict=True)), room, handle=self._handle)
        return out


@cache
def plan_of(B: int, N: int, A: int, K: int, device: torch.device) -> Plan | None:
    """The kernel for a shape, built when it is first asked for; None, said once, where cuDNN has none."""
    try:
        with torch.cuda.device(device):
            return Plan(B, N, A, K, device)
    except Exception as error:  # cuDNN's own classes, which are not importable everywhere
        reason = " ".join(str(error).split())[:200]
        logger.warning("No float8 attention for %d tokens, bfloat16 instead: %s", N, reason)
        return None


def _bound(weight: Tensor) -> float:
    """The scale of normed heads: none of their K channels is above sqrt(K) times the largest weight."""
    most = math.sqrt(len(weight)) * float(weight.abs().max())
    return LARGEST / most if most > 0 else 1.0


@cache
def _handle(device: torch.device) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


@cache
def _why_no_cudnn() -> str | None:
    try:
        import cudnn

        version = cudnn.backend_version()
    except Exception as error:  # a library that is missing below it, or too old
        return (
            f"cuDNN's front end does not load: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )
    if version < 90100 or version == 91000:
        return f"float8 attention needs cuDNN 9.1 or later, and not 9.10.0; this is {version}"
    return None
