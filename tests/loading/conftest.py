"""Folders to break: the shared tiny system as it is published, and the network alone, whole and in shards."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from tests.model.tiny import config_of, drawn
from tests.pipelines.conftest import (
    components,
    draw_weights,
    editing_components,
    editing_network,
    saved_editing_folder,
    saved_folder,
)

__all__ = ["components", "editing_components", "editing_network", "saved_editing_folder", "saved_folder"]

FLOAT32_MODULES = {"time_embeddings", "modulation", "visual_modulation", "text_modulation"}
"""What diffusers keeps in float32 whatever dtype is asked for (`_keep_in_fp32_modules`)."""


@pytest.fixture
def folder(saved_folder: str, tmp_path: Path) -> Path:
    """A copy of the published folder that a test may break."""
    return Path(shutil.copytree(saved_folder, tmp_path / "published"))


@pytest.fixture(scope="session")
def network_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-to-image network in one file: bfloat16 but for what diffusers keeps in float32."""
    folder = tmp_path_factory.mktemp("network")
    network = drawn(Kandinsky5Transformer3DModel(**config_of("t2i")))
    for name, parameter in network.named_parameters():
        if not set(name.split(".")) & FLOAT32_MODULES:
            parameter.data = parameter.data.to(torch.bfloat16)
    network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sharded_folder(network_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same network in several shards."""
    folder = tmp_path_factory.mktemp("sharded")
    Kandinsky5Transformer3DModel.from_pretrained(network_folder).save_pretrained(
        folder, max_shard_size="60KB"
    )
    return folder


@pytest.fixture
def breakable(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy of a folder that a test may break."""
    return lambda folder: Path(shutil.copytree(folder, tmp_path / folder.name))


@pytest.fixture(scope="session")
def untied_source(
    saved_folder: str, components: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """As published: a vocabulary projection of its own, several shards; some hold nothing that is used."""
    folder = Path(shutil.copytree(saved_folder, tmp_path_factory.mktemp("untied") / "folder"))
    config = copy.deepcopy(components["text_encoder"].config)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    encoder = Qwen2_5_VLForConditionalGeneration(config).eval()
    draw_weights(encoder, 7)
    encoder.load_state_dict(
        {
            name: tensor
            for name, tensor in components["text_encoder"].state_dict().items()
            if not name.startswith(("lm_head", "model.visual"))
        },
        strict=False,
    )
    shutil.rmtree(folder / "text_encoder")
    encoder.save_pretrained(folder / "text_encoder", max_shard_size="100KB")
    return folder


@pytest.fixture
def untied(untied_source: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(untied_source, tmp_path / "untied"))


def shards_of(folder: Path, prefix: str) -> list[Path]:
    weight_map = json.loads((folder / "text_encoder" / "model.safetensors.index.json").read_text())[
        "weight_map"
    ]
    found = {folder / "text_encoder" / shard for key, shard in weight_map.items() if prefix in key}
    assert found
    return sorted(found)


def same_state(left: torch.nn.Module, right: torch.nn.Module) -> None:
    one, other = left.state_dict(), right.state_dict()
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert tensor.dtype == other[key].dtype and torch.equal(tensor, other[key]), key
