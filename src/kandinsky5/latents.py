"""Stage: noise, and latents to pictures.

Comes in: sizes and generators, or latents and the autoencoder. Goes out: float32 noise, or pixels. Latents here are
(B, 1, h, w, C), channels last with one frame, as the network takes them; the autoencoder's own order stays inside. The
stage refuses to know prompts, networks and files.
"""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from kandinsky5.errors import RequestError

Generators = torch.Generator | list[torch.Generator] | None


def noise(
    batch: int,
    height: int,
    width: int,
    channels: int,
    *,
    generator: Generators = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standard normal latents (batch, 1, height, width, channels), sizes in latent rows and columns.

    Args:
        generator: one for the whole batch, or one a row, which makes each row independent of the others. Numbers are
            drawn on the generator's own device, so that a CPU generator gives the same picture on every machine.

    Raises:
        RequestError: a list of generators that is not one a row.
    """
    if isinstance(generator, list) and len(generator) != batch:
        raise RequestError(
            f"{len(generator)} generators for {batch} images; pass one generator, or one for each image."
        )
    return randn_tensor(
        (batch, 1, height, width, channels), generator=generator, device=torch.device(device), dtype=dtype
    )


def decode(latents: Tensor, vae: Any) -> Tensor:
    """Latents (B, 1, h, w, C) to pixels (B, 3, H, W), about [-1, 1], in the autoencoder's dtype.

    The latents are divided by the config's `scaling_factor`; its `shift_factor` is not applied, as in training.
    """
    scaled = latents.squeeze(1).permute(0, 3, 1, 2) / vae.config.scaling_factor
    return vae.decode(scaled.to(vae.dtype), return_dict=False)[0]
