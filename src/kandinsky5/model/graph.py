"""A function of tensors, captured once as a CUDA graph and replayed: no launch waits for Python.

Comes in: a function that reads nothing but its arguments and fixed weights, and tensors of fixed shapes. Goes out: what
it returns. A graph holds addresses, so who owns one must drop it when weights move. Refuses to know: networks.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

PLAIN_CALLS: Final = 2
"""Of each shape before it is captured. Libraries make their handles there and Triton its kernels, which a capture could
not, and a shape that does not come again costs nothing."""

KEPT: Final = 4
"""Shapes of a network's evaluations that are replayed without a new capture."""

REMEMBERED: Final = 64
"""Shapes that are counted at a time; prompts come in any length."""

PLENTY: Final = 0.25
"""Of a device's memory, free when a shape is captured that nobody insisted on. Two rows of 4096 tokens at the published
width keep 1.7 GiB, 2.5 with float8 (docs/performance.md)."""


class CapturedCall:
    """One graph and the places its inputs are copied to. The function must have run with such inputs before.

    Graphs of one `pool` (`torch.cuda.graph_pool_handle`) keep what they compute on the way in the same memory: each
    writes it before it reads it, they run one after another, and a result is copied before the next one runs.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor | None], pool: Any = None):
        with torch.inference_mode(False):  # a tensor made in that mode cannot be written to outside of it
            self._inputs = [None if tensor is None else torch.empty_like(tensor) for tensor in inputs]
        self._fill(inputs)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """As the function; inputs of the shapes it was captured with. The result is the caller's own."""
        self._fill(inputs)
        self._graph.replay()
        return self._output.clone()

    def _fill(self, inputs: Sequence[Tensor | None]) -> None:
        for place, tensor in zip(self._inputs, inputs, strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)


class Replays:
    """The captured calls of one function, by the shapes it was given.

    Args:
        insisted: capture whatever memory is left; otherwise only while there is `PLENTY`.
        kept: shapes that are replayed without a new capture; the one that was not asked for the longest goes first.
        capture: (function, inputs, pool) -> the captured call.
    """

    def __init__(
        self,
        *,
        insisted: bool,
        kept: int = KEPT,
        capture: Callable[..., Callable[..., Tensor]] = CapturedCall,
    ):
        self._insisted = insisted
        self._kept = kept
        self._capture = capture
        self._calls: dict[Hashable, Callable[..., Tensor]] = {}
        self._seen: Counter[Hashable] = Counter()
        self._pool: Any = None
        self._cannot = False

    def __len__(self) -> int:
        return len(self._calls)

    def forget(self) -> None:
        """Drop all, for what they hold the addresses of is no longer there."""
        self._calls.clear()
        self._seen.clear()

    def of(
        self, function: Callable[..., Tensor], inputs: Sequence[Tensor | None], computing: Hashable = None
    ) -> Callable[..., Tensor]:
        """What to call instead of the function: itself, or its replay for inputs of these shapes.

        Args:
            function: to call.
            inputs: what it will be called with.
            computing: what else decides which kernels it launches.

        Raises:
            torch.OutOfMemoryError: from a capture.
        """
        key = (computing, *(None if x is None else (x.shape, x.dtype, x.device) for x in inputs))
        if key in self._calls:
            self._calls[key] = self._calls.pop(key)  # the last one is the one asked for last
            return self._calls[key]
        if self._cannot:
            return function
        if len(self._seen) == REMEMBERED and key not in self._seen:
            self._seen.clear()
        self._seen[key] += 1
        if self._seen[key] <= PLAIN_CALLS or not (self._insisted or _plenty(inputs)):
            return function
        if len(self._calls) == self._kept:
            del self._calls[next(iter(self._calls))]
        if not self._calls:
            self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None
        try:
            self._calls[key] = self._capture(function, inputs, self._pool)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("No CUDA graphs: %s", str(error).splitlines()[0])
            self._cannot = True
            return function
        del self._seen[key]
        return self._calls[key]


def _plenty(inputs: Sequence[Tensor | None]) -> bool:
    """Whether so much of the device's memory is unused that a graph's can be spared."""
    device = next(x.device for x in inputs if x is not None)
    free, all_of_it = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + idle >= PLENTY * all_of_it
