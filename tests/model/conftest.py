"""Fixtures of the folder: the tiny config in both variants, and our network and diffusers' with the same weights."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from diffusers.models.attention_dispatch import attention_backend
from torch import nn

from . import peer
from .tiny import config_of, drawn


@pytest.fixture(params=["t2i", "i2i"])
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The tiny config, once for each variant."""
    return config_of(request.param)


@pytest.fixture
def build() -> Callable[..., nn.Module]:
    """`build(config, seed=0)`: our network, every parameter drawn."""
    from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

    return lambda config, seed=0: drawn(Kandinsky5Transformer3DModel(**config), seed)


@pytest.fixture
def build_peer() -> Callable[..., nn.Module]:
    """`build_peer(config, seed=0)`: diffusers' network as released; the same seed draws the same weights."""
    return lambda config, seed=0: drawn(peer.Kandinsky5Transformer3DModel(**config), seed)


@pytest.fixture
def back_end_restored() -> Iterator[None]:
    """`set_attention_backend` also sets diffusers' process-wide default, which would outlive the test."""
    with attention_backend("native"):
        yield
