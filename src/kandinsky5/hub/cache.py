"""What the client's cache holds: pipelines, their revisions, and whether a folder has all its files.

In: a cache folder. Out: one record a stored revision. Refuses to know: the hub, tensors, and whether bytes are right.
"""

import json
import logging
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import CacheNotFound

from kandinsky5.hub.access import HubAccess
from kandinsky5.hub.need import INDEX, PARTS, Need, Part
from kandinsky5.hub.selection import choose_weights, variants_of

logger = logging.getLogger(__name__)

_PARTIAL = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\.incomplete")

PIPELINE_PREFIX = "Kandinsky5"
"""How the class names of Kandinsky 5 pipelines begin, in `model_index.json`."""


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """One revision of a repository in the cache.

    `size`: bytes of its files; `partial`: bytes of the repository's files that a fetch would go on with; `missing`:
    files that should be there.
    """

    repo_id: str
    commit: str
    refs: tuple[str, ...]
    size: int
    partial: int
    folder: Path
    pipeline_class: str | None
    missing: tuple[str, ...]


def cached(cache_dir: Path | None = None) -> list[CachedModel]:
    """Every cached revision of a repository that looks like a Kandinsky 5 pipeline, by id and newest first.

    A revision without a readable index is left out: it is no pipeline, or nothing of it can be told. A cache that
    cannot be read holds none, with a warning.
    """
    folder = HubAccess(cache_dir=cache_dir).cache_folder
    try:
        repos = scan_cache_dir(folder).repos
    except CacheNotFound:
        return []
    except (OSError, ValueError) as error:
        logger.warning("The cache %s cannot be read: %s", folder, " ".join(str(error).split()))
        return []
    found = []
    for repo in sorted(repos, key=lambda repo: repo.repo_id):
        if repo.repo_type != "model":
            continue
        for revision in sorted(repo.revisions, key=lambda r: r.last_modified, reverse=True):
            name = pipeline_class(revision.snapshot_path)
            if name is None or not name.startswith(PIPELINE_PREFIX):
                continue
            found.append(
                CachedModel(
                    repo_id=repo.repo_id,
                    commit=revision.commit_hash,
                    refs=tuple(sorted(revision.refs)),
                    size=revision.size_on_disk,
                    partial=sum(size_of_partials(repo.repo_path)),
                    folder=revision.snapshot_path,
                    pipeline_class=name,
                    missing=tuple(_missing_in_some_variant(revision.snapshot_path)),
                )
            )
    return found


def size_of_partials(repository: Path) -> list[int]:
    """Sizes of a repository's files that were begun (`hub.blob`); not the client's, which nobody goes on with."""
    sizes = []
    for file in (repository / "blobs").glob("*.incomplete"):
        if _PARTIAL.fullmatch(file.name):
            with suppress(FileNotFoundError):  # whole by now
                sizes.append(file.stat().st_size)
    return sizes


def stored_folder(repo_id: str, need: Need, revision: str | None, cache_dir: Path) -> Path | None:
    """The folder of a revision in the cache, whole or not; None when its first file is not there."""
    first = try_to_load_from_cache(repo_id, need.first, cache_dir=cache_dir, revision=revision)
    return Path(str(first).removesuffix(need.first)) if isinstance(first, str) else None


def pipeline_class(folder: Path) -> str | None:
    """The class that a folder's `model_index.json` names, None when it cannot be read."""
    name = _read_object(folder / INDEX).get("_class_name")
    return name if isinstance(name, str) else None


def missing_files(folder: Path, need: Need | None = None, coming: Collection[str] = ()) -> list[str]:
    """What a folder lacks of what is needed (default: of a pipeline), by its own indexes, as relative paths.

    Only names are looked at, so this is instant; what the files hold is for `kandinsky5 verify`. Files in `coming`
    count as if they were there.
    """
    need = need or Need()
    parts = need.parts
    if need.has_index:
        index = _read_object(folder / INDEX)
        if not index:
            return [INDEX]
        parts = tuple(part for part in parts if index.get(part.folder) != [None, None])
    missing = []
    for part in parts:
        names = {path.removeprefix(part.path("")) for path in coming if path.startswith(part.path(""))}
        place = folder / part.folder
        names |= {file.name for file in _files_of(place)}
        if not names:
            missing.append(part.folder)
        elif part.weights is not None:
            missing += [part.path(name) for name in _missing_weights(place, names, part, need.variant)]
    return missing


def _missing_in_some_variant(folder: Path) -> list[str]:
    """What a pipeline's folder lacks, in the usual weights or in the variant that it has most of."""
    names = [file.name for part in PARTS if part.weights for file in _files_of(folder / part.folder)]
    variants = sorted(name for name in variants_of(names) if name)
    lacks = [missing_files(folder, Need(variant=variant)) for variant in (None, *variants)]
    return min(lacks, key=len)


def _files_of(folder: Path) -> list[Path]:
    try:
        return [file for file in folder.iterdir() if file.exists()]
    except OSError:
        return []


def _missing_weights(place: Path, names: Collection[str], part: Part, variant: str | None) -> list[str]:
    missing = [] if "config.json" in names else ["config.json"]
    weights = choose_weights(sorted(names), part, variant)
    usual = f"{part.weights}.safetensors.index.json"
    index = next((name for name in weights if name.endswith(".json")), usual if not weights else None)
    if index in names:
        mapped = _read_object(place / str(index)).get("weight_map")
        shards = set(map(str, mapped.values())) if isinstance(mapped, dict) else {f"(shards of {index})"}
        missing += sorted(shards - set(names))
    elif not weights:
        missing.append(f"{part.weights}.safetensors")
    return missing


def _read_object(file: Path) -> Mapping[str, Any]:
    """The JSON object in a file; empty when there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
