"""An adapter's repository: the one file of it that is wanted, and the configs beside it that say what scales it.

In: a hub id, and what tells the file among others. Out: its path in the client's cache, fetched as `transfer` fetches.
Which of several files is the adapter is told by names, so that no other is fetched; of a folder on disk too. Refuses to
know: what is in a file.
"""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Final

from huggingface_hub import ModelInfo, snapshot_download
from huggingface_hub.utils import validate_repo_id

from kandinsky5.errors import CheckpointError
from kandinsky5.hub.access import ANSWER_SECONDS, HubAccess, may_use_cache, refusal
from kandinsky5.hub.bars import Watch, bars
from kandinsky5.hub.need import Need
from kandinsky5.hub.selection import Plan, planned_file
from kandinsky5.hub.transfer import fetch_planned

logger = logging.getLogger(__name__)

CONFIGS: Final = ("adapter_config.json", "config_lora.json")
"""What peft and the authors' trainer write beside the tensors (`lora.reading`)."""

USUAL_NAME: Final = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file in a folder."""

NAMES_TOLD: Final = 12
"""Of the files that an error lists."""


def fetch_adapter(
    repo_id: str,
    access: HubAccess | None = None,
    *,
    wanted: str | None = None,
    subfolder: str = "",
    revision: str | None = None,
    force: bool = False,
    watch: Watch = bars,
) -> Path:
    """The file of an adapter in a repository, fetched with the configs beside it as far as they are not there.

    When the hub cannot be reached, a copy in the cache is used, with a warning.

    Args:
        repo_id, revision, access, force, watch: as `fetch` takes them.
        wanted: name of the file, as `adapter_among` takes it.
        subfolder: folder of the repository that it is in.

    Raises:
        CheckpointError: the hub refuses or is out of reach, or the repository does not tell which file is meant.
        CapacityError: the disk has no room.
    """
    access = access or HubAccess()
    try:
        validate_repo_id(repo_id)
        if access.is_offline:
            return _stored(repo_id, access, revision, subfolder, wanted)
        info = access.api.model_info(repo_id, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS)
    except CheckpointError:
        raise
    except Exception as error:  # the client raises its own, its HTTP library's, and the system's
        refused = refusal(error, access, repo_id, revision)
        if force or not may_use_cache(error):
            raise refused from error
        try:
            file = _stored(repo_id, access, revision, subfolder, wanted)
        except (OSError, ValueError):  # the client's, and ours
            raise refused from error
        logger.warning("The hub cannot be asked about %s; using %s. (%s)", repo_id, file, refused)
        return file
    planned = _planned(repo_id, info, revision, subfolder.strip("/"), wanted)
    return fetch_planned(planned, access, force=force, watch=watch) / planned.files[-1].path


def _planned(repo_id: str, info: ModelInfo, revision: str | None, subfolder: str, wanted: str | None) -> Plan:
    """The file, after the configs beside it. Raises CheckpointError where it cannot be told."""
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    folder = f"{subfolder}/" if subfolder else ""
    inside = {name.removeprefix(folder) for name in siblings if name.startswith(folder)}
    path = folder + adapter_among(inside, wanted, f"{repo_id}/{subfolder}".rstrip("/"))
    if info.sha is None:
        raise CheckpointError(f"The hub does not say which commit of {repo_id} it describes.")
    beside = [f"{path.rpartition('/')[0]}/{config}".lstrip("/") for config in CONFIGS]
    return Plan(
        repo_id=repo_id,
        revision=revision,
        commit=info.sha,
        need=Need(parts=(), has_index=False),
        files=tuple(planned_file(repo_id, siblings[name]) for name in (*beside, path) if name in siblings),
    )


def adapter_among(names: Collection[str], wanted: str | None, place: str) -> str:
    """Which of a folder's files is the adapter: the one that is asked for, the usual one, or the only one.

    Args:
        names: of the files, relative to the folder; those in folders of it only count when one is asked for.
        wanted: the name that a caller gives it.
        place: what messages call the folder.

    Raises:
        CheckpointError: there is no such file, or several and none of them asked for.
    """
    safe = sorted(name for name in names if name.endswith(".safetensors") and _stays_inside(name))
    if wanted is not None:
        if wanted not in safe:
            raise CheckpointError(f"{place} has no safetensors file {wanted!r}; it has {_told(safe)}.")
        return wanted
    files = [name for name in safe if "/" not in name]
    usual = [USUAL_NAME] if USUAL_NAME in files else files
    if len(usual) != 1:
        raise CheckpointError(
            f"{place} must hold one .safetensors file of an adapter, or weight_name say which: {_told(safe)}."
        )
    return usual[0]


def _stored(
    repo_id: str, access: HubAccess, revision: str | None, subfolder: str, wanted: str | None
) -> Path:
    """The same file in the cache, without asking the hub. Raises what the client does, and CheckpointError."""
    root = snapshot_download(repo_id, revision=revision, cache_dir=access.cache_folder, local_files_only=True)
    folder = Path(root) / subfolder.strip("/")
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*.safetensors")]
    return folder / adapter_among(names, wanted, str(folder))


def _stays_inside(name: str) -> bool:
    """Whether a name leads to nothing outside its folder."""
    return "\\" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def _told(names: Collection[str]) -> str:
    """Names in a message: the first of them, and how many more."""
    first = ", ".join([*names][:NAMES_TOLD])
    return f"{first} and {len(names) - NAMES_TOLD} more" if len(names) > NAMES_TOLD else first or "none"
