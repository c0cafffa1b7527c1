"""Folders to break: the shared tiny system as it is published, and the network alone, whole and in shards."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from tests.model.tiny import config_of, drawn
from tests.pipelines.conftest import components, editing_network, saved_folder

__all__ = ["components", "editing_network", "saved_folder"]

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
