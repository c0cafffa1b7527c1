"""A pipeline's folder, proven before diffusers or transformers see it.

Comes in: a folder in the published layout, and which components the caller brings along. Goes out: what each model's
files hold, and the components without weights, loaded. Each model's `config.json` is built without storage, and names
and shapes of the stored tensors are held to it; a library would fill what is missing with random numbers.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.models import AutoencoderKL
from torch import nn
from transformers import CLIPTextModel, Qwen2_5_VLForConditionalGeneration

from kandinsky5.checkpoint.document import read_object, reason
from kandinsky5.checkpoint.packing import PLAIN, stored_format
from kandinsky5.checkpoint.quantizer import check_quantizer
from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.checkpoint.turn import TURN
from kandinsky5.checkpoint.weights import (
    Library,
    common_dtype,
    compare,
    compare_packed,
    read_weights,
    unpacked_dtype,
)
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.model.layout import check_config
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines.config_numbers import check_sizes, check_vae
from kandinsky5.pipelines.encoder_parts import TEXT_ENCODER_PARTS, leaving_out, stored_packed
from kandinsky5.pipelines.published import NETWORK_CLASS, with_our_classes
from kandinsky5.pipelines.stored_names import clip_name, qwen_name, vae_name
from kandinsky5.pipelines.weightless import LIGHT, load_light
from kandinsky5.prompts import TEMPLATE_NAMES

INDEX = "model_index.json"
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
    def absent(self) -> dict[str, None]:
        """Components that the folder was saved without."""
        return {
            name: None for name in ("transformer", *KINDS, *LIGHT) if self.index.get(name) == [None, None]
        }

    @property
    def dtypes(self) -> dict[str, torch.dtype | None]:
        """What to load each component in so that what is stored is kept; None leaves it to the network's class."""
        stored = {name: model.dtype for name, model in self.models.items()}
        return {"transformer": None, **stored, "default": torch.float32}

    def dtypes_for(self, asked: Any) -> Any:
        """The dtypes to load in: what a caller asks for (one, or one a component), and what is stored of the rest."""
        if asked is None:
            return self.dtypes
        if not isinstance(asked, dict) or asked.get("default") is not None:
            return asked
        return {**self.dtypes, **{name: dtype for name, dtype in asked.items() if dtype is not None}}


def check_folder(folder: Path, brought: Collection[str] = (), variant: str | None = None) -> CheckedFolder:
    """Prove a folder.

    Args:
        folder: with `model_index.json`.
        brought: components that the caller passes; their folders are not looked at.
        variant: of the weights ("fp16"); a component that has none of it is read without.

    Raises:
        CheckpointError: naming the file and, where there is one, the tensor. The network's own tensors are checked by
            its class, when it loads.
        RequestError: a variant that no component has.
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
    models_wanted = [name for name in wanted if name not in LIGHT]
    if variant is not None and models_wanted:
        _check_variant(folder, models_wanted, variant)
    ours = with_our_classes(dict(index))
    models = {name: _check_model(name, folder / name, variant) for name in wanted if name in KINDS}
    light = {name: load_light(name, ours[name], folder / name) for name in wanted if name in LIGHT}
    return CheckedFolder(index=index, models=models, light=light)


def load_tokenizer(folder: Path) -> Any:
    """Qwen's tokenizer, or the processor that it is part of, of a pipeline's folder.

    Raises:
        CheckpointError: as `check_folder`, of the index and of the tokenizer's own files.
    """
    index = with_our_classes(dict(_read_index(folder, brought=())))
    return load_light("tokenizer", index["tokenizer"], folder / "tokenizer")


def stored_tensors(name: str, folder: Path, variant: str | None = None) -> dict[str, StoredTensor]:
    """What the files of one of a pipeline's models hold, by the names of today's library; without a check of names."""
    kind = KINDS[name]
    return _renamed(stored_weights(folder / name, kind.library, variant), kind, folder / name)


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
    _check_no_adapter(folder)
    stored = stored_weights(folder, kind.library, variant)
    check_sizes(config, len(stored), file)
    if name == "vae":
        check_vae(config, len(stored), file)
    check_quantizer(config, kind.library, file)
    model = _empty(kind, config, file)
    expected = {kind.current_name(key): tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    for tied in _tied(model):
        expected.pop(kind.current_name(tied), None)
    trees = {key.partition(".")[0] for key in expected}
    renamed = _renamed(stored, kind, folder)
    form = stored_format(config)
    if form != PLAIN:
        compare_packed(renamed, expected, folder, form)
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
    check_quantizer(config, "diffusers", file)
    config.pop("quantization_config", None)
    try:
        with TURN, torch.device("meta"):
            return Kandinsky5Transformer3DModel.from_config(config)
    except Exception as error:  # whatever a lying config leads to
        raise CheckpointError(f"{file} describes no network that can be built: {reason(error)}") from error


def empty_model(name: str, folder: Path, variant: str | None = None, *, sees: bool = False) -> nn.Module:
    """A library's model of a folder's config without storage.

    Args:
        name: of `KINDS`.
        folder: of the component.
        variant: of the weight files.
        sees: with Qwen's vision tower, which not every task loads. Its vocabulary projection is left out, where neither
            is packed.

    Raises:
        CheckpointError: a config that cannot be built.
    """
    kind, file = KINDS[name], folder / "config.json"
    config = read_object(file)
    stored = stored_weights(folder, kind.library, variant)
    check_sizes(config, len(stored), file)
    if name == "vae":
        check_vae(config, len(stored), file)
    check_quantizer(config, kind.library, file)
    config.pop("quantization_config", None)
    packed = stored_packed({kind.current_name(key): tensor for key, tensor in stored.items()})
    with leaving_out(TEXT_ENCODER_PARTS.keys() - packed - ({"vision"} if sees else set())):
        return _empty(kind, config, file)


def stored_weights(folder: Path, library: Library, variant: str | None = None) -> Mapping[str, StoredTensor]:
    """The tensors of a component's files: of a variant, or without it where there is none."""
    in_variant = variant is not None and _has_variant(folder, variant)
    return read_weights(folder, library, variant if in_variant else None)


def _has_variant(folder: Path, variant: str) -> bool:
    names = [file.name for file in folder.glob("*") if file.suffix in (".safetensors", ".json")]
    return any(f".{variant}." in name or f".{variant}-" in name for name in names)


def _check_variant(folder: Path, names: Collection[str], variant: str) -> None:
    """Refuse a variant that no component has, which would be the usual weights under another name."""
    if not any(_has_variant(folder / name, variant) for name in names):
        raise RequestError(
            f"{folder} has no weights of variant {variant!r} in {', '.join(names)}; leave variant out."
        )


def _check_no_adapter(folder: Path) -> None:
    """A config that makes transformers load another model than the folder's, from wherever it says."""
    file = folder / "adapter_config.json"
    if file.exists():
        raise CheckpointError(
            f"{file} would have an adapter loaded, onto weights from elsewhere; remove it, and load the adapter with "
            "load_lora_weights."
        )


def _empty(kind: ModelKind, config: dict[str, Any], file: Path) -> nn.Module:
    try:
        with TURN, torch.device("meta"):
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
