"""What a computation needs besides weights: the same code, run without storage, while its tensors are counted.

Comes in: components on the meta device and the sizes of a request. Goes out: bytes at the peak of each stage,
operations of a step, and how many steps the fast path prepares at once. What libraries take for themselves (workspaces)
is not seen here. Refuses to know: weights' places.
"""

import json
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kandinsky5.latents import TILE
from kandinsky5.model.fast import KEPT_TABLES, TABLE_BYTES, FastPath
from kandinsky5.model.prompt_table import Prompt, PromptTable, bytes_a_step, steps_a_window
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

CONVOLUTIONS: Final = 1.8
"""Peak of the autoencoder on a GPU over what its tensors take: cuDNN's workspaces. From 2.8 GiB measured on an H200 at
1024 x 1024 in bfloat16, weights included, against 1.5 GiB counted here."""

FUSED_CONVOLUTIONS: Final = 1.1
"""The same with channels last and fused norms (`autoencoder`), where cuDNN seems to take no workspace: in 24 GB on an
H200 the peak was 1.5 GB above the weights that are there while 1024 x 1024 is decoded, and 1.6 GB are counted here
(benchmarks/results/2026-11-28-memory-h200-spread.json). The tenth is for what was not seen."""

LIBRARIES: Final = 150 * 10**6
"""Bytes of cuBLAS's workspaces and of fragments, on CUDA."""

STEPS: Final = 50
"""Of the run that is planned for."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Bytes at the peak of each stage, weights apart, the autoencoder's with its workspaces, `tiled` in tiles.

    operations: of a step's blocks for both guidance branches, multiplications and additions each counted.
    window, window_in_turn: steps for which modulation and text blocks are asked once; 1 without the fast path.
    """

    encode: int
    denoise: int
    denoise_in_turn: int
    source: int
    source_tiled: int
    decode: int
    decode_tiled: int
    operations: int
    window: int
    window_in_turn: int


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of a request: pixels, pictures at once, text tokens of a row, and whether a source picture is encoded."""

    width: int
    height: int
    pictures: int
    text_tokens: int
    edits: bool


class _Living(TorchDispatchMode):
    """Counts the storage of tensors that are made, until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._count(tensor, there_before=True)
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            self._count(tensor)
        return made

    def _count(self, tensor: Any, *, there_before: bool = False) -> None:
        """Once a storage; what was there before counts as nothing. An address is another's when its storage is gone."""
        if not isinstance(tensor, Tensor) or not tensor.is_meta:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = 0 if there_before else storage.nbytes()
        self.now += self._sizes[key]
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._let_go, key)

    def _let_go(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


class _FusedAttention(TorchFunctionMode):
    """Attention without its matrix of weights, as every device's kernel computes it; on meta it would be made."""

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            return torch.empty_like(args[0] if args else kwargs["query"])
        return function(*args, **(kwargs or {}))


def peak_bytes(function: Callable[[], Any]) -> int:
    """Bytes of the tensors that a function on the meta device makes and holds at once."""
    with torch.no_grad(), _FusedAttention(), _Living() as living:
        function()
    return living.peak


def needs_of(
    network: Any,
    encoder: Any,
    vae: Any,
    sizes: Sizes,
    dtype: torch.dtype,
    *,
    fast: bool,
    convolutions: float,
) -> Needs:
    """What a request needs, in each stage.

    Args:
        network, encoder, vae: on the meta device, or at least their configs.
        sizes: of the request.
        dtype: that everything runs in.
        fast: the network has a fast path.
        convolutions: what the autoencoder takes over what its tensors do; 1 is nothing.
    """

    def coding(way: str, width: int, height: int) -> int:
        return int(convolutions * _vae_bytes(vae, way, width, height, dtype))

    rows = 2 * sizes.pictures
    pixels = 3 * sizes.width * sizes.height * dtype.itemsize * sizes.pictures
    side = min(TILE, sizes.width), min(TILE, sizes.height)
    return Needs(
        encode=_text_bytes(encoder.config, rows, sizes.text_tokens, dtype),
        denoise=_network_bytes(network, sizes, rows, dtype, fast=fast, tables=1),
        denoise_in_turn=_network_bytes(network, sizes, sizes.pictures, dtype, fast=fast, tables=KEPT_TABLES),
        source=coding("encode", sizes.width, sizes.height) if sizes.edits else 0,
        source_tiled=coding("encode", *side) + pixels if sizes.edits else 0,
        decode=coding("decode", sizes.width, sizes.height) * sizes.pictures,
        # The tiles are put together from twice the picture's pixels in decoded tiles.
        decode_tiled=coding("decode", *side) + 3 * pixels,
        operations=rows * operations_a_row(network.config, _tokens(network, sizes), sizes.text_tokens),
        window=_window(network, sizes, rows, dtype) if fast else 1,
        window_in_turn=_window(network, sizes, sizes.pictures, dtype) if fast else 1,
    )


def operations_a_row(config: Any, tokens: int, text_tokens: int) -> int:
    """Operations of all visual blocks for a row of tokens: products, and both attentions."""
    width = config.model_dim
    visual = 2 * tokens * width * (6 * width + 2 * config.ff_dim)
    text = 2 * text_tokens * width * 2 * width
    attention = 4 * tokens * (tokens + text_tokens) * width
    return config.num_visual_blocks * (visual + text + attention)


def _tokens(network: Any, sizes: Sizes) -> int:
    _, high, wide = network.config.patch_size
    return (sizes.height // 8 // high) * (sizes.width // 8 // wide)


def _window(network: Any, sizes: Sizes, rows: int, dtype: torch.dtype) -> int:
    """Steps whose table the fast path makes at once; no run has more of them than it has steps."""
    return min(STEPS, steps_a_window(network.config, rows, sizes.text_tokens, dtype.itemsize, TABLE_BYTES))


def _network_bytes(
    network: Any, sizes: Sizes, rows: int, dtype: torch.dtype, *, fast: bool, tables: int
) -> int:
    """A forward of `rows` rows: two blocks stand for all, since each lets go of what it needed.

    On the fast path the table of a window is there meanwhile, or is being made while the others are there.
    """
    config, tokens = _as_key(network.config), sizes.text_tokens
    forward = _forward_bytes(config, dtype, rows, (sizes.height // 8, sizes.width // 8), tokens, fast)
    if not fast:
        return forward
    window = _window(network, sizes, rows, dtype)
    table = window * bytes_a_step(network.config, rows, tokens, dtype.itemsize)
    return max(forward + table, _preparing_bytes(config, dtype, rows, tokens, window)) + (tables - 1) * table


@lru_cache(maxsize=256)
def _forward_bytes(
    config: str, dtype: torch.dtype, rows: int, cells: tuple[int, int], tokens: int, fast: bool
) -> int:
    network: Any = _short(config, dtype)
    network.fast_path = FastPath() if fast else None
    channels = network.input_channels
    meta = torch.device("meta")
    patches = [n // p for n, p in zip((1, *cells), network.config.patch_size, strict=True)]

    def forward() -> None:
        network(
            hidden_states=torch.empty(rows, 1, *cells, channels, device=meta),
            encoder_hidden_states=torch.empty(
                rows, tokens, network.config.in_text_dim, device=meta, dtype=dtype
            ),
            timestep=torch.full((rows,), 500.0),
            pooled_projections=torch.empty(rows, network.config.in_text_dim2, device=meta, dtype=dtype),
            visual_rope_pos=[torch.arange(n, device=meta) for n in patches],
            text_rope_pos=torch.arange(tokens, device=meta),
            encoder_attention_mask=torch.ones(rows, tokens, dtype=torch.bool, device=meta),
        )

    with attention_backend("native"):  # whichever is chosen; the others do not run on meta
        return peak_bytes(forward)


@lru_cache(maxsize=256)
def _preparing_bytes(config: str, dtype: torch.dtype, rows: int, tokens: int, window: int) -> int:
    """While a window's text goes through the text blocks, whose rows are all steps' at once."""
    network: Any = _short(config, dtype)

    def prepare() -> None:
        meta = torch.device("meta")
        prompt = Prompt(
            text=torch.empty(rows, tokens, network.config.in_text_dim, device=meta, dtype=dtype),
            pooled=torch.empty(rows, network.config.in_text_dim2, device=meta, dtype=dtype),
            positions=torch.arange(tokens, device=meta),
            mask=torch.ones(rows, tokens, dtype=torch.bool, device=meta),
        )
        times = [(float(step),) * rows for step in range(window)]
        PromptTable(network, prompt, largest_bytes=TABLE_BYTES).step(network, times[0], times[1:])

    with attention_backend("native"):
        return peak_bytes(prepare)


@lru_cache(maxsize=4)
def _short(config: str, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        network = Kandinsky5Transformer3DModel(
            **{**json.loads(config), "num_visual_blocks": 2, "num_text_blocks": 1}
        )
    return _cast(network, dtype)


def _cast(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)


def _as_key(config: Mapping[str, Any]) -> str:
    """What a model is built from. What is counted depends on that and on sizes alone, so that it is counted once."""
    return json.dumps(
        {name: value for name, value in config.items() if not name.startswith("_")}, sort_keys=True
    )


def _vae_bytes(vae: Any, way: str, width: int, height: int, dtype: torch.dtype) -> int:
    """Of one picture."""
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    if way == "decode":
        shape: tuple[int, ...] = (1, vae.config.latent_channels, height // scale, width // scale)
    else:
        shape = (1, 3, height, width)
    weights = next(vae.parameters()).dtype
    return _coding_bytes(_as_key(vae.config), way, shape, weights) * dtype.itemsize // weights.itemsize


@lru_cache(maxsize=256)
def _coding_bytes(config: str, way: str, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    vae: Any = _autoencoder(config, dtype)
    given = torch.empty(shape, device="meta", dtype=dtype)
    return peak_bytes(lambda: getattr(vae, way)(given, return_dict=False))


@lru_cache(maxsize=4)
def _autoencoder(config: str, dtype: torch.dtype) -> nn.Module:
    with torch.device("meta"):
        vae = AutoencoderKL.from_config(json.loads(config))
    return _cast(vae, dtype)


def _text_bytes(config: Any, rows: int, tokens: int, dtype: torch.dtype) -> int:
    """Qwen's states after each layer, which it is asked for, and a layer's own tensors at their widest."""
    text = getattr(config, "text_config", config)
    states = (text.num_hidden_layers + 1) * text.hidden_size
    widest = 3 * text.intermediate_size + 6 * text.hidden_size
    return rows * tokens * (states + widest) * dtype.itemsize
