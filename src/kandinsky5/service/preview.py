"""A look at a picture before it is done: latents to colours by one matrix, without the decoder.

In: the loaded autoencoder, once; then estimates of finished latents. Out: small RGB pictures, one pixel for each latent
position. The matrix is the least-squares map from latents to the mean colour of the pixels that they stand for, over
pictures made here; it follows the loaded autoencoder, whose channels mean what its training made them mean.
"""

from dataclasses import dataclass
from typing import Any, Final, Self

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from kandinsky5.latents import encode

SAMPLES: Final = 12
SIDE: Final = 128
"""Pixels of a sample's sides; on this many latents the 17 numbers for each colour are settled."""


@dataclass(frozen=True, kw_only=True)
class LatentPreview:
    """(C + 1, 3) weights from latent channels and a constant to red, green and blue in [-1, 1]."""

    weights: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, vae: Any) -> Self:
        """The map for a loaded autoencoder."""
        pixels = _samples().to(vae.device)
        generator = [torch.Generator("cpu").manual_seed(i) for i in range(SAMPLES)]
        latents = encode(pixels, vae, rows=range(SAMPLES), generator=generator).squeeze(1).float().cpu()
        factor = SIDE // latents.shape[1]
        colours = F.avg_pool2d(pixels.cpu(), factor).permute(0, 2, 3, 1).reshape(-1, 3)
        solved = torch.linalg.lstsq(_with_constant(latents.reshape(len(colours), -1)), colours)
        return cls(weights=solved.solution)

    def picture(self, latents: Tensor) -> Image.Image:
        """Latents (1, 1, h, w, C) as a picture of w x h."""
        values = latents[0, 0].float().cpu()
        colours = _with_constant(values) @ self.weights
        levels = ((colours / 2 + 0.5).nan_to_num(0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return Image.fromarray(levels.numpy())


def _with_constant(values: Tensor) -> Tensor:
    return F.pad(values, (0, 1), value=1.0)


def _samples() -> Tensor:
    """(N, 3, H, W) in [-1, 1]: flat patches of every colour, at four scales; soft ones made the map worse."""
    generator = torch.Generator("cpu").manual_seed(0)
    made = []
    for i in range(SAMPLES):
        cells = 2 ** (i % 4)
        colours = torch.rand(1, 3, cells, cells, generator=generator) * 2 - 1
        made.append(F.interpolate(colours, (SIDE, SIDE), mode="nearest"))
    return torch.cat(made)
