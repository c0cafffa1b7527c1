"""The shared tiny system in bfloat16, as it is published, and machines of any size."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kandinsky5.memory import Machine
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from tests.loading.conftest import untied_source
from tests.pipelines.conftest import (
    components,
    editing_components,
    editing_network,
    saved_editing_folder,
    saved_folder,
)

__all__ = [
    "components",
    "editing_components",
    "editing_network",
    "saved_editing_folder",
    "saved_folder",
    "untied_source",
]

DTYPE = torch.bfloat16


@pytest.fixture(scope="session")
def half_folder(untied_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything stored in bfloat16, modulation too, as published."""
    folder = tmp_path_factory.mktemp("half") / "folder"
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied_source, text_encoder_parts=["vision", "head"])
    pipe.to(dtype=DTYPE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def half_editing_folder(saved_editing_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The editing system in bfloat16."""
    folder = tmp_path_factory.mktemp("half-editing") / "folder"
    pipe = Kandinsky5I2IPipeline.from_pretrained(saved_editing_folder, text_encoder_parts=["vision", "head"])
    pipe.to(dtype=DTYPE).save_pretrained(folder)
    return folder


@pytest.fixture
def machine() -> Callable[..., Machine]:
    """`machine("cuda", device_bytes=...)`: a machine that need not be here; planning allocates nothing."""

    def of(device: str = "cuda", **facts: object) -> Machine:
        given: dict[str, object] = {
            "device_bytes": 10**12, "host_bytes": 10**12, "link": 25e9, "products": 1e14,
        }  # fmt: skip
        return Machine(device=torch.device(device), **{**given, **facts})  # type: ignore[arg-type]

    return of
