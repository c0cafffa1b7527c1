"""The fast way through the network: the same arithmetic in fewer passes over memory.

Comes in: a network, and what its `forward` was given. Goes out: the velocity. Prompt and times are computed ahead
(`prompt_table`), the stretches between products in one pass each (`kernels`), layers that read the same rows in one
product (`products`), and on request the whole as a CUDA graph (`graph`). It holds no weights: each step reads them from
the network's layers, so casts, moves, merged and unmerged adapters count at once. The network calls it from inside its
own `forward`, so hooks on the network fire. Refuses to know: guidance, schedules, who chose it (`placement`).

Shapes: B batch, N visual tokens, L text tokens, D width, A heads of K channels.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from kandinsky5.model.attention import back_end_of
from kandinsky5.model.graph import Replays
from kandinsky5.model.kernels import Kernels, Rows, kernels_for
from kandinsky5.model.products import lay_together, product, products, read_float8
from kandinsky5.model.prompt_table import Prompt, PromptTable, Step
from kandinsky5.streaming import in_turn, is_arrival, is_streamed

logger = logging.getLogger(__name__)

TABLE_BYTES: Final = 2**27
"""Memory for a prompt's window of steps: 12 steps of two rows at the published size."""

TEXT_MULTIPLE: Final = 32
"""Of tokens, that masked text is padded to where graphs are replayed: prompts of other lengths find the same graph."""

NATIVE: Final = "native"
"""torch's own attention, the back end where nobody chose another: the kernels may compute what it would."""

KEPT_TABLES: Final = 2
"""The two branches of a run that evaluates them in turn."""


class FastPath:
    """What `Kandinsky5Transformer3DModel.fast_path` is set to.

    Evaluations from several threads take turns, since a graph reads its inputs from one place. A copy, as that of a
    network that is copied, has the settings and nothing that is kept.

    Args:
        kernels: who computes the stretches between products; None is the fastest on the device of the latents, which
            an offloaded network reaches only when it is called.
        float8: the network has float8 layers, and the kernels quantise for them.
        float8_attention: visual tokens attend to each other in float8 where a device can.
        graphs: replay CUDA graphs, one a size, on CUDA devices; None is where there is plenty of memory.
    """

    def __init__(
        self,
        kernels: Kernels | None = None,
        *,
        float8: bool = False,
        float8_attention: bool = False,
        graphs: bool | None = False,
    ):
        self.kernels = kernels
        self.float8 = float8
        self.float8_attention = float8_attention
        self._graphs = graphs
        self.replays = None if graphs is False else Replays(insisted=graphs is True)
        self._turn = threading.RLock()
        self._times: Tensor | None = None
        self._ahead: list[tuple[float, ...]] = []
        self._tables: list[PromptTable] = []
        self._weights: tuple[int, ...] = ()
        self._seen: tuple[int, int] | None = None
        self._stays = False
        self._said: str | None = None

    def __reduce__(self) -> tuple[Callable[[], "FastPath"], tuple[()]]:
        fresh = partial(
            type(self),
            self.kernels,
            float8=self.float8,
            float8_attention=self.float8_attention,
            graphs=self._graphs,
        )
        return fresh, ()

    @property
    def mode(self) -> str:
        """What `placement.use_mode` calls it."""
        return "fp8-attention" if self.float8_attention else "fp8" if self.float8 else "exact"

    def expect(self, times: Tensor) -> None:
        """The times (1000 t) that a run is about to visit, in their order; none when it is over.

        Only for these is anything kept from one evaluation to the next, and not while adapters are loaded, whose
        strength may change from step to step.

        Args:
            times: (S,), those of all rows, or (S, B), each row's own. An evaluation at a view of one of them is known
                by its place, without waiting for the device.
        """
        with self._turn:
            self._times = times
            self._ahead = [tuple(row) for row in times.reshape(len(times), -1).tolist()] if len(times) else []
            self._tables.clear()
            self._seen = None

    def takes(self, network: Any, *inputs: Tensor) -> bool:
        """Whether the network can be evaluated this way now. Why not is logged when it changes.

        A network that is compiled as a whole is compiled the ordinary way: a step here is not the same twice.
        """
        if torch.compiler.is_compiling():
            return False
        obstacle = self.obstacle(network, *inputs)
        if obstacle is not None and obstacle != self._said:
            logger.warning("Not the fast way through the network: %s.", obstacle)
        self._said = obstacle
        return obstacle is None

    def obstacle(self, network: Any, *inputs: Tensor) -> str | None:
        """Why the network cannot be evaluated at such inputs now, in words; None where it can."""
        if torch.is_grad_enabled() and any(x.requires_grad for x in (*inputs, *network.parameters())):
            return "gradients are wanted, and the fused kernels have none"
        if any(block._compiled_call_impl is not None for block in network.visual_transformer_blocks):
            return "its blocks are compiled"
        if any(map(_is_hooked, _parts(network))):
            return (
                "its layers are offloaded or hooked one by one, and moving them takes longer than computing"
            )
        return None

    def __call__(
        self,
        network: Any,
        latents: Tensor,
        prompt: Prompt,
        timestep: Tensor | float | int,
        rotation: Tensor,
    ) -> Tensor:
        """The velocity (B, T, H, W, C) in the dtype of the latents, which the network has checked.

        Args:
            network: a `Kandinsky5Transformer3DModel`.
            latents: (B, T, H, W, channels).
            prompt: B rows.
            timestep: 1000 t, a scalar or (B,).
            rotation: (N, K / 2, 2) of the visual tokens.
        """
        with self._turn:
            times = self._numbers(timestep, len(latents))
            adapted = getattr(network, "_hf_peft_config_loaded", False)
            step = self._step(network, prompt, times, keep=not adapted)
            inputs = (latents, step.text, step.mask, step.time, step.modulation, rotation)
            kernels = self.kernels or kernels_for(
                latents.device, float8=self.float8, float8_attention=self.float8_attention
            )
            evaluate: Callable[..., Tensor] = partial(velocity, network, kernels)
            if self.replays is not None and latents.is_cuda and not adapted:
                # The processors of the first block stand for the others'.
                block = network.visual_transformer_blocks[0]
                back_ends = [
                    back_end_of(block.self_attention.processor),
                    back_end_of(block.cross_attention.processor),
                ]
                if None not in back_ends and self._weights_stay(network):
                    narrowed = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
                    evaluate = self.replays.of(evaluate, inputs, (kernels, narrowed, *back_ends))
            return evaluate(*inputs)

    def _numbers(self, timestep: Tensor | float | int, rows: int) -> tuple[float, ...]:
        """The time of each row. Those expected are known by their place in that tensor: nothing waits for them."""
        place = self._place(timestep)
        if place is not None:
            return _each(self._ahead[place], rows)
        given = torch.as_tensor(timestep).reshape(-1).tolist()
        return tuple(given * rows if len(given) == 1 else given)

    def _place(self, timestep: Tensor | float | int) -> int | None:
        """Which of the expected times a tensor is a view of; None if it is of none."""
        known = self._times
        if (
            known is None
            or not isinstance(timestep, Tensor)
            or timestep.untyped_storage().data_ptr() != known.untyped_storage().data_ptr()
        ):
            return None
        place, rest = divmod(int(timestep.storage_offset() - known.storage_offset()), known.stride(0))
        of_a_row = (
            known.ndim == 2 and timestep.shape == known.shape[1:] and timestep.stride() == known.stride()[1:]
        )
        of_all = known.ndim == 1 and not any(timestep.stride())
        return place if rest == 0 and 0 <= place < len(known) and (of_a_row or of_all) else None

    def _weights_stay(self, network: Any) -> bool:
        """Whether a graph may hold the weights' addresses. Those that have moved since end the graphs that are kept.

        A run looks through all weights once, and at each step at the first and the last of them.
        """
        first, last = network.visual_embeddings.in_layer.weight, network.out_layer.out_layer.weight
        seen = first.data_ptr(), last.data_ptr()
        if seen != self._seen or not self._ahead:
            self._seen, self._stays = seen, not is_streamed(network)
            weights = tuple(tensor.data_ptr() for tensor in (*network.parameters(), *network.buffers()))
            if weights != self._weights:
                if self.replays is not None:
                    self.replays.forget()
                self._weights = weights
        return self._stays

    def _step(self, network: Any, prompt: Prompt, times: tuple[float, ...], *, keep: bool) -> Step:
        """The table's row for these times, made alone when it may not be kept or nobody announced them."""
        multiple = 1 if self.replays is None else TEXT_MULTIPLE
        if not keep:
            self._tables.clear()  # an adapter that is merged now is in the weights later, where nobody can see it
        expected = [_each(ahead, len(times)) for ahead in self._ahead] if keep else []
        if times not in expected:
            return PromptTable(network, prompt, largest_bytes=0, multiple=multiple).step(network, times, [])
        table = next((table for table in self._tables if table.serves(prompt)), None)
        if table is None:
            table = PromptTable(network, prompt, largest_bytes=TABLE_BYTES, multiple=multiple)
            self._tables = [table, *self._tables][:KEPT_TABLES]
        return table.step(network, times, expected[expected.index(times) + 1 :])


def _each(times: tuple[float, ...], rows: int) -> tuple[float, ...]:
    """The time of each row, where one may stand for all."""
    return times * rows if len(times) == 1 else times


def prepare_for_speed(network: Any) -> None:
    """Lay the layers that read the same rows behind each other in memory. Changes no value.

    Blocks that stream are laid out so when they arrive.
    """
    for block in network.visual_transformer_blocks:
        if is_streamed(block):
            continue
        mine, text = block.self_attention, block.cross_attention
        lay_together([mine.to_query, mine.to_key, mine.to_value])
        lay_together([text.to_key, text.to_value])


def velocity(
    network: Any,
    kernels: Kernels,
    latents: Tensor,
    text: Tensor,
    mask: Tensor | None,
    time: Tensor,
    modulation: Tensor,
    rotation: Tensor,
) -> Tensor:
    """One evaluation; (B, T, H, W, C) in the dtype of `latents`.

    Args:
        network: whose layers multiply.
        kernels: who computes the stretches between the products.
        latents: (B, T, H, W, channels).
        text: (B, L, D), after the text blocks.
        mask: (B, L) bool, or None.
        time: (B, time_dim).
        modulation: (B, V, 9, D), of all visual blocks.
        rotation: (N, K / 2, 2) of the visual tokens.
    """
    ends_dtype = torch.promote_types(latents.dtype, text.dtype)
    patches = network.visual_embeddings(latents.to(ends_dtype)).to(text.dtype)
    grid, x = patches.shape[1:4], patches.flatten(1, 3)
    del (
        patches
    )  # what nobody reads any more makes room for what comes: here and below nothing outlives its use
    blocks = network.visual_transformer_blocks
    rows: Rows | None = None
    for i, block in enumerate(in_turn(blocks)):
        # shift, scale, gate of self-attention, of cross-attention, of the feed-forward
        s, c, s_gate, xs, xc, x_gate, fs, fc, f_gate = modulation[:, i].unbind(1)
        if rows is None:
            rows = kernels.norm_modulate(x, s, c, read_float8(_self_layers(block)))
        x, rows = kernels.add_gated_norm_modulate(
            x,
            s_gate,
            _self_attention(kernels, block.self_attention, rows, rotation),
            *(xs, xc, read_float8([block.cross_attention.to_query])),
        )
        x, rows = kernels.add_gated_norm_modulate(
            x,
            x_gate,
            _cross_attention(kernels, block.cross_attention, rows, text, mask),
            *(fs, fc, read_float8([block.feed_forward.in_layer])),
        )
        changed = _feed_forward(kernels, block.feed_forward, rows)
        if i + 1 == len(blocks):
            x = kernels.add_gated(x, f_gate, changed)
        else:
            following = modulation[:, i + 1].unbind(1)
            quantise = read_float8(_self_layers(blocks[i + 1]))
            x, rows = kernels.add_gated_norm_modulate(
                x, f_gate, changed, following[0], following[1], quantise
            )
        del changed
    return network.out_layer(x.to(ends_dtype), time, grid).to(latents.dtype)


def _self_attention(kernels: Kernels, attention: Any, rows: Rows, rotation: Tensor) -> Tensor:
    layers = [attention.to_query, attention.to_key, attention.to_value]
    query, key, value = (_heads(attention, x) for x in products(layers, rows))
    scales = attention.head_scales
    if kernels.attend_self is not None and scales is not None and back_end_of(attention.processor) == NATIVE:
        weights = attention.query_norm.weight, attention.key_norm.weight
        found = kernels.attend_self(query, weights[0], key, weights[1], value, rotation, scales)
        if found is not None:
            return product(attention.out_layer, found)
    query = kernels.norm_rotate(query, attention.query_norm.weight, rotation)
    key = kernels.norm_rotate(key, attention.key_norm.weight, rotation)
    return _attended(kernels, attention, query, key, value, None)


def _cross_attention(
    kernels: Kernels, attention: Any, rows: Rows, text: Tensor, mask: Tensor | None
) -> Tensor:
    query = _heads(attention, product(attention.to_query, rows))
    key, value = (_heads(attention, x) for x in products([attention.to_key, attention.to_value], text))
    key = kernels.norm_rotate(key, attention.key_norm.weight, None)
    if back_end_of(attention.processor) == NATIVE:
        quantise = read_float8([attention.out_layer])
        rows = kernels.attend_text(query, attention.query_norm.weight, key, value, mask, quantise)
        return product(attention.out_layer, rows)
    query = kernels.norm_rotate(query, attention.query_norm.weight, None)
    return _attended(kernels, attention, query, key, value, mask)


def _attended(
    kernels: Kernels, attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> Tensor:
    out = attention.processor(query, key, value, mask).flatten(-2)
    rows = kernels.quantise(out) if read_float8([attention.out_layer]) else out
    return product(attention.out_layer, rows)


def _feed_forward(kernels: Kernels, layers: Any, rows: Rows) -> Tensor:
    quantise = read_float8([layers.out_layer])
    return product(layers.out_layer, kernels.gelu(product(layers.in_layer, rows), quantise))


def _heads(attention: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (attention.num_heads, -1))


def _self_layers(block: Any) -> list[nn.Module]:
    attention = block.self_attention
    return [attention.to_query, attention.to_key, attention.to_value]


def _parts(network: Any) -> Iterator[nn.Module]:
    """Every block, and all layers of the first, which stand for the others': what hooks one hooks them all."""
    yield from network.visual_transformer_blocks
    for block in network.visual_transformer_blocks[:1]:
        yield from block.modules()


def _is_hooked(module: nn.Module) -> bool:
    """Whether accelerate, diffusers or a user does something around the module's own forward.

    Weights that only arrive there (`streaming`) do not count: `velocity` has them arrive too.
    """
    registry = getattr(module, "_diffusers_hook", None)
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return bool(
        hasattr(module, "_hf_hook")
        or (registry is not None and registry.hooks)
        or not all(map(is_arrival, hooks))
    )
