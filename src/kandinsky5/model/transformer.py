"""`Kandinsky5Transformer3DModel`: noisy latents, a prompt and a time in, the velocity of the flow out.

Top of the network; `blocks` has its layers. Config and tensor names are those of the published checkpoints. It refuses
to know: guidance, schedules, pixels, prompts, devices, and how it is compiled, quantised or split (all applied from
outside).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.attention import AttentionMixin
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin  # diffusers looks for it in this module too
from torch import Tensor, nn

from kandinsky5.errors import RequestError
from kandinsky5.model.blocks import OutputLayer, TextBlock, VisualBlock
from kandinsky5.model.embeddings import (
    TextEmbedding,
    TimeEmbedding,
    VisualEmbedding,
    text_rotation,
    visual_rotation,
)
from kandinsky5.model.fast import FastPath
from kandinsky5.model.loading import CheckedLoading
from kandinsky5.model.prompt_table import Prompt
from kandinsky5.model.stretches import Stretches

MAX_TEXT_POSITIONS = 1024
MAX_VISUAL_POSITIONS = 128
"""Positions an axis that the released models were built for (authors' `RoPE1D` and `RoPE3D`)."""


class Kandinsky5Transformer3DModel(CheckedLoading, ModelMixin, ConfigMixin, PeftAdapterMixin, AttentionMixin):
    """Kandinsky 5.0's flow-matching diffusion transformer (arXiv 2511.14993, section 5), for images.

    Stored dtypes may be anything; time embedding, modulation, norms, gates and rotary positions are computed in
    float32, and the first and last layer in the dtype of the latents they are given, so that float32 latents get a
    velocity that was never rounded to bfloat16.

    Args:
        in_visual_dim: channels of the noisy latents (16).
        in_text_dim: width of the text states (Qwen2.5-VL: 3584).
        in_text_dim2: width of the pooled text vector (CLIP ViT-L: 768).
        time_dim: width of the time vector.
        out_visual_dim: channels of the velocity.
        patch_size: latent frames, rows and columns a token.
        model_dim: width D; a multiple of the head width, `sum(axes_dims)`.
        ff_dim: inner width of the feed-forward layers.
        num_text_blocks: layers over the text alone.
        num_visual_blocks: layers over the picture.
        axes_dims: channels of a head turned by frame, row and column.
        visual_cond: the input also carries a source image and its mask (editing checkpoints):
            `2 in_visual_dim + 1` channels.
        attention_type: "regular"; anything else is one of the video models and refused.
        attention_causal, attention_local, attention_glob, attention_window, attention_P, attention_wT, attention_wW,
            attention_wH, attention_add_sta, attention_method: settings of the video models' sparse attention. They
            are in the published `config.json`, where "regular" attention has no use for them, and are kept so that a
            saved config is the one that was loaded.

    Attributes:
        fast_path: evaluates a forward pass in the blocks' place when set (`model.fast`); None by default.

    Raises:
        RequestError: a sparse `attention_type`, or widths that do not divide into heads.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["TextBlock", "VisualBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["TextBlock", "VisualBlock"]
    _keep_in_fp32_modules: ClassVar[list[str]] = [
        "time_embeddings",
        "modulation",
        "visual_modulation",
        "text_modulation",
    ]

    @register_to_config
    def __init__(
        self,
        in_visual_dim: int = 4,
        in_text_dim: int = 3584,
        in_text_dim2: int = 768,
        time_dim: int = 512,
        out_visual_dim: int = 4,
        patch_size: Sequence[int] = (1, 2, 2),
        model_dim: int = 2048,
        ff_dim: int = 5120,
        num_text_blocks: int = 2,
        num_visual_blocks: int = 32,
        axes_dims: Sequence[int] = (16, 24, 24),
        visual_cond: bool = False,
        attention_type: str = "regular",
        attention_causal: bool | None = None,
        attention_local: bool | None = None,
        attention_glob: bool | None = None,
        attention_window: int | None = None,
        attention_P: float | None = None,
        attention_wT: int | None = None,
        attention_wW: int | None = None,
        attention_wH: int | None = None,
        attention_add_sta: bool | None = None,
        attention_method: str | None = None,
    ):
        super().__init__()
        head_dim = sum(axes_dims)
        if attention_type != "regular":
            raise RequestError(
                f"attention_type={attention_type!r} is the sparse attention of the Kandinsky 5 video models; this "
                'network is for images and has attention_type="regular" only. Use diffusers for the video models.'
            )
        if model_dim % head_dim or any(dim % 2 for dim in axes_dims):
            raise RequestError(
                f"model_dim={model_dim} must be a multiple of the head width, the sum of axes_dims={tuple(axes_dims)}, "
                "and each of axes_dims must be even."
            )

        self.input_channels = 2 * in_visual_dim + 1 if visual_cond else in_visual_dim
        self.time_embeddings = TimeEmbedding(model_dim, time_dim)
        self.text_embeddings = TextEmbedding(in_text_dim, model_dim)
        self.pooled_text_embeddings = TextEmbedding(in_text_dim2, time_dim)
        self.visual_embeddings = VisualEmbedding(self.input_channels, model_dim, patch_size)
        self.text_transformer_blocks = nn.ModuleList(
            TextBlock(model_dim, time_dim, ff_dim, head_dim) for _ in range(num_text_blocks)
        )
        self.visual_transformer_blocks = nn.ModuleList(
            VisualBlock(model_dim, time_dim, ff_dim, head_dim) for _ in range(num_visual_blocks)
        )
        self.out_layer = OutputLayer(model_dim, time_dim, out_visual_dim, patch_size)
        self.gradient_checkpointing = False
        self.fast_path: FastPath | None = None

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor | float | int,
        pooled_projections: Tensor,
        visual_rope_pos: Sequence[Tensor],
        text_rope_pos: Tensor,
        scale_factor: Sequence[float] = (1.0, 1.0, 1.0),
        sparse_params: dict[str, Any] | None = None,
        return_dict: bool = True,
        encoder_attention_mask: Tensor | None = None,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The velocity at these latents and this time.

        Args:
            hidden_states: (B, T, H, W, C) latents, channels last; editing checkpoints take
                [noisy, source, mask] on the channels.
            encoder_hidden_states: (B, L, in_text_dim) text states.
            timestep: 1000 t, a scalar or (B,); used in float32, so do not round it to bfloat16.
            pooled_projections: (B, in_text_dim2) pooled text vector.
            visual_rope_pos: positions of the patches an axis: (T / pt,), (H / ph,), (W / pw,).
            text_rope_pos: (L,) positions of the text tokens.
            scale_factor: divides the rotary angles of each visual axis.
            sparse_params: must be None (sparse attention of the video models).
            return_dict: an output with `.sample`, or a tuple of one.
            encoder_attention_mask: (B, L), True where a text token is real; None means all are. Padding does not
                change the result.

        Returns:
            The velocity (B, T, H, W, out_visual_dim) in the dtype of `hidden_states`.

        Raises:
            RequestError: shapes that do not fit together, or sparse attention.
        """
        if sparse_params is not None:
            raise RequestError(
                "sparse_params belong to the sparse attention of the video models; pass None to this image network."
            )
        self._check_latents(hidden_states, visual_rope_pos)
        self._check_conditioning(
            len(hidden_states),
            encoder_hidden_states,
            pooled_projections,
            text_rope_pos,
            encoder_attention_mask,
        )
        prompt = Prompt(
            text=encoder_hidden_states,
            pooled=pooled_projections,
            positions=text_rope_pos,
            mask=None if encoder_attention_mask is None else encoder_attention_mask.to(torch.bool),
        )
        visual_turn = visual_rotation(visual_rope_pos, self.config.axes_dims, scale_factor)
        given = (hidden_states, encoder_hidden_states, pooled_projections)
        if self.fast_path is not None and self.fast_path.takes(self, *given):
            velocity = self.fast_path(self, hidden_states, prompt, timestep, visual_turn)
        else:
            velocity = self._velocity(hidden_states, prompt, timestep, visual_turn)
        return Transformer2DModelOutput(sample=velocity) if return_dict else (velocity,)

    @property
    def takes_text_mask(self) -> bool:
        """Whether the attention back ends that read the text can be told which of its tokens are padding.

        Where they cannot, `forward` must be given no `encoder_attention_mask`.
        """
        readers: list[Any] = [block.self_attention for block in self.text_transformer_blocks]
        readers += [block.cross_attention for block in self.visual_transformer_blocks]
        return all(getattr(reader.processor, "takes_mask", True) for reader in readers)

    def expect_times(self, times: Tensor) -> None:
        """Say which times (1000 t) a run is about to ask for, so that a fast path prepares them together.

        Without a fast path nothing is prepared.

        Args:
            times: (S,), or (S, B) where each row of a batch has its own; none at all when the run is over.
        """
        if self.fast_path is not None:
            self.fast_path.expect(times)

    def use_stretches(self, stretches: Stretches) -> None:
        """Say who computes what lies between the products on the ordinary way, such as `kernels.stretches_for`."""
        for module in self.modules():
            if hasattr(module, "stretches"):
                module.stretches = stretches

    def _velocity(
        self, latents: Tensor, prompt: Prompt, timestep: Tensor | float | int, visual_turn: Tensor
    ) -> Tensor:
        """`forward` after its checks, block by block."""
        # The norm's weight is never quantised, adapted or kept in float32: it has the dtype the blocks run in.
        dtype = self.text_embeddings.norm.weight.dtype
        ends_dtype = torch.promote_types(latents.dtype, dtype)

        time = self._time_vector(timestep, prompt.pooled.to(dtype))
        text = self._embedded_text(prompt)
        text_turn = text_rotation(prompt.positions, sum(self.config.axes_dims))
        for block in self.text_transformer_blocks:
            text = self._run(block, text, prompt.mask, time, text_turn)

        patches = self.visual_embeddings(latents.to(ends_dtype)).to(dtype)
        grid, visual = patches.shape[1:4], patches.flatten(1, 3)
        for block in self.visual_transformer_blocks:
            visual = self._run(block, visual, text, prompt.mask, time, visual_turn)
        return self.out_layer(visual.to(ends_dtype), time, grid).to(latents.dtype)

    def fuse_qkv_projections(self) -> None:
        """Not possible: adapters, quantisation and checkpoints address query, key and value by their own names."""
        raise RequestError(
            "fuse_qkv_projections() is not supported: query, key and value stay three layers. "
            "compile_repeated_blocks() is the way to fewer kernels."
        )

    def enable_cache(self, config: Any) -> None:
        """Not possible: diffusers' caches need one forward pass a guidance branch, in contexts they can tell apart."""
        raise RequestError(
            f"enable_cache({type(config).__name__}) is not supported: both guidance branches share one forward pass, "
            "which diffusers' caches cannot tell apart. Fewer steps are the way to a faster picture."
        )

    def _time_vector(self, timestep: Tensor | float | int, pooled: Tensor) -> Tensor:
        """(B, time_dim), float32 or wider: the time, shifted by the pooled prompt."""
        pooled_embedding = self.pooled_text_embeddings(pooled)
        time = torch.as_tensor(timestep, device=pooled.device).to(pooled_embedding.dtype).reshape(-1)
        if len(time) not in (1, len(pooled)):
            raise RequestError(
                f"timestep must be a scalar or one a row ({len(pooled)}), got {len(time)} times."
            )
        return self.time_embeddings(time.expand(len(pooled))) + pooled_embedding

    def _embedded_text(self, prompt: Prompt) -> Tensor:
        """(B, L, D) before the text blocks, in the dtype the blocks run in."""
        dtype, text = self.text_embeddings.norm.weight.dtype, prompt.text
        if (
            prompt.mask is not None
        ):  # zero times what stands in the padding must be zero, even if that is no number
            text = text.masked_fill(~prompt.mask[..., None], 0)
        return self.text_embeddings(text.to(dtype)).to(dtype)

    def _run(self, block: nn.Module, *args: Any) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)

    def _check_latents(self, latents: Tensor, positions: Sequence[Tensor]) -> None:
        if latents.ndim != 5 or latents.shape[-1] != self.input_channels:
            raise RequestError(
                f"hidden_states must be (batch, frames, height, width, {self.input_channels}), got "
                f"{tuple(latents.shape)}."
            )
        sizes, patch_size = tuple(latents.shape[1:4]), tuple(self.config.patch_size)
        grid = tuple(size // patch for size, patch in zip(sizes, patch_size, strict=True))
        whole = all(size % patch == 0 for size, patch in zip(sizes, patch_size, strict=True))
        if not whole or min(grid) < 1 or max(grid) > MAX_VISUAL_POSITIONS:
            raise RequestError(
                f"Frames, height and width {sizes} of hidden_states must be multiples of {patch_size} and at most "
                f"{MAX_VISUAL_POSITIONS} patches each."
            )
        if tuple(len(p) for p in positions) != grid:
            raise RequestError(
                f"visual_rope_pos must have one position a patch, {grid}; got {tuple(len(p) for p in positions)}."
            )

    def _check_conditioning(
        self, rows: int, text: Tensor, pooled: Tensor, positions: Tensor, mask: Tensor | None
    ) -> None:
        widths = self.config.in_text_dim, self.config.in_text_dim2
        if text.ndim != 3 or len(text) != rows or text.shape[2] != widths[0]:
            raise RequestError(
                f"encoder_hidden_states must be ({rows}, text tokens, {widths[0]}), got {tuple(text.shape)}."
            )
        if tuple(pooled.shape) != (rows, widths[1]):
            raise RequestError(
                f"pooled_projections must be ({rows}, {widths[1]}), got {tuple(pooled.shape)}."
            )
        if text.shape[1] > MAX_TEXT_POSITIONS:
            raise RequestError(
                f"{text.shape[1]} text tokens; the network has positions for {MAX_TEXT_POSITIONS}."
            )
        if tuple(positions.shape) != (text.shape[1],):
            raise RequestError(
                f"text_rope_pos must have one position a text token, ({text.shape[1]},); got {tuple(positions.shape)}."
            )
        if mask is not None and mask.shape != text.shape[:2]:
            raise RequestError(
                f"encoder_attention_mask must be (batch, text tokens) = {tuple(text.shape[:2])}, got "
                f"{tuple(mask.shape)}."
            )
