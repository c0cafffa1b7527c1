"""Source pictures as callers of a pipeline hand them over, and as the autoencoder takes them.

Comes in: a PIL image, an array, a tensor, a batch of them, or a list of any. Goes out: upright RGB pictures, the same
for the same pixels; and from fitted pictures, a tensor. It refuses to know files and models.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.pictures.decoding import check_shape, eight_bits, upright_rgb

CHANNELS = (1, 3, 4)
"""Greyscale, RGB, RGB with alpha."""


def as_pictures(image: Any) -> list[Image.Image]:
    """Every picture in what a caller passed as `image`, in order, as new upright RGB images.

    Takes PIL images; arrays (H, W), (H, W, C) or (N, H, W, C); tensors (H, W), (C, H, W) or (N, C, H, W) on any device;
    lists or tuples of these. C is 1, 3 or 4; values are uint8, uint16, or floats from 0 to 1. Everything is brought to
    8 bits.

    Raises:
        RequestError: nothing at all, another type, shape or range, or a picture no edit can be made of.
    """
    if image is None:
        raise RequestError("An edit needs a source picture: pass `image`.")
    found = list(_each(image))
    if not found:
        raise RequestError("`image` is empty; pass one source picture, or one for each prompt.")
    return found


def to_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """RGB pictures of one size as (N, 3, H, W) float32 in [-1, 1]."""
    values = np.stack([np.asarray(picture, dtype=np.float32) for picture in pictures])
    return torch.from_numpy(values / 127.5 - 1).permute(0, 3, 1, 2)


def _each(image: Any) -> Iterator[Image.Image]:
    if isinstance(image, Image.Image):
        yield upright_rgb(image)
    elif isinstance(image, list | tuple):
        for part in image:
            yield from _each(part)
    elif isinstance(image, Tensor):
        yield from _of_array(_channels_last(image.detach()), tuple(image.shape))
    elif isinstance(image, np.ndarray):
        yield from _of_array(image, image.shape)
    else:
        raise RequestError(
            f"A source picture must be a PIL image, an array, a tensor or a list of these, not {type(image).__name__}; "
            "PIL.Image.open reads a file."
        )


def _channels_last(image: Tensor) -> np.ndarray:
    image = image.float() if image.is_floating_point() else image
    return (image.movedim(-3, -1) if image.ndim >= 3 else image).cpu().numpy()


def _of_array(values: np.ndarray, shape: tuple[int, ...]) -> Iterator[Image.Image]:
    """The pictures of an array (H, W), (H, W, C) or (N, H, W, C); `shape` is how the caller wrote it."""
    if values.ndim == 4:
        for part in values:
            yield from _of_array(part, shape)
        return
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in CHANNELS):
        raise RequestError(
            f"A source picture of shape {shape} has no 1, 3 or 4 channels: an array is (height, width, channels), a "
            "tensor (channels, height, width)."
        )
    check_shape(values.shape[1], values.shape[0])
    plain = np.ascontiguousarray(eight_bits(values))
    yield upright_rgb(Image.fromarray(plain[..., 0] if plain.ndim == 3 and plain.shape[-1] == 1 else plain))
