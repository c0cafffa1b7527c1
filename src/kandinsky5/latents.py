"""Stage: noise, pictures to latents, and latents to pictures.

Comes in: sizes and generators, or pixels or latents and the autoencoder. Goes out: float32 latents, or pixels. Latents
here are (B, 1, h, w, C), channels last with one frame, as the network takes them; the autoencoder's own order stays
inside. The stage refuses to know prompts, networks and files.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from kandinsky5.errors import RequestError

TILE: Final = 512
"""Pixels of a tile's side."""

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
    return _normal((batch, 1, height, width, channels), generator, torch.device(device), dtype)


def encode(pixels: Tensor, vae: Any, *, rows: Sequence[int], generator: Generators = None) -> Tensor:
    """Pictures to latents (B, 1, h, w, C) float32: samples of the autoencoder's posterior, as in training.

    Args:
        pixels: (N, 3, H, W) in [-1, 1]. Each is encoded once and by itself.
        vae: the autoencoder; it computes in its own dtype. Samples are multiplied by its config's `scaling_factor`.
        rows: for each of the B rows, which of the N pictures it is a sample of.
        generator: of the samples' noise; one for the whole batch, or one a row.

    Raises:
        RequestError: a list of generators that is not one a row.
    """
    posteriors = [vae.encode(picture[None].to(vae.dtype)).latent_dist for picture in pixels]
    mean, std = (torch.cat([getattr(p, part).float() for p in posteriors]) for part in ("mean", "std"))
    drawn = _normal((len(rows), *mean.shape[1:]), generator, mean.device, torch.float32)
    chosen = list(rows)
    sample = (mean[chosen] + std[chosen] * drawn) * vae.config.scaling_factor
    return sample.permute(0, 2, 3, 1).unsqueeze(1)


def decode(latents: Tensor, vae: Any) -> Tensor:
    """Latents (B, 1, h, w, C) to pixels (B, 3, H, W), about [-1, 1], in the autoencoder's dtype.

    The latents are divided by the config's `scaling_factor`; its `shift_factor` is not applied, as in training.
    """
    scaled = latents.squeeze(1).permute(0, 3, 1, 2) / vae.config.scaling_factor
    return vae.decode(scaled.to(vae.dtype), return_dict=False)[0]


def use_tiles(vae: Any, side: int = TILE) -> None:
    """Let an autoencoder encode and decode in overlapping tiles of that many pixels a side, for good.

    Pixels change where tiles meet and, since each tile is normalised by itself, a little everywhere.
    """
    vae.enable_tiling()
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // scale


def check_generators(generator: Generators, batch: int) -> None:
    """Refuse a list of generators that is not one a picture."""
    if isinstance(generator, list) and len(generator) != batch:
        raise RequestError(
            f"{len(generator)} generators for {batch} images; pass one generator, or one for each image."
        )


def _normal(
    shape: tuple[int, ...], generator: Generators, device: torch.device, dtype: torch.dtype
) -> Tensor:
    check_generators(generator, shape[0])
    return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
