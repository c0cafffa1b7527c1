"""The embedded model's architecture: the published system's real classes at a size that travels inside a package.

Comes in: an `Architecture` of widths and depths, and the tokenizers' special tokens. Goes out: freshly initialised
modules, and a table of their sizes. It does not know how they are trained or where they are kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)

from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

LATENT_CHANNELS = 16
CLIP_POSITIONS = 77
VISION_PATCH = 14
VISION_MERGE = 2
"""As in the published system: FLUX's latents, CLIP's text length, Qwen2.5-VL's picture patches."""

SAMPLING_SHIFT = 8.0
"""Published: 3. How many things there are is decided near t = 1, where more steps fall then (docs/demo.md)."""

WORD_DEVIATION = 0.1
"""Of word vectors at the start. At the library's 0.02 what the layers add drowns them: states of one word in place of
another differ by 0.4 of their length, at 0.1 by 1.2, and what a word hears of its neighbours stays (0.06)."""

MAX_SHARD = "15MB"
"""Tensor files stay under 16 MiB each."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Every size that is not the published system's. The defaults are the embedded model: 27 M parameters, 55 MB.

    `editing` networks also take a source picture, and without one still draw from text.
    """

    image_size: int = 256
    editing: bool = True
    vocabulary: int = 1152
    model_dim: int = 320
    ff_dim: int = 1024
    time_dim: int = 64
    text_blocks: int = 2
    visual_blocks: int = 10
    axes_dims: tuple[int, int, int] = (16, 24, 24)
    text_dim: int = 256
    text_ff_dim: int = 768
    text_layers: int = 4
    text_heads: int = 4
    vision_dim: int = 128
    vision_layers: int = 2
    pooled_dim: int = 192
    pooled_layers: int = 2
    pooled_heads: int = 3
    autoencoder_widths: tuple[int, int, int, int] = (32, 64, 96, 96)
    autoencoder_norm_groups: int = 1


TOY = Architecture(
    image_size=64,
    vocabulary=800,
    model_dim=64,
    ff_dim=128,
    time_dim=32,
    text_blocks=1,
    visual_blocks=2,
    text_dim=64,
    text_ff_dim=128,
    text_layers=2,
    text_heads=2,
    vision_dim=32,
    pooled_dim=48,
    autoencoder_widths=(8, 8, 16, 16),
)
"""Small enough for a rehearsal on a CPU."""

ARCHITECTURES: Mapping[str, Architecture] = {"embedded": Architecture(), "toy": TOY}


def build_network(size: Architecture) -> Kandinsky5Transformer3DModel:
    """The diffusion transformer."""
    return Kandinsky5Transformer3DModel(
        in_visual_dim=LATENT_CHANNELS,
        out_visual_dim=LATENT_CHANNELS,
        in_text_dim=size.text_dim,
        in_text_dim2=size.pooled_dim,
        time_dim=size.time_dim,
        patch_size=(1, 2, 2),
        model_dim=size.model_dim,
        ff_dim=size.ff_dim,
        num_text_blocks=size.text_blocks,
        num_visual_blocks=size.visual_blocks,
        axes_dims=size.axes_dims,
        visual_cond=size.editing,
    )


def build_text_encoder(size: Architecture, tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLForConditionalGeneration:
    """Qwen2.5-VL, its head tied to the embeddings. Drawing needs the language model, editing the vision tower too."""

    def token(text: str) -> int:
        return tokenizer.convert_tokens_to_ids(text)

    head_dim = size.text_dim // size.text_heads
    # Rotary pairs of a head given to time, row and column: a quarter and three eighths each, as published (16, 24, 24).
    sections = [head_dim // 8, head_dim * 3 // 16, head_dim * 3 // 16]
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": size.vocabulary,
            "hidden_size": size.text_dim,
            "intermediate_size": size.text_ff_dim,
            "num_hidden_layers": size.text_layers,
            "num_attention_heads": size.text_heads,
            "num_key_value_heads": size.text_heads,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections},
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_size": size.vision_dim,
            "intermediate_size": 2 * size.vision_dim,
            "num_heads": 4,
            "out_hidden_size": size.text_dim,
            "patch_size": VISION_PATCH,
            "spatial_merge_size": VISION_MERGE,
            "temporal_patch_size": 2,
            "window_size": 4 * VISION_PATCH * VISION_MERGE,
            "fullatt_block_indexes": [size.vision_layers - 1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    nn.init.normal_(model.get_input_embeddings().weight, std=WORD_DEVIATION)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    return model


def build_pooled_encoder(size: Architecture, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP's text transformer; its pooled output is the state at the first end-of-text token."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.pooled_dim,
            intermediate_size=4 * size.pooled_dim,
            num_hidden_layers=size.pooled_layers,
            num_attention_heads=size.pooled_heads,
            max_position_embeddings=CLIP_POSITIONS,
            projection_dim=size.pooled_dim,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_autoencoder(size: Architecture) -> AutoencoderKL:
    """FLUX's autoencoder made narrow: 16 channels, 8 times smaller, no convolutions around the latents.

    `scaling_factor` is 1: training folds the latents' scale into the weights. No attention, and one group a norm, so
    that a thing changes the latents around it and hardly any others (docs/decisions/autoencoder.md).
    """
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=size.autoencoder_widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=size.autoencoder_norm_groups,
        sample_size=size.image_size,
        scaling_factor=1.0,
        shift_factor=0.0,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def build_scheduler() -> DPMSolverMultistepScheduler:
    """A second-order solver (DPM-Solver++, Lu et al., arXiv 2211.01095), which needs a third of Euler's steps here."""
    return DPMSolverMultistepScheduler(
        use_flow_sigmas=True,
        prediction_type="flow_prediction",
        flow_shift=SAMPLING_SHIFT,
        lambda_min_clipped=-1e9,  # its default is minus infinity, which is no JSON
    )


def cast_parameters(module: nn.Module, dtype: torch.dtype, *, all_of_them: bool = False) -> None:
    """Store parameters as `dtype`, those the module says it keeps in float32 only if `all_of_them` is asked for.

    Buffers, which here are angles and positions, keep their dtype, as they do not under `module.to(dtype)`.
    """
    kept = [] if all_of_them else getattr(module, "_keep_in_fp32_modules", None) or []
    for name, parameter in module.named_parameters():
        if not any(part in kept for part in name.split(".")):
            parameter.data = parameter.data.to(dtype)


def size_table(modules: Mapping[str, nn.Module], dtype: torch.dtype = torch.bfloat16) -> str:
    """Parameters and bytes as stored in `dtype`, a row a component (tied weights counted once), and their sum."""
    rows = [(name, sum(p.numel() for p in module.parameters())) for name, module in modules.items()]
    rows.append(("all", sum(count for _, count in rows)))
    lines = [
        f"{name:16} {count:12,} parameters {count * dtype.itemsize / 1e6:7.2f} MB" for name, count in rows
    ]
    return "\n".join(lines)
