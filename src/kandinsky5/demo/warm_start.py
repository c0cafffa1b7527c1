"""A run that begins from published weights instead of from random ones.

Comes in: a folder in the published layout. Goes out: a working folder with its tokenizers and its autoencoder, as if
they had been trained there, and modules that hold its weights. A network that draws from text may become one that
edits. It does not know how any of them is trained.
"""

import hashlib
import shutil
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModel, Qwen2_5_VLForConditionalGeneration

from kandinsky5.demo.trained_modules import TrainedModules
from kandinsky5.errors import CheckpointError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

PARTS = ("tokenizer", "tokenizer_2", "vae")
FIRST_LAYER = "visual_embeddings.in_layer.weight"
"""The network's tensor whose columns are the channels of a patch."""


def take_finished_parts(folder: Path, parts: Path) -> None:
    """Copy the tokenizers and the autoencoder of `folder` to where the stages that train them would leave them."""
    for name in PARTS:
        shutil.copytree(folder / name, parts / name, dirs_exist_ok=True)


def take_weights(folder: Path, modules: TrainedModules) -> None:
    """Put the weights of `folder` into modules of the same sizes; raises CheckpointError where sizes differ.

    The one difference taken: a network that edits may begin from one that does not, and then draws from text as that
    one does until it has learnt to look at a source.
    """
    published = {
        "network": Kandinsky5Transformer3DModel.from_pretrained(folder / "transformer"),
        "text_encoder": Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder"),
        "pooled_encoder": CLIPTextModel.from_pretrained(folder / "text_encoder_2"),
    }
    for name, module in published.items():
        wanted: dict[str, Tensor] = getattr(modules, name).state_dict()
        given: dict[str, Tensor] = module.state_dict()
        if name == "network" and modules.network.config.visual_cond and not module.config.visual_cond:
            given[FIRST_LAYER] = widened(
                given[FIRST_LAYER], module.input_channels, modules.network.input_channels
            )
        differing = [
            key
            for key in wanted | given
            if key not in wanted or key not in given or wanted[key].shape != given[key].shape
        ]
        if differing:
            raise CheckpointError(f"{folder} cannot begin this run: its {name} differs in {differing[0]}.")
        with torch.no_grad():
            for key, tensor in given.items():
                wanted[key].copy_(tensor)


def widened(weight: Tensor, channels: int, wanted: int) -> Tensor:
    """A first layer (D, positions * channels) for `wanted` channels a position; the last, new ones count nothing."""
    of_positions = weight.unflatten(1, (-1, channels))
    return functional.pad(of_positions, (0, wanted - channels)).flatten(1)


def digest(*paths: Path) -> str:
    """What tells such files from others: SHA-256 over tensors and tokenizers in these folders, or files, in order."""
    sha = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.suffix == ".safetensors" or file.name == "tokenizer.json":
                sha.update(file.read_bytes())
    return sha.hexdigest()
