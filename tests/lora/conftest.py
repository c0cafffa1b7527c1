"""The small system of the pipelines' tests, and adapters for it."""

import torch
from torch import Tensor

from kandinsky5.lora import Lora
from tests.pipelines.conftest import (
    components,
    editing,
    editing_components,
    editing_network,
    pipeline,
    saved_editing_folder,
    saved_folder,
)

__all__ = [
    "components",
    "editing",
    "editing_components",
    "editing_network",
    "pipeline",
    "saved_editing_folder",
    "saved_folder",
]

WIDTH, FF = 64, 96
ATTENTION = "visual_transformer_blocks.0.self_attention.to_query"
FEED_FORWARD = "visual_transformer_blocks.1.feed_forward.in_layer"
MODULATION = "text_transformer_blocks.0.text_modulation.out_layer"
SHAPES = {ATTENTION: (WIDTH, WIDTH), FEED_FORWARD: (FF, WIDTH), MODULATION: (6 * WIDTH, 16)}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def make_lora(seed: int = 0, *, dora: bool = False, ranks: tuple[int, ...] = (4, 4, 2)) -> Lora:
    """Three layers of several ranks and scales."""
    layers, scales = {}, {}
    for i, ((layer, (rows, columns)), rank) in enumerate(zip(SHAPES.items(), ranks, strict=True)):
        layers[layer] = {
            "A": drawn(rank, columns, seed=seed + 2 * i),
            "B": drawn(rows, rank, seed=seed + 2 * i + 1),
        }
        if dora:
            layers[layer]["magnitude"] = drawn(rows, seed=seed + 20 + i).abs() + 0.5
        scales[layer] = (0.5, 1.0, 2.0)[i]
    return Lora(kind="dora" if dora else "lora", layers=layers, scales=scales, source="made here")


def change(lora: Lora, layer: str) -> Tensor:
    """What a LoRA adds to a layer's weight."""
    parts = lora.layers[layer]
    return lora.scales[layer] * parts["B"] @ parts["A"]
