"""What the client's cache holds: pipelines, their revisions, and whether a folder has all its files.

In: a cache folder. Out: one record a stored revision. Refuses to know: the hub, tensors, and whether bytes are right.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import CacheNotFound

from kandinsky5.hub.access import HubAccess
from kandinsky5.hub.selection import INDEX, WEIGHT_NAMES

PIPELINE_PREFIX = "Kandinsky5"
"""How the class names of Kandinsky 5 pipelines begin, in `model_index.json`."""


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """One revision of a repository in the cache. `size`: bytes on disk; `missing`: files that should be there."""

    repo_id: str
    commit: str
    refs: tuple[str, ...]
    size: int
    folder: Path
    pipeline_class: str | None
    missing: tuple[str, ...]


def cached(cache_dir: Path | None = None) -> list[CachedModel]:
    """Every cached revision of a repository that looks like a Kandinsky 5 pipeline, by id and newest first.

    A revision without a readable index is left out: it is no pipeline, or nothing of it can be told.
    """
    folder = HubAccess(cache_dir=cache_dir).cache_folder
    try:
        repos = scan_cache_dir(folder).repos
    except CacheNotFound:
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
                    folder=revision.snapshot_path,
                    pipeline_class=name,
                    missing=tuple(missing_files(revision.snapshot_path)),
                )
            )
    return found


def stored_folder(repo_id: str, revision: str | None, cache_dir: Path) -> Path | None:
    """The folder of a revision in the cache, whole or not; None when its index is not there."""
    index = try_to_load_from_cache(repo_id, INDEX, cache_dir=cache_dir, revision=revision)
    return Path(index).parent if isinstance(index, str) else None


def pipeline_class(folder: Path) -> str | None:
    """The class that a folder's `model_index.json` names, None when it cannot be read."""
    name = _read_object(folder / INDEX).get("_class_name")
    return name if isinstance(name, str) else None


def missing_files(folder: Path) -> list[str]:
    """What a folder in the published layout lacks by its own indexes, as relative paths; empty when it is whole.

    Only names are looked at, so this is instant; what the files hold is for `kandinsky5 verify`.
    """
    index = _read_object(folder / INDEX)
    if not index:
        return [INDEX]
    missing = []
    for component, entry in index.items():
        if not isinstance(entry, list) or None in entry:
            continue
        place = folder / component
        if not place.is_dir():
            missing.append(component)
        elif component in WEIGHT_NAMES:
            missing += [f"{component}/{name}" for name in _missing_weights(place, WEIGHT_NAMES[component])]
    return missing


def _missing_weights(place: Path, stem: str) -> list[str]:
    missing = [] if (place / "config.json").is_file() else ["config.json"]
    indexes = sorted(place.glob(f"{stem}.safetensors.index*.json"))
    for index in indexes:
        mapped = _read_object(index).get("weight_map")
        shards = set(mapped.values()) if isinstance(mapped, dict) else {f"(shards of {index.name})"}
        missing += [str(shard) for shard in sorted(map(str, shards)) if not (place / shard).is_file()]
    if not indexes and not any(place.glob(f"{stem}*.safetensors")):
        missing.append(f"{stem}.safetensors")
    return missing


def _read_object(file: Path) -> Mapping[str, Any]:
    """The JSON object in a file; empty when there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
