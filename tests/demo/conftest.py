"""A toy system, real classes throughout, trained for a few steps once for all tests of the recipe."""

from pathlib import Path

import pytest
import torch

from kandinsky5.demo.train import main

TOY = [
    "--toy",
    "--steps",
    "4",
    "--warmup",
    "2",
    "--batch",
    "4",
    "--autoencoder-steps",
    "3",
    "--autoencoder-batch",
    "2",
    "--least-things-db",
    "0",
]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder in which every stage has run; text to image in two commands."""
    work = tmp_path_factory.mktemp("recipe")
    toy = [*TOY, "--work", str(work), "--dtype", "float32", "--workers", "0", "--device", "cpu"]
    torch.manual_seed(1)  # the recipe seeds itself; this must not matter
    main(["tokenizers", "autoencoder", *toy])
    main(["text-to-image", *toy, "--stop-at", "2"])
    main(["text-to-image", "export", "archive", "unpack", *toy])
    return work
