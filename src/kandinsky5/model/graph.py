"""A function of tensors, captured once as a CUDA graph and replayed: no launch waits for Python.

Comes in: a function that reads nothing but its arguments and fixed weights, and tensors of fixed shapes. Goes out: what
it returns. A graph holds addresses, so who owns it must drop it when weights move. Refuses to know: networks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

WARM_UP_RUNS = 2
"""Before capture, on a stream of its own: libraries make their handles, Triton its kernels."""


class CapturedCall:
    """One graph and the places its inputs are copied to.

    Graphs of one `pool` (`torch.cuda.graph_pool_handle`) keep what they compute on the way in the same memory: each
    writes it before it reads it, they run one after another, and a result is copied before the next one runs.
    """

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Tensor | None], pool: Any = None):
        self._inputs = [None if tensor is None else tensor.clone() for tensor in inputs]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                function(*self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, pool=pool):
            self._output = function(*self._inputs)

    def __call__(self, *inputs: Tensor | None) -> Tensor:
        """As the function; inputs of the shapes it was captured with. The result is the caller's own."""
        for place, tensor in zip(self._inputs, inputs, strict=True):
            if place is not None and tensor is not None:
                place.copy_(tensor)
        self._graph.replay()
        return self._output.clone()
