"""The tiny network: its config, weights that make every layer matter, inputs, and how errors are measured.

A trained modulation starts from zero, so a freshly built network's blocks do nothing: `drawn` draws *every* parameter.
Knows no implementation of the network: any class with the published parameter names will do.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

TINY: dict[str, Any] = {
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "in_text_dim": 24,
    "in_text_dim2": 20,
    "time_dim": 32,
    "patch_size": (1, 2, 2),
    "model_dim": 64,
    "ff_dim": 96,
    "num_text_blocks": 2,
    "num_visual_blocks": 3,
    "axes_dims": (4, 6, 6),
    "visual_cond": False,
}
"""Four heads of 16, both kinds of block more than once, no two widths equal."""

PUBLISHED: dict[str, Any] = {
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "in_text_dim": 3584,
    "in_text_dim2": 768,
    "time_dim": 512,
    "patch_size": (1, 2, 2),
    "model_dim": 2560,
    "ff_dim": 10240,
    "num_text_blocks": 2,
    "num_visual_blocks": 50,
    "axes_dims": (32, 48, 48),
    "visual_cond": False,
}
"""The published `config.json` of both Lite checkpoints, editing with `visual_cond=True` (model_facts.md)."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The arguments of one forward."""

    hidden_states: Tensor
    encoder_hidden_states: Tensor
    timestep: Tensor
    pooled_projections: Tensor
    visual_rope_pos: tuple[Tensor, Tensor, Tensor]
    text_rope_pos: Tensor
    scale_factor: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def arguments(self) -> dict[str, Any]:
        """As keyword arguments of either network's `forward` or of the reference."""
        return dict(self.__dict__)

    def changed(self, **changes: Any) -> "Inputs":
        """A copy with other values."""
        return replace(self, **changes)

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Latents and embeddings in `dtype`; the timestep stays float32, as the pipelines send it."""
        names = ("hidden_states", "encoder_hidden_states", "pooled_projections")
        return replace(self, **{name: getattr(self, name).to(dtype) for name in names})


def config_of(variant: str, **changes: Any) -> dict[str, Any]:
    """The tiny config of "t2i" (16 channels in) or "i2i" (33)."""
    return {**TINY, "visual_cond": variant == "i2i", **changes}


def drawn(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` in eval mode with every parameter drawn: no zero, no one, no symmetry left for an error to hide in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.3 * noise)
            elif parameter.ndim == 2:
                parameter.copy_(noise / math.sqrt(parameter.shape[1]))
            else:
                parameter.copy_(0.3 * noise)
    return model.eval()


def inputs_for(
    config: dict[str, Any],
    batch: int = 2,
    frames: int = 1,
    height: int = 6,
    width: int = 8,
    text: int = 7,
    first_text: int = 0,
    first_cell: tuple[int, int, int] = (0, 0, 0),
    scale_factor: tuple[float, float, float] = (1.0, 1.0, 1.0),
    seed: int = 1,
) -> Inputs:
    """Random inputs for latents of `frames` x `height` x `width`; RoPE counts from `first_text` and `first_cell`."""
    generator = torch.Generator().manual_seed(seed)
    channels = config["in_visual_dim"] * (2 if config["visual_cond"] else 1) + int(config["visual_cond"])
    cells = [n // p for n, p in zip((frames, height, width), config["patch_size"], strict=True)]
    t, h, w = (torch.arange(first, first + n) for first, n in zip(first_cell, cells, strict=True))
    return Inputs(
        hidden_states=torch.randn(batch, frames, height, width, channels, generator=generator),
        encoder_hidden_states=torch.randn(batch, text, config["in_text_dim"], generator=generator),
        timestep=1000 * torch.rand(batch, generator=generator),
        pooled_projections=torch.randn(batch, config["in_text_dim2"], generator=generator),
        visual_rope_pos=(t, h, w),
        text_rope_pos=torch.arange(first_text, first_text + text),
        scale_factor=scale_factor,
    )


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, in units of the expected value's."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} is not {tuple(expected.shape)}"
    return float((actual - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())
