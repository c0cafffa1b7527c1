"""From a name, a folder or a hub id to a pipeline on its device.

Comes in: what a person calls a model, and where and how it should run. Goes out: a pipeline, or an error that says
which. It refuses to know what a pipeline does.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, overload

import torch

from kandinsky5 import hub
from kandinsky5.budget import Budget
from kandinsky5.checkpoint.safetensors_header import BITS, StoredTensor
from kandinsky5.checkpoint.weights import TORCH_DTYPES, Library, read_weights
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.memory import load_planned, plan_for
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.placement import (
    AUTO,
    free_memory,
    resolve_device,
    resolve_dtype,
    resolve_mode,
    use_fast_autoencoder,
    use_mode,
)
from kandinsky5.prompts import Task
from kandinsky5.variants import check_task, resolve_model

_LIBRARIES: Final[Mapping[str, Library]] = {
    "transformer": "diffusers",
    "vae": "diffusers",
    "text_encoder": "transformers",
    "text_encoder_2": "transformers",
}
_NOT_ALWAYS_LOADED: Final = ("visual.", "model.visual.", "lm_head.")
"""Tensors of the text encoder that drawing from a prompt does without."""


PIPELINES: Final[Mapping[Task, type[Kandinsky5T2IPipeline | Kandinsky5I2IPipeline]]] = MappingProxyType(
    {pipeline.task: pipeline for pipeline in (Kandinsky5T2IPipeline, Kandinsky5I2IPipeline)}
)
"""The class for each task. Text to image runs on editing checkpoints too."""


@overload
def load_pipeline(
    model: str | Path,
    *,
    device: str = ...,
    dtype: str = ...,
    variant: str | None = ...,
    revision: str | None = ...,
    access: hub.HubAccess | None = ...,
    force_download: bool = ...,
    watch: hub.Watch = ...,
    memory: str | Budget | None = ...,
    mode: str | None = ...,
) -> Kandinsky5T2IPipeline: ...


@overload
def load_pipeline(
    model: str | Path,
    *,
    task: Task,
    device: str = ...,
    dtype: str = ...,
    variant: str | None = ...,
    revision: str | None = ...,
    access: hub.HubAccess | None = ...,
    force_download: bool = ...,
    watch: hub.Watch = ...,
    memory: str | Budget | None = ...,
    mode: str | None = ...,
) -> Kandinsky5T2IPipeline | Kandinsky5I2IPipeline: ...


def load_pipeline(
    model: str | Path,
    *,
    task: Task = "text-to-image",
    device: str = "auto",
    dtype: str = "auto",
    variant: str | None = None,
    revision: str | None = None,
    access: hub.HubAccess | None = None,
    force_download: bool = False,
    watch: hub.Watch = hub.bars,
    memory: str | Budget | None = None,
    mode: str | None = AUTO,
) -> Kandinsky5T2IPipeline | Kandinsky5I2IPipeline:
    """The pipeline of a known checkpoint, a folder or a hub id, on its device.

    Args:
        model: a name from `kandinsky5 info`, a folder in the published layout, or a hub id.
        task: "text-to-image", or "editing", which needs an editing checkpoint.
        device: "auto", or anything `torch.device` takes.
        dtype: "auto", "float32" ("fp32"), "bfloat16" ("bf16") or "float16" ("fp16").
        variant: weights stored beside the usual ones under another name ("fp16").
        revision: branch, tag or commit of a hub id.
        access: token, cache and address of the hub, and whether it may be asked.
        force_download: fetch a hub id again.
        watch: shows what is fetched; `hub.unseen` shows nothing.
        memory: that it may take, "8GB", "auto" or "8GB:16GB" (`Budget.of`), or a `Budget`, which also says for which
            requests: a plan places the components, and is the pipeline's `plan`. None puts all of it on the device, as
            it is.
        mode: one of `placement.MODES`, `placement.AUTO`, or None for the ordinary way; what memory= leaves open. In
            each but the ordinary way the autoencoder uses fused kernels too, where they run.

    Raises:
        RequestError: a name, task, device, dtype or mode that does not exist, memory that is no amount, or a mode
            beside it; a revision of a folder; a checkpoint that cannot do the task.
        CheckpointError: weights that are missing or cannot be read; a hub that refuses or is out of reach.
        CapacityError: no room on the disk for what is fetched, or in memory for what is loaded.
    """
    source = resolve_model(str(model))
    check_task(source, task)
    budget = _budget_of(memory, mode)
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    if mode is not None and mode != AUTO:
        resolve_mode(mode, chosen_device, chosen_dtype)  # refuses an unknown one before anything is fetched
    if source.folder is not None:
        if revision is not None or force_download:
            asked = "revision" if revision is not None else "force_download"
            raise RequestError(f"{asked} is for hub ids, and {source.name} is a folder; leave it out.")
        folder = source.folder
    else:
        about = hub.HubArguments(access=access or hub.HubAccess(), revision=revision)
        PIPELINES[task].check_checkpoint(source.location, about, watch)
        folder = hub.fetch(
            source.location,
            hub.need.pipeline(task, variant=variant),
            revision=revision,
            access=access,
            force=force_download,
            watch=watch,
        )
    if budget is not None:
        edits = task == "editing"
        plan = plan_for(
            folder, budget, device=chosen_device, dtype=chosen_dtype, edits=edits, variant=variant
        )
        pipeline = load_planned(PIPELINES[task], folder, plan, dtype=chosen_dtype, variant=variant)
        pipeline.register_to_config(_name_or_path=source.location)
        return pipeline
    check_memory(source.name, folder, chosen_device, chosen_dtype, variant)
    pipeline = PIPELINES[task].from_pretrained(str(folder), dtype=chosen_dtype, variant=variant)
    pipeline.register_to_config(_name_or_path=source.location)
    pipeline.to(chosen_device)
    use_mode(pipeline.transformer, mode, device=chosen_device)
    if mode is not None:
        use_fast_autoencoder(pipeline.vae, chosen_device)
    return pipeline


def _budget_of(memory: str | Budget | None, mode: str | None) -> Budget | None:
    """What memory= says. Raises RequestError for what is no amount, and for a mode beside it."""
    budget = Budget.of(memory) if isinstance(memory, str) else memory
    if budget is not None and not isinstance(budget, Budget):
        raise RequestError(f'memory must be an amount, such as "8GB", or a Budget, not {memory!r:.80}.')
    if mode != AUTO and budget is not None:
        raise RequestError(
            "A plan of memory chooses how the network computes, too: leave mode= or memory= out."
        )
    return budget


def check_memory(
    name: str, folder: Path, device: torch.device, dtype: torch.dtype, variant: str | None = None
) -> None:
    """Refuse what cannot fit before it is loaded. Raises CapacityError that names both sizes."""
    needed, free = memory_needed(folder, dtype, variant), free_memory(device)
    if free is None or needed <= free:
        return
    ways = []
    if dtype.itemsize > 2:
        ways.append("bfloat16 (--precision bf16) needs half of that")
    host = free_memory(torch.device("cpu"))
    if device.type != "cpu" and host is not None and host >= needed:
        ways.append(f"the CPU has {host / 1e9:.1f} GB (--device cpu)")
    if device.type in ("cuda", "cpu"):
        ways.append("--memory auto streams what does not fit")
    raise CapacityError(
        f"The weights of {name} need {needed / 1e9:.1f} GB in {str(dtype).removeprefix('torch.')} on {device}, "
        f"where {free / 1e9:.1f} GB are free; {', or '.join(ways) or 'end other programs, or use another machine'}."
    )


def memory_needed(folder: Path, dtype: torch.dtype, variant: str | None = None) -> int:
    """Bytes that the weights in a folder take at least, in a dtype; components that cannot be read count as nothing.

    Left out: the vision tower and the vocabulary projection, which not every task loads; parts that stay float32; and
    what a picture needs on top.
    """
    total = 0
    for component, library in _LIBRARIES.items():
        for form in dict.fromkeys((variant, None)):
            try:
                stored = read_weights(folder / component, library, form)
            except CheckpointError:
                continue  # said with its file's name while it is loaded
            total += sum(
                _size(tensor, dtype)
                for name, tensor in stored.items()
                if component != "text_encoder" or not name.startswith(_NOT_ALWAYS_LOADED)
            )
            break
    return total


def _size(tensor: StoredTensor, dtype: torch.dtype) -> int:
    count = math.prod(tensor.shape)
    return count * dtype.itemsize if tensor.dtype in TORCH_DTYPES else count * BITS[tensor.dtype] // 8
