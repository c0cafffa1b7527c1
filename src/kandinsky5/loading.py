"""From a name or a folder to a pipeline, with our network class in diffusers' place.

Published folders name `["diffusers", "Kandinsky5Transformer3DModel"]` in `model_index.json`. In memory that entry is
replaced by our module, so that `from_pretrained` brings dtype, device map and quantisation to our class; on disk it stays,
so that every library that reads the layout finds what it knows. This file refuses to know what a pipeline does.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.utils import is_torchvision_available

from kandinsky5.errors import CheckpointError
from kandinsky5.placement import resolve_device, resolve_dtype
from kandinsky5.variants import resolve_model

if TYPE_CHECKING:
    from kandinsky5.pipelines import Kandinsky5T2IPipeline

NETWORK_CLASS = "Kandinsky5Transformer3DModel"
NETWORK_MODULE = "kandinsky5.model.transformer"
QWEN_PROCESSORS = ("Qwen2_5_VLProcessor", "Qwen2VLProcessor")


def with_our_classes(index: Any) -> Any:
    """`model_index.json` as it is read, with the classes that this package and this machine can build.

    The network becomes ours. Qwen's processor builds a video half that needs torchvision; where that is missing, its
    tokenizer is loaded instead, which is all that text to image uses.
    """
    if not isinstance(index, dict):  # load_config(return_unused_kwargs=True) gives a tuple around it
        return (with_our_classes(index[0]), *index[1:]) if isinstance(index, tuple) else index
    changed = dict(index)
    if _class_of(index, "transformer") == NETWORK_CLASS:
        changed["transformer"] = [NETWORK_MODULE, NETWORK_CLASS]
    if _class_of(index, "tokenizer") in QWEN_PROCESSORS and not is_torchvision_available():
        changed["tokenizer"] = ["transformers", "Qwen2Tokenizer"]
    return changed


def published_index(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of `model_index.json` as they are written: our network under the library where others look for it."""
    return {
        name: ("diffusers", entry[1]) if entry[0] == NETWORK_MODULE else entry for name, entry in entries.items()
    }


def load_pipeline(model: str, *, device: str = "auto", dtype: str = "auto") -> "Kandinsky5T2IPipeline":
    """The pipeline of a known checkpoint, a folder or a hub id, on its device.

    Args:
        model: a name from `kandinsky5 info`, a folder in the published layout, or a hub id.
        device: "auto", or anything `torch.device` takes.
        dtype: "auto", "float32", "bfloat16" or "float16".

    Raises:
        RequestError: a name, device or dtype that does not exist.
        CheckpointError: weights that are missing or cannot be read.
    """
    from kandinsky5.pipelines import Kandinsky5T2IPipeline

    source = resolve_model(model)
    chosen_device = resolve_device(device)
    chosen_dtype = resolve_dtype(dtype, chosen_device)
    if source.folder is not None and not (Path(source.folder) / "model_index.json").is_file():
        raise CheckpointError(
            f"{source.folder} has no model_index.json: it is not a folder in the published layout."
        )
    try:
        pipeline = Kandinsky5T2IPipeline.from_pretrained(
            source.location, torch_dtype=chosen_dtype, use_safetensors=True
        )
    except OSError as error:
        raise CheckpointError(f"{source.name} cannot be loaded: {error}") from error
    return pipeline.to(chosen_device)


def _class_of(index: Mapping[str, Any], component: str) -> str | None:
    entry = index.get(component)
    return entry[1] if isinstance(entry, list | tuple) and len(entry) == 2 else None
