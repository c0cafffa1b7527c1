"""A toy system, real classes throughout, trained for a few steps once for all tests of the recipe."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kandinsky5.demo import train_options
from kandinsky5.demo.architecture import TOY as TOY_SIZE
from kandinsky5.demo.architecture import build_network
from kandinsky5.demo.train import main
from kandinsky5.train.settings import TrainingSettings

TOY = [
    "--toy",
    "--autoencoder-steps",
    "3",
    "--autoencoder-batch",
    "2",
    "--least-things-db",
    "0",
    *(
        "--set",
        "run.steps=4",
        "--set",
        "optimiser.warmup=2",
        "--set",
        "run.batch=8",
        "--set",
        "run.micro_batch=8",
        "--set",
        "optimiser.name=adamw",  # which a plain loop is held to; Muon has tests of its own
        "--set",
        "optimiser.rate=8e-4",
    ),
]
FLOAT32 = ["--dtype", "float32", "--workers", "0", "--device", "cpu"]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which every stage has run; the network in two commands."""
    work = tmp_path_factory.mktemp("recipe")
    toy = [*TOY, *FLOAT32, "--work", str(work)]
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
    network = build_network(replace(TOY_SIZE, editing=False))
    network.to(torch.bfloat16).save_pretrained(folder / "transformer")
    return folder


def toy_settings(trained: Path, *changes: str) -> TrainingSettings:
    """What the fixture's network was trained with, and changes to it."""
    options = [*TOY, *FLOAT32, "--work", str(trained), *(part for one in changes for part in ("--set", one))]
    return train_options.network_settings(train_options.command_line(None).parse_args(["network", *options]))
