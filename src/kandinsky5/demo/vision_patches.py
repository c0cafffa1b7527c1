"""Pictures as Qwen's vision tower takes them, computed where the pictures are.

Comes in: square pictures as a tensor. Goes out: the patches and grids that the editing pipeline's processor makes of
the same pictures at half their size, without leaving the device. Also here, because the processor's files must say the
same: its settings. Knows nothing of scenes, words or the network.

The processor works on bytes: Pillow's filters round to them after each of two passes, across and down. So does this.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from kandinsky5.demo.architecture import VISION_MERGE, VISION_PATCH

TEMPORAL_PATCH = 2
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""CLIP's statistics, as in the published checkpoints."""
LEAST_PIXELS = 56 * 56
MOST_PIXELS = 28 * 28 * 16384
"""4 to 16384 tokens after merging: the published limits."""


def tower_side(side: int) -> int:
    """The side that a square picture of `side` pixels (3500 at most) has in the vision tower: two tokens or more."""
    token = VISION_PATCH * VISION_MERGE
    rounded = round(side / token) * token
    if rounded**2 < LEAST_PIXELS:
        return math.ceil(math.sqrt(LEAST_PIXELS) / token) * token
    return rounded


def picture_tokens(size: int) -> int:
    """How many tokens an edit of a square picture of `size` pixels shows the language model."""
    return (tower_side(size // 2) // (VISION_PATCH * VISION_MERGE)) ** 2


def vision_patches(pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Patches and grids of source pictures (B, 3, S, S) in [-1, 1], at the size of the result.

    Returns:
        `pixel_values` (B N, 3 * 2 * 14 * 14) float32, picture by picture, and `image_grid_thw` (B, 3) int64.
    """
    values = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
    half = pictures.shape[-1] // 2
    values = _resized(_resized(values, half, "bilinear"), tower_side(half), "bicubic")
    mean, std = (values.new_tensor(v)[:, None, None] for v in (MEAN, STD))
    values = (values / 255 - mean) / std
    rows = values.shape[-1] // VISION_PATCH
    merged = rows // VISION_MERGE
    patches = values.reshape(-1, 3, merged, VISION_MERGE, VISION_PATCH, merged, VISION_MERGE, VISION_PATCH)
    # Tokens row by row, in each the patches that are merged, in each channel, time, row, column of pixels.
    patches = patches.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
    patches = patches.expand(-1, -1, -1, -1, -1, -1, TEMPORAL_PATCH, -1, -1)
    grid = torch.tensor([[1, rows, rows]], device=pictures.device).expand(len(pictures), -1)
    return patches.reshape(len(pictures) * rows**2, -1), grid


def _resized(values: Tensor, side: int, mode: str) -> Tensor:
    """Bytes (B, 3, S, S), as floats, at another side: across, then down."""
    if values.shape[-1] == side:
        return values
    for size in ((values.shape[-2], side), (side, side)):
        values = F.interpolate(values, size, mode=mode, antialias=True, align_corners=False)
        values = (values + 0.5).floor().clamp(0, 255)  # halves upwards, as Pillow does
    return values
