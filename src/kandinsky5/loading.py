"""From a name, a folder or a hub id to a pipeline on its device.

Comes in: what a person calls a model, and where and how it should run. Goes out: a pipeline, or an error that says
which. It refuses to know what a pipeline does.
"""

import json
from pathlib import Path

from safetensors import SafetensorError

from kandinsky5.errors import CheckpointError
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.placement import resolve_device, resolve_dtype
from kandinsky5.variants import resolve_model


def load_pipeline(model: str, *, device: str = "auto", dtype: str = "auto") -> Kandinsky5T2IPipeline:
    """The pipeline of a known checkpoint, a folder or a hub id, on its device.

    Args:
        model: a name from `kandinsky5 info`, a folder in the published layout, or a hub id.
        device: "auto", or anything `torch.device` takes.
        dtype: "auto", "float32", "bfloat16" or "float16".

    Raises:
        RequestError: a name, device or dtype that does not exist.
        CheckpointError: weights that are missing or cannot be read.
    """
    source = resolve_model(model)
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    if source.folder is not None:
        _check_folder(source.folder)
    try:
        pipeline = Kandinsky5T2IPipeline.from_pretrained(
            source.location, dtype=chosen_dtype, use_safetensors=True
        )
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source.location} cannot be loaded: {reason}") from error
    return pipeline.to(chosen_device)


def _check_folder(folder: Path) -> None:
    """Every component that the index names is there; a missing one would be replaced by an empty one or fail later.

    Raises:
        CheckpointError: naming the file or folder.
    """
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise CheckpointError(
            f"{folder} has no model_index.json: it is not a folder in the published layout."
        )
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{index_file} is not JSON: {error}") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{index_file} is not a JSON object.")
    named = [name for name, entry in index.items() if isinstance(entry, list) and None not in entry]
    missing = [name for name in named if not (folder / name).is_dir()]
    if missing:
        raise CheckpointError(f"{folder} has no folder {missing[0]!r}, which its model_index.json names.")
