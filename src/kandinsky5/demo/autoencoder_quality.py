"""How well an autoencoder keeps the world's pictures, in figures and to the eye.

Comes in: an autoencoder and packed scenes. Goes out: its `Quality`, a sheet of pictures above their reconstructions,
and a refusal where the figures are too low to train a network on. It does not know how the autoencoder is trained.

Most of a picture is flat ground, so one figure for all pixels says little of the things drawn: 28.7 dB over all
pixels went with white lines turned pink. Pixels near things are therefore measured apart.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional

from kandinsky5.demo.renderer import render
from kandinsky5.demo.sampling import as_bytes
from kandinsky5.demo.sheets import tiled
from kandinsky5.errors import CheckpointError

LEAST_THINGS_DB = 24.0
"""Below this a network is not worth training on the latents: it would learn blurred things."""

NEAR = 2
"""Pixels this far from a thing are near it: its soft edge, and the ground that a blurred edge would spoil."""

SEEN = 0.03
"""A pixel differs from the ground if one of its channels does by more, of the range [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Of decoded posterior means: signal to noise in dB for values in [0, 1], and what the latents look like.

    `mean` and `deviation` are the extremes over channels; `largest` is the largest latent of all, in absolute value.
    """

    pictures: int
    all_db: float
    things_db: float
    ground_db: float
    mean: float
    deviation: tuple[float, float]
    largest: float

    def __str__(self) -> str:
        return (
            f"{self.all_db:.2f} dB on {self.pictures} unseen pictures: {self.things_db:.2f} near things, "
            f"{self.ground_db:.2f} on the ground; latent means up to {self.mean:.3f}, deviations "
            f"{self.deviation[0]:.3f} to {self.deviation[1]:.3f}, largest {self.largest:.1f}"
        )


def near_things(pictures: Tensor, packed: Tensor) -> Tensor:
    """Where pictures (B, 3, S, S) of packed scenes show a thing, or ground next to one: (B, 1, S, S), bool."""
    ground = packed[:, -1, 4:7, None, None] * 2 - 1
    differs = ((pictures - ground).abs().amax(dim=1, keepdim=True) > SEEN).float()
    return functional.max_pool2d(differs, 2 * NEAR + 1, stride=1, padding=NEAR) > 0


@torch.no_grad()
def measure(vae: AutoencoderKL, batches: list[Tensor], size: int) -> Quality:
    """Quality on batches of packed scenes drawn at `size`, in the autoencoder's own dtype."""
    latents, squares, near = [], [], []
    for packed in batches:
        pictures = render(packed, size)
        latents.append(vae.encode(pictures.to(vae.dtype)).latent_dist.mean)
        decoded = vae.decode(latents[-1]).sample.float().clamp(-1, 1)
        squares.append((decoded - pictures).square().mean(dim=1, keepdim=True) / 4)
        near.append(near_things(pictures, packed))
    square, things, latent = torch.cat(squares), torch.cat(near), torch.cat(latents).float()
    means, deviations = latent.mean(dim=(0, 2, 3)), latent.std(dim=(0, 2, 3))
    return Quality(
        pictures=len(square),
        all_db=_decibel(square),
        things_db=_decibel(square[things]),
        ground_db=_decibel(square[~things]),
        mean=float(means.abs().max()),
        deviation=(float(deviations.min()), float(deviations.max())),
        largest=float(latent.abs().max()),
    )


@torch.no_grad()
def save_reconstructions(vae: AutoencoderKL, packed: Tensor, size: int, path: Path) -> None:
    """One PNG with pictures of packed scenes in the upper row and what is decoded of their latents below."""
    pictures = render(packed, size)
    decoded = vae.decode(vae.encode(pictures.to(vae.dtype)).latent_dist.mean).sample.float().clamp(-1, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    tiled(list(as_bytes((torch.cat([pictures, decoded]) + 1) / 2)), columns=len(packed)).save(path)


def save_quality(quality: Quality, path: Path) -> None:
    """Write the figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(quality), indent=2) + "\n", encoding="utf-8")


def require_quality(path: Path, least_things_db: float = LEAST_THINGS_DB) -> None:
    """Raise CheckpointError unless the figures in `path` reach `least_things_db` near things."""
    if not path.is_file():
        raise CheckpointError(f"No figures of the autoencoder at {path}: train it first.")
    found = json.loads(path.read_text(encoding="utf-8"))["things_db"]
    if not found >= least_things_db:  # not a number is refused too
        raise CheckpointError(
            f"The autoencoder keeps things at {found:.2f} dB ({path}) and {least_things_db:g} dB is asked for: train "
            "it longer, or ask for less."
        )


def _decibel(square: Tensor) -> float:
    return float(-10 * torch.log10(square.mean()))
