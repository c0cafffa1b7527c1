"""Tensors on disk under keys that name what they depend on.

In: a key's parts and a function that computes. Out: the tensors, from disk where they are there and whole. An entry
appears by renaming a finished file, so a writer that is killed leaves no half entry, and several processes may share a
folder. It refuses to know what is computed.
"""

import hashlib
import json
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kandinsky5.checkpoint.document import reason
from kandinsky5.checkpoint.safetensors_header import read_header
from kandinsky5.errors import CheckpointError

SAMPLED = 256
"""Values of each tensor, at equal distances, that a module is told by."""


class TensorCache:
    """A folder of entries, each a small safetensors file."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, key: str) -> Path:
        """Where an entry is, or would be."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def __contains__(self, key: str) -> bool:
        path = self.path(key)
        if not path.is_file():
            return False
        try:
            read_header(path)
        except CheckpointError:  # what a failing disk has left of it
            path.unlink(missing_ok=True)
            return False
        return True

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry, on the CPU; None where there is none that is whole."""
        return load_file(self.path(key)) if key in self else None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an entry. Raises CheckpointError where the disk is full or cannot be written."""
        path = self.path(key)
        partial = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, partial)
            partial.replace(path)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be written: {reason(error)}. What is in the cache is whole."
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink()


def key_of(**parts: object) -> str:
    """A key that differs wherever one of the parts does: SHA-256 of them as JSON, hexadecimal."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(module: nn.Module) -> str:
    """What tells one module's weights from another's: names, shapes, dtypes and a sample of every tensor's values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        for part in _parts(tensor):
            step = max(1, part.numel() // SAMPLED)
            digest.update(part.reshape(-1)[::step].float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _parts(tensor: Any) -> list[Tensor]:
    """The tensors that one is made of: several where torchao has packed it."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    names, _ = tensor.__tensor_flatten__()
    return [part for name in names for part in _parts(getattr(tensor, name))]


def config_of(module: Any) -> dict[str, Any]:
    """What a model of diffusers or transformers was built with, without where it came from."""
    config = module.config
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    return {
        name: value
        for name, value in values.items()
        if not name.startswith("_") and name != "transformers_version"
    }


def digest_of_files(saved: Any) -> str:
    """SHA-256 over the files that a tokenizer or a processor would be saved as."""
    digest = hashlib.sha256()
    with TemporaryDirectory() as folder:
        saved.save_pretrained(folder)
        for path in sorted(Path(folder).rglob("*")):
            if path.is_file():
                digest.update(f"{path.name} {path.stat().st_size}".encode() + path.read_bytes())
    return digest.hexdigest()
