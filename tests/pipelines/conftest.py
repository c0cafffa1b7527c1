"""One small system of the real classes with random weights, for every test of stages and pipelines."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import nn

from kandinsky5 import flow
from kandinsky5.demo.architecture import (
    Architecture,
    build_autoencoder,
    build_network,
    build_pooled_encoder,
    build_text_encoder,
)
from kandinsky5.demo.tokenizers import save_processor_files, train_clip_tokenizer, train_qwen_tokenizer
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.prompts import EDITING, TEXT_TO_IMAGE

TINY = Architecture(
    image_size=64,
    editing=False,
    vocabulary=700,
    model_dim=64,
    ff_dim=96,
    time_dim=16,
    text_blocks=1,
    visual_blocks=2,
    axes_dims=(8, 12, 12),
    text_dim=64,
    text_ff_dim=64,
    text_layers=2,
    text_heads=2,
    vision_dim=64,
    vision_layers=1,
    pooled_dim=48,
    pooled_layers=1,
    pooled_heads=2,
    autoencoder_widths=(8, 8, 16, 16),
    autoencoder_norm_groups=4,
)
SHORT, MIDDLE, LONG = (
    "a red circle",
    " ".join(["blue square and"] * 14),
    " ".join(["a green star beside"] * 55),
)


def draw_weights(module: nn.Module, seed: int, std: float = 0.15) -> None:
    """Random weights everywhere, also where modules start at zero (a fresh modulation switches its block off)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * std
            parameter.copy_(1 + drawn if "norm" in name and name.endswith("weight") else drawn)


def euler():
    """The published scheduler."""
    return FlowMatchEulerDiscreteScheduler(shift=flow.DEFAULT_SHIFT)


@pytest.fixture(scope="session")
def components() -> dict[str, object]:
    """The seven components, float32; treat as read-only."""
    lines = [TEXT_TO_IMAGE.text(p) for p in (SHORT, MIDDLE, LONG)] + [EDITING.text("make it blue")]
    tokenizer, tokenizer_2 = train_qwen_tokenizer(lines, 700), train_clip_tokenizer(lines, 700)
    torch.manual_seed(0)
    parts: dict[str, object] = {
        "transformer": build_network(TINY),
        "vae": build_autoencoder(TINY),
        "text_encoder": build_text_encoder(TINY, tokenizer),
        "tokenizer": tokenizer,
        "text_encoder_2": build_pooled_encoder(TINY, tokenizer_2),
        "tokenizer_2": tokenizer_2,
        "scheduler": euler(),
    }
    for seed, name in enumerate(("transformer", "text_encoder", "text_encoder_2")):
        draw_weights(parts[name].eval(), seed)  # type: ignore[attr-defined, arg-type]
    return parts


@pytest.fixture
def pipeline(components: dict[str, object]) -> Kandinsky5T2IPipeline:
    """A pipeline over the shared components, with a scheduler of its own."""
    pipe = Kandinsky5T2IPipeline(
        **{**components, "scheduler": euler()},
        default_steps=3,
    )  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def saved_folder(components: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same system as a folder in the published layout, with the processor files beside the tokenizer."""
    folder = tmp_path_factory.mktemp("published")
    Kandinsky5T2IPipeline(**components, default_steps=3).save_pretrained(folder)  # type: ignore[arg-type]
    save_processor_files(folder / "tokenizer")
    return str(folder)


@pytest.fixture(scope="session")
def editing_network(components: dict[str, object]) -> Kandinsky5Transformer3DModel:
    """An editing network (33 input channels) that agrees with the shared one when source and mask are zero."""
    network = components["transformer"]
    editing = Kandinsky5Transformer3DModel(**{**network.config, "visual_cond": True})  # type: ignore[attr-defined]
    weights = network.state_dict()  # type: ignore[attr-defined]
    name = "visual_embeddings.in_layer.weight"
    patches = torch.randn(weights[name].shape[0], 4, 33, generator=torch.Generator().manual_seed(9))
    patches[:, :, :16] = weights[name].unflatten(1, (4, 16))
    editing.load_state_dict({**weights, name: patches.flatten(1)})
    return editing.eval()


@pytest.fixture(scope="session")
def editing_components(
    components: dict[str, object], editing_network: Kandinsky5Transformer3DModel
) -> dict[str, object]:
    """The seven components of an editing system made for pictures of 128 x 128."""
    vae = copy.deepcopy(components["vae"])
    vae.register_to_config(sample_size=128)  # type: ignore[attr-defined]
    return {**components, "transformer": editing_network, "vae": vae}


@pytest.fixture
def editing(editing_components: dict[str, object]) -> Kandinsky5I2IPipeline:
    """An editing pipeline over the shared components, with a scheduler of its own."""
    parts = {**editing_components, "scheduler": euler()}
    pipe = Kandinsky5I2IPipeline(**parts, default_steps=3)  # type: ignore[arg-type]
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def saved_editing_folder(
    editing_components: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """The editing system as a folder in the published layout."""
    folder = tmp_path_factory.mktemp("editing")
    Kandinsky5I2IPipeline(**editing_components, default_steps=3).save_pretrained(folder)  # type: ignore[arg-type]
    save_processor_files(folder / "tokenizer")
    return str(folder)


def picture(width: int = 128, height: int = 128, seed: int = 0) -> Image.Image:
    """A source of soft colours without any symmetry: mistakes of order, turn or channel show."""
    rows, columns = np.mgrid[0:height, 0:width] / max(width, height)
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    waves = [np.sin(5 * columns + 3 * rows * (i + 1) + phase[i]) for i in range(3)]
    return Image.fromarray(np.uint8(np.stack(waves, axis=-1) * 100 + 128))


@pytest.fixture
def generator() -> Callable[[int], torch.Generator]:
    """CPU generators by seed."""
    return lambda seed: torch.Generator().manual_seed(seed)
