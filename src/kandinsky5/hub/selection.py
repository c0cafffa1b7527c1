"""What a task needs of a repository: which files, how large, and their hashes.

In: a hub id and a revision, asked of the hub in one request. Out: a `Plan`. Only safetensors are wanted, in one form
and one precision each. Refuses to know: where files are kept and what is in them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from huggingface_hub.hf_api import RepoSibling

from kandinsky5.errors import CheckpointError
from kandinsky5.hub.access import ANSWER_SECONDS, HubAccess, refusal
from kandinsky5.prompts import Task

INDEX: Final = "model_index.json"

WEIGHT_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "transformer": "diffusion_pytorch_model",
        "vae": "diffusion_pytorch_model",
        "text_encoder": "model",
        "text_encoder_2": "model",
    }
)
"""Components with weights, and the name diffusers and transformers look for."""

COMPONENTS: Final = (*WEIGHT_NAMES, "tokenizer", "tokenizer_2", "scheduler")

NEEDED: Final[Mapping[Task, tuple[str, ...]]] = MappingProxyType(
    {"text-to-image": COMPONENTS, "editing": COMPONENTS}
)
"""Components a task reads. The vision tower shares its shards with the language model, so both tasks need all."""

_SMALL = (".json", ".txt", ".jinja", ".model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_WEIGHTS = re.compile(
    r"(?P<stem>\w+)(?:\.(?P<precision>\w+))?(?:-(?P<shard>\d+)-of-(?P<shards>\d+))?\.safetensors"
)
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_WEIGHT_INDEX = re.compile(r"(?P<stem>\w+)\.safetensors\.index(?:\.(?P<precision>\w+))?\.json")


@dataclass(frozen=True, kw_only=True)
class PlannedFile:
    """A file of a repository. `size` in bytes; `sha256` for large files, else `git_id`, git's SHA-1 of the blob."""

    path: str
    size: int
    sha256: str | None
    git_id: str | None

    @property
    def etag(self) -> str:
        """The hub's ETag of the file, which names it in the cache."""
        return str(self.sha256 or self.git_id)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The files of one commit that are wanted. `revision` is what was asked for, None for the default branch."""

    repo_id: str
    revision: str | None
    commit: str
    files: tuple[PlannedFile, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)


def plan(
    repo_id: str,
    *,
    task: Task = "text-to-image",
    revision: str | None = None,
    precision: str | None = None,
    access: HubAccess | None = None,
) -> Plan:
    """What to fetch of a repository for a task.

    Args:
        repo_id: "org/name".
        task: decides which components are needed.
        revision: branch, tag or commit; default: the repository's main branch.
        precision: weights stored beside the usual ones under another name ("fp16"), where a component has them.
        access: how to reach the hub.

    Raises:
        CheckpointError: the hub cannot be reached or refuses, the repository is no pipeline, has no safetensors, or
            misses a shard.
    """
    access = access or HubAccess()
    try:
        info = access.api.model_info(repo_id, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS)
    except Exception as error:  # the client raises its own, its HTTP library's, and the system's
        raise refusal(error, access, repo_id, revision) from error
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if INDEX not in siblings or info.sha is None:
        raise CheckpointError(
            f"{repo_id} has no {INDEX}: it is not a pipeline in diffusers' layout (kandinsky5 models lists some)."
        )
    wanted = [INDEX]
    for component in NEEDED[task]:
        wanted += _component_files(repo_id, component, siblings, precision)
    files = tuple(_planned(repo_id, siblings[path]) for path in wanted)
    return Plan(repo_id=repo_id, revision=revision, commit=info.sha, files=files)


def _component_files(
    repo_id: str, component: str, siblings: Iterable[str], precision: str | None
) -> list[str]:
    """Paths of a component's files: the small ones, and its weights in one form."""
    names = [path.removeprefix(f"{component}/") for path in siblings if path.startswith(f"{component}/")]
    names = sorted(name for name in names if name and "/" not in name and "\\" not in name)
    small = [name for name in names if name.endswith(_SMALL) and ".safetensors.index" not in name]
    if component not in WEIGHT_NAMES:
        return [f"{component}/{name}" for name in small]
    weights = choose_weights(names, component, precision)
    if not weights:
        pickles = [name for name in names if name.endswith(_PICKLES)]
        found = f", only {component}/{pickles[0]}, which could run code when it is read" if pickles else ""
        raise CheckpointError(f"{repo_id} has no safetensors for {component}{found}; it is not fetched.")
    _check_shards(repo_id, component, weights)
    # A JSON beside the weights may belong to a form that is not wanted; indexes come with their weights only.
    return [f"{component}/{name}" for name in (*small, *weights)]


def choose_weights(names: Iterable[str], component: str, precision: str | None) -> list[str]:
    """The safetensors, and their index, of one form and one precision, as the component's library would choose.

    diffusers prefers shards to a single file, transformers the single file; other precisions stay away unless asked
    for and there.
    """
    stem = WEIGHT_NAMES[component]
    forms: dict[tuple[str | None, bool], list[str]] = {}
    for name in names:
        match = _WEIGHTS.fullmatch(name)
        index = _WEIGHT_INDEX.fullmatch(name)
        if match and match["stem"] == stem:
            forms.setdefault((match["precision"], match["shard"] is not None), []).append(name)
        elif index and index["stem"] == stem:
            forms.setdefault((index["precision"], True), []).append(name)
    sharded_first = component in ("transformer", "vae")
    for wanted in dict.fromkeys((precision, None)):
        for sharded in (sharded_first, not sharded_first):
            chosen = forms.get((wanted, sharded), [])
            if any(name.endswith(".safetensors") for name in chosen):
                return chosen
    return []


def _check_shards(repo_id: str, component: str, weights: Iterable[str]) -> None:
    matches = [match for name in weights if (match := _WEIGHTS.fullmatch(name)) and match["shards"]]
    for total in {int(match["shards"]) for match in matches}:
        here = {int(match["shard"]) for match in matches if int(match["shards"]) == total}
        if len(here) != total:
            raise CheckpointError(
                f"{repo_id} has {len(here)} of the {total} shards of {component}; its upload is not complete."
            )


def _planned(repo_id: str, sibling: RepoSibling) -> PlannedFile:
    size = sibling.lfs.size if sibling.lfs else sibling.size
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    if size is None or size < 0 or not _HASH.fullmatch(sha256 or sibling.blob_id or ""):
        raise CheckpointError(f"The hub does not say the size and hash of {repo_id}/{sibling.rfilename}.")
    return PlannedFile(path=sibling.rfilename, size=size, sha256=sha256, git_id=sibling.blob_id)
