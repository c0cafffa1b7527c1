"""`model_index.json` as others write it, and as this package and this machine can build it.

Published folders name `["diffusers", "Kandinsky5Transformer3DModel"]`. In memory that entry is replaced by our module,
so that `from_pretrained` brings dtype, device map and quantisation to our class; on disk it stays, so that every
library that reads the layout finds what it knows. Comes in and goes out: the index as a mapping. This file refuses to
know pipelines, tensors and paths.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from transformers.utils import is_torchvision_available

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
        name: ("diffusers", entry[1]) if _is_pair(entry) and entry[0] == NETWORK_MODULE else entry
        for name, entry in entries.items()
    }


def _class_of(index: Mapping[str, Any], component: str) -> str | None:
    entry = index.get(component)
    return entry[1] if _is_pair(entry) else None


def _is_pair(entry: Any) -> TypeGuard[Sequence[Any]]:
    """Whether an entry is of a component: its library and class. Settings are entries too."""
    return isinstance(entry, list | tuple) and len(entry) == 2
