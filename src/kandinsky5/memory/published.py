"""The published models' sizes, for whoever asks what would be done before 29 GB are fetched.

Comes in: a dtype and a task. Goes out: a `Model` without storage. From the published `config.json`s of the network,
Qwen2.5-VL-7B, CLIP ViT-L/14 and FLUX.1-dev's autoencoder. Refuses to know: files.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from kandinsky5.checkpoint.packing import PLAIN
from kandinsky5.memory.parts import COMPONENTS, Model
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines.encoder_parts import TEXT_ENCODER_PARTS, leaving_out

NETWORK: Final[Mapping[str, Any]] = MappingProxyType({
    "in_visual_dim": 16, "out_visual_dim": 16, "in_text_dim": 3584, "in_text_dim2": 768, "time_dim": 512,
    "patch_size": (1, 2, 2), "model_dim": 2560, "ff_dim": 10240, "num_text_blocks": 2, "num_visual_blocks": 50,
    "axes_dims": (32, 48, 48), "visual_cond": False,
})  # fmt: skip
TEXT: Final[Mapping[str, Any]] = MappingProxyType({
    "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "max_position_embeddings": 128000,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "tie_word_embeddings": False,
})  # fmt: skip
VISION: Final[Mapping[str, Any]] = MappingProxyType({
    "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
    "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
})  # fmt: skip
CLIP: Final[Mapping[str, Any]] = MappingProxyType({
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
})  # fmt: skip
VAE: Final[Mapping[str, Any]] = MappingProxyType({
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 16, "sample_size": 1024,
    "scaling_factor": 0.3611, "shift_factor": 0.1159, "use_quant_conv": False, "use_post_quant_conv": False,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
})  # fmt: skip


def published_model(dtype: torch.dtype, *, edits: bool = False) -> Model:
    """The published model of a task, stored in bfloat16 as published.

    Args:
        dtype: that it is to run in.
        edits: the editing model, with Qwen's vision tower.
    """
    out = TEXT_ENCODER_PARTS.keys() - ({"vision"} if edits else set())
    with torch.device("meta"), leaving_out(out):
        components: dict[str, Any] = {
            "transformer": Kandinsky5Transformer3DModel(**{**NETWORK, "visual_cond": edits}),
            "vae": AutoencoderKL(**VAE),
            "text_encoder": Qwen2_5_VLForConditionalGeneration(
                Qwen2_5_VLConfig(text_config={**TEXT}, vision_config={**VISION}, tie_word_embeddings=False)
            ),
            "text_encoder_2": CLIPTextModel(CLIPTextConfig(**CLIP)),
        }
    return Model(
        components=components,
        dtypes=dict.fromkeys(COMPONENTS, dtype),
        stored=dict.fromkeys(COMPONENTS, PLAIN),
        mapped=frozenset(COMPONENTS) if dtype == torch.bfloat16 else frozenset(),
        is_narrow=dtype == torch.bfloat16,
    )
