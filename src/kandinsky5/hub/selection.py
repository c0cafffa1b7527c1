"""Which files of a repository are needed, how large they are, and their hashes.

In: a hub id, a revision and a `Need`, asked of the hub in one request. Out: a `Plan`. Only safetensors are wanted, in
one form each. Refuses to know: where files are kept and what is in them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from huggingface_hub.hf_api import RepoSibling

from kandinsky5.errors import CheckpointError
from kandinsky5.hub.access import ANSWER_SECONDS, HubAccess, refusal
from kandinsky5.hub.need import INDEX, Need, Part
from kandinsky5.variants import close_hub_ids

_SMALL = (".json", ".txt", ".jinja", ".model")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_WEIGHTS = re.compile(
    r"(?P<stem>\w+)(?:\.(?P<variant>\w+))?(?:-(?P<shard>\d+)-of-(?P<shards>\d+))?\.safetensors"
)
_WEIGHT_INDEX = re.compile(r"(?P<stem>\w+)\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
_HASH: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


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
    need: Need
    files: tuple[PlannedFile, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)


def plan(
    repo_id: str, need: Need | None = None, *, revision: str | None = None, access: HubAccess | None = None
) -> Plan:
    """What to fetch of a repository.

    Args:
        repo_id: "org/name".
        need: `hub.need.pipeline(...)` or `.network(...)`; default: a pipeline for text to image.
        revision: branch, tag or commit; default: the repository's main branch.
        access: how to reach the hub.

    Raises:
        CheckpointError: the hub cannot be reached or refuses, the repository is no pipeline, has no safetensors, none
            of the variant, or misses a shard.
    """
    access, need = access or HubAccess(), need or Need()
    try:
        info = access.api.model_info(repo_id, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS)
    except Exception as error:  # the client raises its own, its HTTP library's, and the system's
        raise refusal(error, access, repo_id, revision) from error
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    if need.first not in siblings or info.sha is None:
        raise CheckpointError(_why_not(repo_id, need))
    wanted = [need.first]
    for part in need.parts:
        wanted += _files_of(repo_id, part, siblings, need.variant)
    if need.variant is not None:
        _check_variant(repo_id, need, wanted, siblings)
    files = tuple(planned_file(repo_id, siblings[path]) for path in dict.fromkeys(wanted))
    return Plan(repo_id=repo_id, revision=revision, commit=info.sha, need=need, files=files)


def choose_weights(names: Iterable[str], part: Part, variant: str | None) -> list[str]:
    """The safetensors, and their index, of one form and one variant, as the folder's library would choose.

    Another variant than the usual one is only taken when it is asked for and there.
    """
    forms: dict[tuple[str | None, bool], list[str]] = {}
    for name in names:
        match = _WEIGHTS.fullmatch(name)
        index = _WEIGHT_INDEX.fullmatch(name)
        if match and match["stem"] == part.weights:
            forms.setdefault((match["variant"], match["shard"] is not None), []).append(name)
        elif index and index["stem"] == part.weights:
            forms.setdefault((index["variant"], True), []).append(name)
    for wanted in dict.fromkeys((variant, None)):
        for sharded in (part.shards_first, not part.shards_first):
            chosen = forms.get((wanted, sharded), [])
            if any(name.endswith(".safetensors") for name in chosen):
                return chosen
    return []


def _why_not(repo_id: str, need: Need) -> str:
    if not need.has_index:
        return f"{repo_id} has no {need.first}: there is no network in diffusers' layout."
    close = close_hub_ids(repo_id)
    hint = f"did you mean {' or '.join(close)}?" if close else "kandinsky5 models lists some."
    return f"{repo_id} has no {INDEX}: it is not a pipeline in diffusers' layout; {hint}"


def _files_of(repo_id: str, part: Part, siblings: Iterable[str], variant: str | None) -> list[str]:
    """Paths of a folder's files: the small ones, and its weights in one form."""
    names = [path.removeprefix(part.path("")) for path in siblings if path.startswith(part.path(""))]
    names = sorted(name for name in names if name and "/" not in name and "\\" not in name)
    small = [name for name in names if name.endswith(_SMALL) and ".safetensors.index" not in name]
    if part.weights is None:
        return [part.path(name) for name in small]
    weights = choose_weights(names, part, variant)
    if not weights:
        pickles = [name for name in names if name.endswith(_PICKLES)]
        found = f", only {part.path(pickles[0])}, which could run code when it is read" if pickles else ""
        raise CheckpointError(f"{repo_id} has no safetensors for {part.folder}{found}; it is not fetched.")
    _check_shards(repo_id, part, weights)
    # A JSON beside the weights may belong to a form that is not wanted; indexes come with their weights only.
    return [part.path(name) for name in (*small, *weights)]


def _check_variant(repo_id: str, need: Need, wanted: Iterable[str], siblings: Iterable[str]) -> None:
    """A variant that no folder has would be the usual weights under another name."""
    if variants_of(wanted) & {need.variant}:
        return
    folders = tuple(part.path("") for part in need.parts if part.weights is not None)
    there = sorted(
        name for name in variants_of(path for path in siblings if path.startswith(folders)) if name
    )
    others = f"{', '.join(map(repr, there))} beside the usual" if there else "only the usual"
    raise CheckpointError(
        f"{repo_id} has no weights of variant {need.variant!r}; it has {others} ones, which come without variant."
    )


def variants_of(paths: Iterable[str]) -> set[str | None]:
    """Of the weight files among these paths; None for the usual ones."""
    matches = (_WEIGHTS.fullmatch(path.rpartition("/")[2]) for path in paths)
    return {match["variant"] for match in matches if match}


def _check_shards(repo_id: str, part: Part, weights: Iterable[str]) -> None:
    matches = [match for name in weights if (match := _WEIGHTS.fullmatch(name)) and match["shards"]]
    for total in {int(match["shards"]) for match in matches}:
        here = {int(match["shard"]) for match in matches if int(match["shards"]) == total}
        if len(here) != total:
            raise CheckpointError(
                f"{repo_id} has {len(here)} of the {total} shards of {part.folder}; its upload is not complete."
            )


def planned_file(repo_id: str, sibling: RepoSibling) -> PlannedFile:
    """A file as the hub describes it. Raises CheckpointError where its size or hash is missing."""
    size = sibling.lfs.size if sibling.lfs else sibling.size
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    if size is None or size < 0 or not _HASH.fullmatch(sha256 or sibling.blob_id or ""):
        raise CheckpointError(f"The hub does not say the size and hash of {repo_id}/{sibling.rfilename}.")
    return PlannedFile(path=sibling.rfilename, size=size, sha256=sha256, git_id=sibling.blob_id)
