"""An adapter's repository: its safetensors, and the configs that say what scales them.

In: a hub id. Out: a folder in the client's cache, as `transfer` fetches it. Refuses to know: which of the files is
wanted, and what is in them.
"""

from pathlib import Path
from typing import Final

from huggingface_hub import snapshot_download
from huggingface_hub.utils import validate_repo_id

from kandinsky5.errors import CheckpointError
from kandinsky5.hub.access import ANSWER_SECONDS, HubAccess, refusal
from kandinsky5.hub.bars import Watch, bars
from kandinsky5.hub.need import Need
from kandinsky5.hub.selection import Plan, planned_file
from kandinsky5.hub.transfer import fetch_planned

CONFIGS: Final = ("adapter_config.json", "config_lora.json")
"""What peft and the authors' trainer write beside the tensors (`lora.reading`)."""

LARGEST_REPOSITORY: Final = 20
"""Weight files that are fetched unasked; a repository with more is no adapter's."""


def fetch_adapter(
    repo_id: str,
    access: HubAccess | None = None,
    *,
    revision: str | None = None,
    force: bool = False,
    watch: Watch = bars,
) -> Path:
    """The folder with a repository's safetensors and JSON files, fetched as far as they are not there.

    Raises:
        CheckpointError: the hub refuses or is out of reach, or the repository has no safetensors or too many.
        CapacityError: the disk has no room.
    """
    access = access or HubAccess()
    try:
        validate_repo_id(repo_id)
        if access.is_offline:
            return Path(
                snapshot_download(
                    repo_id, revision=revision, cache_dir=access.cache_folder, local_files_only=True
                )
            )
        info = access.api.model_info(repo_id, revision=revision, files_metadata=True, timeout=ANSWER_SECONDS)
    except Exception as error:  # the client raises its own, its HTTP library's, and the system's
        raise refusal(error, access, repo_id, revision) from error
    siblings = [sibling for sibling in info.siblings or () if _is_wanted(sibling.rfilename)]
    weights = [s for s in siblings if s.rfilename.endswith(".safetensors")]
    if not 0 < len(weights) <= LARGEST_REPOSITORY or info.sha is None:
        raise CheckpointError(
            f"{repo_id} has {len(weights)} safetensors files: it is not the repository of an adapter."
        )
    wanted = Plan(
        repo_id=repo_id,
        revision=revision,
        commit=info.sha,
        need=Need(parts=(), has_index=False),
        files=tuple(planned_file(repo_id, sibling) for sibling in siblings),
    )
    return fetch_planned(wanted, access, force=force, watch=watch)


def _is_wanted(name: str) -> bool:
    """Weights and configs, in the repository or a folder of it; nothing that leads out."""
    parts = name.split("/")
    if "\\" in name or any(part in ("", ".", "..") for part in parts):
        return False
    return name.endswith(".safetensors") or parts[-1] in CONFIGS
