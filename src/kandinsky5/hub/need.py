"""What is wanted of a repository: the folders of a pipeline, or one folder with a network.

In: a task, or the name of a folder. Out: a `Need`, which `plan` turns into files. Refuses to know: the hub, the cache,
and what is in a file.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from kandinsky5.prompts import Task

INDEX: Final = "model_index.json"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A folder of a repository ("" is its root).

    `weights`: how its library names weight files, None for a folder without weights. `shards_first`: whether that
    library prefers a sharded checkpoint to a single file (diffusers does, transformers does not).
    """

    folder: str
    weights: str | None = None
    shards_first: bool = False

    def path(self, name: str) -> str:
        """Where a file of this folder is in the repository."""
        return f"{self.folder}/{name}" if self.folder else name


def _network(folder: str) -> Part:
    return Part(folder=folder, weights="diffusion_pytorch_model", shards_first=True)


PARTS: Final = (
    _network("transformer"),
    _network("vae"),
    Part(folder="text_encoder", weights="model"),
    Part(folder="text_encoder_2", weights="model"),
    Part(folder="tokenizer"),
    Part(folder="tokenizer_2"),
    Part(folder="scheduler"),
)
"""What a pipeline is made of, in the published layout."""

_OF_TASK: Final[Mapping[Task, tuple[Part, ...]]] = MappingProxyType(
    {"text-to-image": PARTS, "editing": PARTS}
)
"""Folders a task reads. The vision tower shares its shards with the language model, so both tasks need all."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """Folders that are wanted.

    Attributes:
        parts: the folders.
        has_index: whether `model_index.json` belongs to it.
        variant: weights stored beside the usual ones under another name ("fp16"), where a folder has them.
    """

    parts: tuple[Part, ...] = PARTS
    has_index: bool = True
    variant: str | None = None

    @property
    def first(self) -> str:
        """The file without which nothing of this is there."""
        return INDEX if self.has_index else self.parts[0].path("config.json")


def pipeline(
    task: Task = "text-to-image", *, without: Collection[str] = (), variant: str | None = None
) -> Need:
    """The folders that a task reads, but for components that come from elsewhere."""
    return Need(parts=tuple(part for part in _OF_TASK[task] if part.folder not in without), variant=variant)


def network(folder: str = "transformer", *, variant: str | None = None) -> Need:
    """One network alone, in that folder of a repository that may hold nothing else."""
    return Need(parts=(_network(folder.strip("/")),), has_index=False, variant=variant)
