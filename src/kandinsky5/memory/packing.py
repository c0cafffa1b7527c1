"""A folder whose network and text encoder are packed, in the published layout.

Comes in: a folder, a format for each. Goes out: a folder that pipelines take like any other, safetensors only, whole or
not at all. One component is in memory at a time. Refuses to know: what formats are good for.
"""

import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import PipelineQuantizationConfig
from transformers.utils import logging as transformers_logging

from kandinsky5.checkpoint.document import read_object
from kandinsky5.checkpoint.packing import PLAIN, stored_format
from kandinsky5.checkpoint.weights import PICKLES
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.memory.formats import PACKED, config, pack, why_not
from kandinsky5.memory.machine import SLACK
from kandinsky5.memory.parts import WIDE, Model, model_of, narrow
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.pipelines.base import MAX_SHARD
from kandinsky5.pipelines.folder import KINDS, LIGHT, stored_weights
from kandinsky5.pipelines.staging import staged
from kandinsky5.placement import free_memory

logger = logging.getLogger(__name__)

DTYPE = torch.bfloat16
"""Of what is not packed in a packed component; the libraries' products want it."""


def write_packed(folder: Path, target: Path, *, network: str, encoder: str, device: torch.device) -> None:
    """Write a folder with its network and text encoder packed.

    Args:
        folder: in the published layout, neither of them packed.
        target: where it goes; must not exist, nor be inside `folder`.
        network, encoder: formats; "bf16" copies the component's files.
        device: where 4-bit weights are packed, a layer at a time.

    Raises:
        RequestError: nothing to pack, a format that cannot be had here, or a target that exists.
        CheckpointError: a folder that is damaged or packed already, or a target that cannot be written.
        CapacityError: no room in memory for a packed component, or on the disk.
    """
    formats = dict(zip(PACKED, (network, encoder), strict=True))
    _check(folder, target, formats)
    model = model_of(folder, DTYPE, sees=True)
    check_room(model, formats, target)
    with staged(target.absolute()) as stage:
        shutil.copyfile(folder / "model_index.json", stage / "model_index.json")
        for name in ("transformer", *KINDS, *LIGHT):
            form = formats.get(name, PLAIN)
            if not (folder / name).is_dir():
                continue
            if form == PLAIN:
                _copy(folder / name, stage / name)
            elif name == "transformer":
                _write_network(folder / name, stage / name, form, device)
            else:
                _write_encoder(folder, stage / name, form)


def check_room(model: Model, formats: dict[str, str], target: Path) -> None:
    """Refuse what memory or disk cannot hold. Raises CapacityError."""
    sizes = {name: model.part(name, form).total for name, form in formats.items() if form != PLAIN}
    free = free_memory(torch.device("cpu"))
    largest = max(sizes, key=lambda name: sizes[name])
    if free is not None and sizes[largest] > free * SLACK:
        raise CapacityError(
            f"The {largest} takes {sizes[largest] / 1e9:.1f} GB in {formats[largest]}, and {free / 1e9:.1f} GB are "
            "free; end other programs, or choose a smaller format."
        )
    whole = sum(model.part(name, formats.get(name, PLAIN)).total for name in model.components)
    place = next(parent for parent in target.absolute().parents if parent.exists())
    if (room := shutil.disk_usage(place).free) < whole:
        raise CapacityError(f"{target} would take {whole / 1e9:.1f} GB, and {place} has {room / 1e9:.1f} GB.")


def _check(folder: Path, target: Path, formats: dict[str, str]) -> None:
    if set(formats.values()) == {PLAIN}:
        raise RequestError(
            "Nothing to pack: choose a format other than bf16 for the network or the text encoder."
        )
    if os.path.lexists(target):
        raise RequestError(f"{target} is there already; choose another folder.")
    if folder.resolve() in target.resolve().parents:
        raise RequestError(f"{target} is inside {folder}, which is to be copied; choose another folder.")
    for name, form in formats.items():
        reason = why_not(form, name)
        if reason is not None:
            raise RequestError(f"Format {form} cannot be had for the {name}: {reason}.")
        stored = stored_format(read_object(folder / name / "config.json"))
        if stored != PLAIN and form != PLAIN:
            raise CheckpointError(
                f"{folder / name} is packed already ({stored or 'in a way that is not known here'})."
            )


def _copy(folder: Path, target: Path) -> None:
    """A component's files but for pickles, without modes: a folder that nobody may write to could not be removed."""
    target.mkdir()
    for file in folder.iterdir():
        if file.is_file() and not any(file.match(pickle) for pickle in PICKLES):
            shutil.copyfile(file, target / file.name)


def _write_network(folder: Path, target: Path, form: str, device: torch.device) -> None:
    by_hand = form == "nf4"
    packing = None if by_hand else config(form, "transformer")
    loaded: Any = Kandinsky5Transformer3DModel.from_pretrained(
        folder, dtype=DTYPE, quantization_config=packing
    )
    if by_hand:
        pack(loaded, "transformer", form, device)
    if not _is_wider(folder):
        narrow(loaded, DTYPE)
    loaded.save_pretrained(target, max_shard_size=MAX_SHARD)


def _is_wider(folder: Path) -> bool:
    """Whether time embedding and modulation are stored in more than they would be narrowed to."""
    stored = stored_weights(folder, "diffusers")
    return any(tensor.dtype != "BF16" for name, tensor in stored.items() if WIDE & set(name.split(".")))


def _write_encoder(folder: Path, target: Path, form: str) -> None:
    others = dict.fromkeys(("transformer", "vae", "text_encoder_2", *LIGHT))
    packing = PipelineQuantizationConfig(quant_mapping={"text_encoder": config(form, "text_encoder")})
    was = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        pipeline = Kandinsky5T2IPipeline.from_pretrained(
            folder,
            dtype=DTYPE,
            text_encoder_parts=["vision", "head"],
            quantization_config=packing,
            **others,
        )
        pipeline.text_encoder.save_pretrained(target, max_shard_size=MAX_SHARD)
    finally:
        if was:
            transformers_logging.enable_progress_bar()
