"""A pipeline's folder, proven before diffusers or transformers see it.

Comes in: a folder in the published layout, and which components the caller brings along. Goes out: what each model's
files hold, and the components without weights, loaded. Each model's `config.json` is built without storage, and names
and shapes of the stored tensors are held to it; a library would fill what is missing with random numbers.
"""

import importlib
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import nn
from transformers import (
    CLIPTextModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2_5_VLForConditionalGeneration,
)

from kandinsky5.checkpoint.document import read_object, reason
from kandinsky5.checkpoint.packing import stored_format
from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.checkpoint.weights import (
    Library,
    common_dtype,
    compare,
    compare_packed,
    read_weights,
    unpacked_dtype,
)
from kandinsky5.errors import CheckpointError
from kandinsky5.model.layout import check_config
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines.encoder_parts import leaving_out
from kandinsky5.pipelines.published import NETWORK_CLASS, with_our_classes
from kandinsky5.pipelines.stored_names import clip_name, qwen_name, vae_name
from kandinsky5.prompts import TEMPLATE_NAMES

INDEX = "model_index.json"
LARGEST_NUMBER = 2**31
LAYER_COUNTS = ("num_hidden_layers", "depth", "layers_per_block", "num_labels", "num_key_value_heads")
"""Fields of the libraries' configs that say how much is built: each layer has tensors, so more is a lie."""

NO_LONGER_STORED = ("position_ids", "inv_freq")
"""Buffers that older versions of the libraries stored. Other tensors with no place in the model are a lie of the
config, unless they belong to a part that the model does not have (the picture half of a whole CLIP)."""


@dataclass(frozen=True, kw_only=True)
class ModelKind:
    """A component with weights: its library and class, and how its stored tensors are called today."""

    library: Library
    model: type
    current_name: Callable[[str], str]


KINDS: Mapping[str, ModelKind] = {
    "vae": ModelKind(library="diffusers", model=AutoencoderKL, current_name=vae_name),
    "text_encoder": ModelKind(
        library="transformers", model=Qwen2_5_VLForConditionalGeneration, current_name=qwen_name
    ),
    "text_encoder_2": ModelKind(library="transformers", model=CLIPTextModel, current_name=clip_name),
}
LIGHT: Mapping[str, tuple[type, ...]] = {
    "scheduler": (SchedulerMixin,),
    "tokenizer": (PreTrainedTokenizerBase, ProcessorMixin),
    "tokenizer_2": (PreTrainedTokenizerBase,),
}
"""Components without weights, and what their class must be."""


@dataclass(frozen=True, kw_only=True)
class CheckedModel:
    """What a model's files hold: tensors by their current name, the dtype that holds all of them, and whether a
    library packed them (quantised), under names of its own.
    """

    tensors: Mapping[str, StoredTensor]
    dtype: torch.dtype | None
    is_packed: bool


@dataclass(frozen=True, kw_only=True)
class CheckedFolder:
    """What is known of a folder: the index as it is on disk, models but the network, components without weights."""

    index: Mapping[str, Any]
    models: dict[str, CheckedModel]
    light: dict[str, Any]

    @property
    def dtypes(self) -> dict[str, torch.dtype | None]:
        """What to load each component in so that what is stored is kept; None leaves it to the network's class."""
        stored = {name: model.dtype for name, model in self.models.items()}
        return {"transformer": None, **stored, "default": torch.float32}


def check_folder(folder: Path, brought: Collection[str] = (), variant: str | None = None) -> CheckedFolder:
    """Prove a folder.

    Args:
        folder: with `model_index.json`.
        brought: components that the caller passes; their folders are not looked at.
        variant: of the weights ("fp16"); a component that has none of it is read without.

    Raises:
        CheckpointError: naming the file and, where there is one, the tensor. The network's own tensors are checked by
            its class, when it loads.
    """
    index = _read_index(folder, brought)
    wanted = [
        name
        for name in ("transformer", *KINDS, *LIGHT)
        if name not in brought and index[name] != [None, None]
    ]
    for name in wanted:
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder} has no folder {name!r}, which its {INDEX} names.")
    ours = with_our_classes(dict(index))
    models = {name: _check_model(name, folder / name, variant) for name in wanted if name in KINDS}
    light = {name: _load_light(name, ours[name], folder / name) for name in wanted if name in LIGHT}
    return CheckedFolder(index=index, models=models, light=light)


def stored_tensors(name: str, folder: Path, variant: str | None = None) -> dict[str, StoredTensor]:
    """What the files of one of a pipeline's models hold, by the names of today's library; without a check of names."""
    kind = KINDS[name]
    return _renamed(read_weights(folder / name, kind.library, variant), kind, folder / name)


def _read_index(folder: Path, brought: Collection[str]) -> dict[str, Any]:
    """`model_index.json`, where each component names a class that a Kandinsky 5 image pipeline is made of."""
    file = folder / INDEX
    if folder.is_dir() and not file.exists():
        raise CheckpointError(f"{folder} has no {INDEX}: it is not a folder in the published layout.")
    index = read_object(file)
    classes = {"transformer": ("diffusers", NETWORK_CLASS)}
    classes |= {name: (kind.library, kind.model.__name__) for name, kind in KINDS.items()}
    for name in ("transformer", *KINDS, *LIGHT):
        if name in brought:
            continue
        entry = index.get(name)
        if entry == [None, None]:
            continue
        if not isinstance(entry, list) or [type(part) for part in entry] != [str, str]:
            raise CheckpointError(f"{file} must name library and class of {name!r}, not {str(entry)[:80]}.")
        if name in classes and tuple(entry) != classes[name]:
            raise CheckpointError(
                f"{file} names {entry[1]} of {entry[0]} as {name!r}; it must be {classes[name]}."
            )
        if name in LIGHT and entry[0] not in ("diffusers", "transformers"):
            raise CheckpointError(f"{file}: {name!r} comes from {entry[0]!r}, which is not opened.")
    _check_defaults(index, file)
    return index


def _check_defaults(index: Mapping[str, Any], file: Path) -> None:
    """The settings that our own folders keep beside the components."""
    if not isinstance(index.get("_class_name", ""), str):
        raise CheckpointError(f"{file}: _class_name must be a text; code in a folder is not run.")
    steps, guidance = index.get("default_steps", 1), index.get("default_guidance", 1.0)
    if type(steps) is not int or not 1 <= steps <= 10_000:
        raise CheckpointError(f"{file}: default_steps must be from 1 to 10000, not {str(steps)[:80]}.")
    if type(guidance) not in (int, float) or not 0 <= guidance <= 1000:
        raise CheckpointError(f"{file}: default_guidance must be from 0 to 1000, not {str(guidance)[:80]}.")
    if index.get("template", TEMPLATE_NAMES[0]) not in TEMPLATE_NAMES:
        raise CheckpointError(f"{file}: template must be one of {', '.join(TEMPLATE_NAMES)}.")


def _check_model(name: str, folder: Path, variant: str | None) -> CheckedModel:
    """Hold a library's model to its config."""
    kind, file = KINDS[name], folder / "config.json"
    config = read_object(file)
    stored = stored_weights(folder, kind.library, variant)
    _check_sizes(config, len(stored), file)
    if name == "vae":
        _check_vae(config, file)
    model = _empty(kind, config, file)
    expected = {kind.current_name(key): tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for tied in _tied(model):
        expected.pop(kind.current_name(tied), None)
    trees = {key.partition(".")[0] for key in expected}
    renamed = _renamed(stored, kind, folder)
    if config.get("quantization_config") is not None:  # packed by a library that names tensors itself
        if stored_format(config) is not None:
            compare_packed(renamed, expected, folder)
        return CheckedModel(tensors=renamed, dtype=unpacked_dtype(renamed, expected), is_packed=True)
    compare(
        {
            key: tensor
            for key, tensor in renamed.items()
            if key in expected or (key.partition(".")[0] in trees and not key.endswith(NO_LONGER_STORED))
        },
        expected,
        folder,
    )
    return CheckedModel(tensors=renamed, dtype=common_dtype(stored), is_packed=False)


def empty_network(folder: Path, variant: str | None = None) -> Kandinsky5Transformer3DModel:
    """The network of a folder's config without storage. Raises CheckpointError for a config that cannot be built."""
    file = folder / Kandinsky5Transformer3DModel.config_name
    config = read_object(file)
    check_config(config, stored_weights(folder, "diffusers", variant), file)
    config.pop("quantization_config", None)
    try:
        with torch.device("meta"):
            return Kandinsky5Transformer3DModel.from_config(config)
    except Exception as error:  # whatever a lying config leads to
        raise CheckpointError(f"{file} describes no network that can be built: {reason(error)}") from error


def empty_model(name: str, folder: Path, variant: str | None = None, *, sees: bool = False) -> nn.Module:
    """A library's model of a folder's config without storage.

    Args:
        name: of `KINDS`.
        folder: of the component.
        variant: of the weight files.
        sees: with Qwen's vision tower, which not every task loads. Its vocabulary projection is left out.

    Raises:
        CheckpointError: a config that cannot be built.
    """
    kind, file = KINDS[name], folder / "config.json"
    config = read_object(file)
    _check_sizes(config, len(stored_weights(folder, kind.library, variant)), file)
    config.pop("quantization_config", None)
    with leaving_out(["head"] if sees else ["head", "vision"]):
        return _empty(kind, config, file)


def stored_weights(folder: Path, library: Library, variant: str | None = None) -> Mapping[str, StoredTensor]:
    """The tensors of a component's files: of a variant, or without it where there is none."""
    in_variant = variant is not None and next(folder.glob(f"*.{variant}*"), None) is not None
    return read_weights(folder, library, variant if in_variant else None)


def _empty(kind: ModelKind, config: dict[str, Any], file: Path) -> nn.Module:
    try:
        with torch.device("meta"):
            return _build(kind, config)
    except Exception as error:  # whatever a lying config leads to
        raise CheckpointError(
            f"{file} describes no {kind.model.__name__} that can be built: {reason(error)}"
        ) from error


def _build(kind: ModelKind, config: dict[str, Any]) -> nn.Module:
    if kind.library == "diffusers":
        return kind.model.from_config(config)  # type: ignore[attr-defined]
    return kind.model(kind.model.config_class.from_dict(config))  # type: ignore[attr-defined]


def _tied(model: nn.Module) -> Collection[str]:
    """Tensors that need not be stored, since they are others'."""
    config = getattr(model, "config", None)
    return (
        getattr(model, "_tied_weights_keys", None) or ()
        if getattr(config, "tie_word_embeddings", False)
        else ()
    )


def _renamed(stored: Mapping[str, StoredTensor], kind: ModelKind, folder: Path) -> dict[str, StoredTensor]:
    renamed: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        current = kind.current_name(name)
        if current in renamed:
            raise CheckpointError(f"Tensor {name!r} in {tensor.file} is in {folder} under another name too.")
        renamed[current] = tensor
    return renamed


def _check_sizes(config: Any, tensors: int, file: Path) -> None:
    """Refuse numbers that would make a library build without end."""
    if isinstance(config, list):
        for value in config:
            _check_sizes(value, tensors, file)
    elif isinstance(config, dict):
        for key, value in config.items():
            _check_sizes(value, tensors, file)
            if key in LAYER_COUNTS and type(value) in (int, float) and not 0 <= value <= tensors:
                raise CheckpointError(f"{file}: {key} is {str(value)[:80]}, but there are {tensors} tensors.")
    elif type(config) in (int, float) and not abs(config) < LARGEST_NUMBER:
        raise CheckpointError(f"{file} has the number {str(config)[:80]}, which no size or setting is.")


def _check_vae(config: Mapping[str, Any], file: Path) -> None:
    """The two settings of the autoencoder that the pipelines read."""
    size = config.get("sample_size", 1024)
    sides = size if isinstance(size, list) else [size]
    if len(sides) > 2 or not all(type(side) is int and 1 <= side <= 2**16 for side in sides) or not sides:
        raise CheckpointError(
            f"{file}: sample_size must be one or two sides in pixels, not {str(size)[:80]}."
        )
    scale = config.get("scaling_factor", 1.0)
    if type(scale) not in (int, float) or not math.isfinite(scale) or scale <= 0:
        raise CheckpointError(f"{file}: scaling_factor must be a number above 0, not {str(scale)[:80]}.")


def _load_light(name: str, entry: list[str], folder: Path) -> Any:
    """A scheduler, tokenizer or processor; its files have no weights, so loading is the check."""
    for file in folder.glob("*.json"):
        if file.name not in ("merges.json", "added_tokens.json", "vocab.json"):
            read_object(file)
    try:
        loaded_class = getattr(importlib.import_module(entry[0]), entry[1])
        if not issubclass(loaded_class, LIGHT[name]):
            raise TypeError(f"{entry[1]} is no {' or '.join(kind.__name__ for kind in LIGHT[name])}")
        loaded = loaded_class.from_pretrained(str(folder))
    except Exception as error:  # whatever damaged files lead to
        raise CheckpointError(
            f"{folder} cannot be loaded as {entry[1]}: {type(error).__name__}: {reason(error)}"
        ) from error
    return loaded
