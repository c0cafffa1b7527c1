"""What depends on prompt and time alone, computed for many times of a run at once.

Comes in: the network, encoded prompts, the times that a run will visit. Goes out: for a step, its time vectors, its
text after the text blocks, and every block's shifts, scales and gates. The network's own layers compute them, so
adapters, quantised layers and stored dtypes are what they are there; one product a layer serves a window of steps, and
a step then reads none of the modulation's weights. Refuses to know: latents, kernels.

Shapes: S steps of a window, B rows, L text tokens, D width, V visual blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kandinsky5.model.embeddings import text_rotation

VISUAL_PARAMS = 9
"""Shift, scale and gate of a visual block's three sub-layers."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """The tensors of one forward that do not change from step to step, as `Kandinsky5Transformer3DModel` takes them."""

    text: Tensor
    pooled: Tensor
    positions: Tensor
    mask: Tensor | None

    def is_same(self, other: "Prompt") -> bool:
        """Whether these are the same tensors, and nobody has written to them since."""
        pairs = [(getattr(self, name), getattr(other, name)) for name in ("text", "pooled", "mask")]
        if not all(a is b for a, b in pairs):
            return False
        # Comparing waits for the device; a run gives the same tensor at each step.
        return self.positions is other.positions or torch.equal(self.positions, other.positions)

    def padded(self, multiple: int) -> "Prompt":
        """The same with text for a multiple of so many tokens, where a mask says which of them count."""
        room = -self.text.shape[1] % multiple
        if self.mask is None or room == 0:
            return self
        return replace(
            self,
            text=F.pad(self.text, (0, 0, 0, room)),
            positions=F.pad(self.positions, (0, room)),
            mask=F.pad(self.mask, (0, room)),
        )


@dataclass(frozen=True, kw_only=True)
class Step:
    """The table's row of one step.

    time: (B, time_dim) float32 or wider.
    text: (B, L, D) in the dtype of the blocks.
    mask: (B, L) bool, of the text, or None.
    modulation: (B, V, 9, D), dtype of `time`.
    """

    time: Tensor
    text: Tensor
    mask: Tensor | None
    modulation: Tensor


class PromptTable:
    """The rows of a window of steps for one prompt; the window moves on when a time outside it is asked for.

    `largest_bytes` of a window; `multiple` of tokens that masked text is padded to (`Prompt.padded`).
    """

    def __init__(self, network: Any, prompt: Prompt, *, largest_bytes: int, multiple: int = 1):
        self.prompt = prompt
        self._padded = prompt.padded(multiple)
        self._weights = _weights(network)
        self._states = self._states_now(prompt)
        self._steps: dict[tuple[float, ...], Step] = {}
        rows, tokens = self._padded.text.shape[:2]
        itemsize = network.text_embeddings.norm.weight.element_size()
        self._window = steps_a_window(network.config, rows, tokens, itemsize, largest_bytes)

    def serves(self, prompt: Prompt) -> bool:
        """Whether the table was made of exactly these tensors and of the network's weights, as they are now."""
        return self.prompt.is_same(prompt) and self._states_now(prompt) == self._states

    def _states_now(self, prompt: Prompt) -> list[tuple[int, torch.dtype]]:
        given = [tensor for tensor in (prompt.text, prompt.pooled, prompt.mask) if tensor is not None]
        return [_state(tensor) for tensor in (*given, *self._weights)]

    def step(self, network: Any, times: tuple[float, ...], ahead: Sequence[tuple[float, ...]]) -> Step:
        """The row of `times` (one a row of the prompt, 1000 t).

        A row that is not there is computed together with those of the `ahead` that a window has room for.
        """
        if times not in self._steps:
            window = [times, *ahead][: self._window]
            self._steps.clear()  # before the next are made, so that never two windows are in memory
            self._steps = dict(zip(window, _rows(network, self._padded, window), strict=True))
        return self._steps[times]


def bytes_a_step(config: Any, rows: int, tokens: int, itemsize: int) -> int:
    """Of a step's row in the table: a network's config, rows and text tokens of the prompt, bytes of a text value."""
    modulation = config.num_visual_blocks * VISUAL_PARAMS * torch.float32.itemsize
    return rows * config.model_dim * (modulation + tokens * itemsize)


def steps_a_window(config: Any, rows: int, tokens: int, itemsize: int, largest_bytes: int) -> int:
    """How many steps' rows are made at once, at least one; arguments as `bytes_a_step`."""
    return max(1, largest_bytes // bytes_a_step(config, rows, tokens, itemsize))


def _rows(network: Any, prompt: Prompt, window: Sequence[tuple[float, ...]]) -> list[Step]:
    """The rows of all times of a window, which are rows of one batch to the network's layers."""
    S, B = len(window), len(prompt.text)
    dtype = network.text_embeddings.norm.weight.dtype
    wide = torch.promote_types(dtype, torch.float32)
    times = torch.tensor(window, dtype=wide, device=prompt.pooled.device).flatten()
    time = network._time_vector(times, prompt.pooled.to(dtype).repeat(S, 1))
    mask = None if prompt.mask is None else prompt.mask.repeat(S, 1)
    text = network._embedded_text(prompt).repeat(S, 1, 1)
    rotation = text_rotation(prompt.positions, sum(network.config.axes_dims))
    for block in network.text_transformer_blocks:
        text = block(text, mask, time, rotation)
    shape = (S * B, network.config.num_visual_blocks, VISUAL_PARAMS, network.config.model_dim)
    modulation = time.new_empty(shape)
    for i, block in enumerate(network.visual_transformer_blocks):
        modulation[:, i] = block.visual_modulation(time)
    parts = (x.unflatten(0, (S, B)) for x in (time, text, modulation))
    return [
        Step(time=time, text=text, mask=prompt.mask, modulation=rows)
        for time, text, rows in zip(*parts, strict=True)
    ]


def _weights(network: Any) -> list[Tensor]:
    """What `_rows` computes with."""
    parts = [network.time_embeddings, network.pooled_text_embeddings, network.text_embeddings]
    parts += [*network.text_transformer_blocks]
    parts += [block.visual_modulation for block in network.visual_transformer_blocks]
    return [parameter for part in parts for parameter in part.parameters()]


def _state(tensor: Tensor) -> tuple[int, torch.dtype]:
    """How often a tensor was written to, and its dtype; where it is does not matter, weights come and go.

    Tensors of inference mode do not count; who writes to one replaces it (`pipelines.callbacks`).
    """
    return -1 if tensor.is_inference() else tensor._version, tensor.dtype
