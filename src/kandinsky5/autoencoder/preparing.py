"""Which parts of an autoencoder become fast ones, and the way back.

Comes in: an `AutoencoderKL`. Goes out: whether it is fast now. Only classes change: `state_dict`, files and weights are
what they were. Refuses to know: how the parts compute.
"""

from typing import Any, Final

from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.vae import Decoder, Encoder
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from kandinsky5.autoencoder.attention import WideHeadAttention
from kandinsky5.autoencoder.parts import (
    ChannelsLastDecoder,
    ChannelsLastEncoder,
    FusedGroupNorm,
    FusedResnetBlock,
    FusedUpsample,
)

FAST: Final[dict[type, type]] = {
    nn.GroupNorm: FusedGroupNorm,
    ResnetBlock2D: FusedResnetBlock,
    Upsample2D: FusedUpsample,
    Encoder: ChannelsLastEncoder,
    Decoder: ChannelsLastDecoder,
    AttnProcessor2_0: WideHeadAttention,
}
"""What becomes what. A processor is no module, but changes as they do."""


def prepare_for_speed(vae: nn.Module) -> str | None:
    """Let an autoencoder compute with channels last and fused norms from now on, as `undo` takes back.

    Results are those of the ordinary way but for rounding, on every device; faster only where
    `model.kernels` has Triton's kernels run. It may be moved, cast, offloaded, tiled and saved as before.

    Returns:
        Why it is left as it is, in words, and None where it is not: a part that no fast one stands for, or hooks that
        hold on to what a part computed before.
    """
    parts = _parts(vae, FAST)
    if not any(type(part) in (Encoder, Decoder) for part in parts):
        return None if _parts(vae, _ordinary()) else f"{type(vae).__name__} is another autoencoder"
    if any("forward" in module.__dict__ for module in vae.modules()):
        return "there are hooks on its layers"
    for module in vae.modules():
        if not _is_known(module):
            return f"{type(module).__name__} is not computed as its fast counterpart"
    for part in parts:
        part.__class__ = FAST[type(part)]
    return None


def undo(vae: nn.Module) -> None:
    """Back to the ordinary way."""
    ordinary = _ordinary()
    for part in _parts(vae, ordinary):
        part.__class__ = ordinary[type(part)]


def _ordinary() -> dict[type, type]:
    return {fast: ordinary for ordinary, fast in FAST.items()}


def _parts(vae: nn.Module, kinds: dict[type, type]) -> list[Any]:
    """Modules and attention's processors of some classes, their subclasses left out."""
    parts = [*vae.modules(), *(getattr(module, "processor", None) for module in vae.modules())]
    return [part for part in parts if type(part) in kinds]


def _is_known(module: Any) -> bool:
    """Whether a module is set up as an autoencoder's are, which is what its fast counterpart computes."""
    if type(module) is nn.GroupNorm:
        return bool(module.affine)
    if type(module) in (Encoder, Decoder):
        return isinstance(module.conv_act, nn.SiLU) and type(module.conv_norm_out) is nn.GroupNorm
    if type(module) is ResnetBlock2D:
        return (
            isinstance(module.nonlinearity, nn.SiLU)
            and type(module.norm1) is type(module.norm2) is nn.GroupNorm
            and module.time_emb_proj is module.upsample is module.downsample is None
            and module.time_embedding_norm != "scale_shift"
            and module.dropout.p == 0
            and module.output_scale_factor == 1
        )
    if type(module) is Upsample2D:
        return (
            module.norm is None and module.interpolate and module.name == "conv" and module.conv is not None
        )
    if type(module) is Attention:
        return _is_wide_head(module)
    return True


def _is_wide_head(attn: Any) -> bool:
    return (
        attn.heads == 1
        and type(attn.group_norm) is nn.GroupNorm
        and attn.spatial_norm is attn.norm_q is attn.norm_k is None
        and attn.residual_connection
        and attn.rescale_output_factor == 1
    )
