"""A toy system, real classes throughout, trained for a few steps once for all tests of the recipe."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kandinsky5.demo.architecture import Architecture, build_network
from kandinsky5.demo.network_training import STATE, NetworkRecipe
from kandinsky5.demo.train import main
from kandinsky5.train.state_file import load_state
from kandinsky5.train.update import UpdateSettings

TOY = [
    "--toy",
    "--steps",
    "4",
    "--warmup",
    "2",
    "--batch",
    "8",
    "--autoencoder-steps",
    "3",
    "--autoencoder-batch",
    "2",
    "--least-things-db",
    "0",
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which every stage has run; the network in two commands."""
    work = tmp_path_factory.mktemp("recipe")
    toy = [*TOY, "--work", str(work), "--dtype", "float32", "--workers", "0", "--device", "cpu"]
    torch.manual_seed(1)  # the recipe seeds itself; this must not matter
    main(["tokenizers", "autoencoder", *toy])
    main(["network", *toy, "--stop-at", "2"])
    main(["network", "export", "archive", "unpack", *toy])
    return work


@pytest.fixture(scope="session")
def drawing_only(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained folder with a network that takes no source picture."""
    folder = tmp_path_factory.mktemp("drawing") / "weights"
    shutil.copytree(trained / "weights", folder)
    torch.manual_seed(2)
    network = build_network(replace(toy_recipe(trained).architecture, editing=False))
    network.to(torch.bfloat16).save_pretrained(folder / "transformer")
    return folder


def toy_recipe(trained: Path) -> NetworkRecipe:
    """What the fixture was trained with, as its state file says."""
    values = load_state(trained / STATE)[1]["recipe"]
    architecture = {k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("architecture").items()}
    update = {k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("update").items()}
    return NetworkRecipe(architecture=Architecture(**architecture), update=UpdateSettings(**update), **values)
