"""The checkpoints known by name, and what a `--model` text stands for.

In: a row's name or alias, a folder, a hub id. Out: a `ModelSource` that says where the weights are. The embedded
model is a row whose folder is package data; of that folder one thing is read, whether its network edits. Refuses to
know: how weights are read, what else a folder holds, the network.
"""

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, get_args

from kandinsky5.errors import RequestError
from kandinsky5.prompts import Task

EMBEDDED: Final = "embedded"
"""Name of the small model shipped inside the package, the command line's default."""

LONGEST_SHOWN: Final = 200
"""Characters of a wrong name that a message repeats."""

_PUBLISHED_BYTES: Final = 29_000_000_000
# In bfloat16: network 6.02 B, Qwen2.5-VL-7B 8.29 B, CLIP text 0.12 B and VAE 0.08 B parameters, two bytes each.


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One checkpoint. `hub_id` is None for the embedded model; None in `made_for` or a default: the weights say it."""

    name: str
    aliases: tuple[str, ...] = ()
    hub_id: str | None
    made_for: Task | None
    size: tuple[int, int]
    steps: int | None
    guidance: float | None
    shift: float | None
    approximate_bytes: int
    summary: str

    @property
    def task(self) -> Task:
        """What it was made for; checkpoints made for editing make pictures from text too."""
        return self.made_for or _task_of(embedded_folder())


def _published(name: str, hub_name: str, task: Task, summary: str, aliases: tuple[str, ...] = ()) -> Variant:
    """A published row; size, steps, guidance and shift are the authors' (`docs/numerics.md`)."""
    return Variant(
        name=name,
        aliases=aliases,
        hub_id=f"kandinskylab/{hub_name}",
        made_for=task,
        size=(1024, 1024),
        steps=50,
        guidance=3.5,
        shift=3.0,
        approximate_bytes=_PUBLISHED_BYTES,
        summary=summary,
    )


VARIANTS: Final[tuple[Variant, ...]] = (
    Variant(
        name=EMBEDDED,
        aliases=("demo",),
        hub_id=None,
        made_for=None,
        size=(256, 256),
        steps=None,
        guidance=None,
        shift=None,
        approximate_bytes=60_000_000,
        summary="small model inside the package: abstract compositions, no download",
    ),
    _published(
        "t2i-lite-sft",
        "Kandinsky-5.0-T2I-Lite-sft-Diffusers",
        "text-to-image",
        "text to image",
        aliases=("t2i", "t2i-lite"),
    ),
    _published(
        "t2i-lite-pretrain",
        "Kandinsky-5.0-T2I-Lite-pretrain-Diffusers",
        "text-to-image",
        "text to image, base for research and fine-tuning",
    ),
    _published(
        "i2i-lite-sft",
        "Kandinsky-5.0-I2I-Lite-sft-Diffusers",
        "editing",
        "editing",
        aliases=("i2i", "i2i-lite"),
    ),
    _published("i2i-lite-pretrain", "Kandinsky-5.0-I2I-Lite-pretrain-Diffusers", "editing", "editing, base"),
)


A_FILE: Final = (
    "a file, and a model is a folder or a hub id. from_single_file(FILE, config=FOLDER_OR_ID) of the pipelines reads a "
    "network in one file; save_pretrained makes a folder of it."
)
"""What to say of a file where a model should be."""


@dataclass(frozen=True, kw_only=True)
class ModelSource:
    """Where a model's weights are: exactly one of `folder` and `hub_id` is set. `variant` is its row, if it is one."""

    folder: Path | None = None
    hub_id: str | None = None
    variant: Variant | None = None

    @property
    def location(self) -> str:
        """The folder or hub id as text, as `from_pretrained` takes it."""
        return str(self.folder) if self.folder is not None else str(self.hub_id)

    @property
    def name(self) -> str:
        """What to call it in logs and in a picture's provenance: "embedded", the hub id, or the folder."""
        return EMBEDDED if self.variant is not None and self.variant.name == EMBEDDED else self.location


# Hub ids: two parts of letters, digits, "-", "_" and ".", none starting or ending with "-" or "." (huggingface_hub).
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(f"{_PART}/{_PART}")


def embedded_folder() -> Path:
    """The folder of the embedded model's weights, inside the installed package."""
    return Path(__file__).parent / "demo" / "weights"


def _task_of(folder: Path) -> Task:
    """What the network of a folder was made for. What is wrong with a folder that does not say it, loading tells."""
    try:
        network = json.loads((folder / "transformer" / "config.json").read_text(encoding="utf-8"))
        return "editing" if network["visual_cond"] is True else "text-to-image"
    except (OSError, ValueError, KeyError, TypeError):
        return "text-to-image"


def resolve_model(text: str) -> ModelSource:
    """What a `--model` text stands for: a row's name, alias or hub id, then an existing folder, then any hub id.

    Nothing is downloaded or opened. Raises RequestError listing what would work.
    """
    wanted = text.strip().lower()
    for variant in VARIANTS:
        if wanted in (variant.name, *variant.aliases):
            if variant.hub_id is None:
                return ModelSource(folder=embedded_folder(), variant=variant)
            return ModelSource(hub_id=variant.hub_id, variant=variant)
    if text and os.path.isdir(text):  # noqa: PTH112 - Path.is_dir fails with a text too long for a name
        return ModelSource(folder=Path(text))
    if text and os.path.isfile(text):  # noqa: PTH113 - as above
        raise RequestError(f"Model {text!r} is {A_FILE}")
    if _HUB_ID.fullmatch(text):
        return ModelSource(hub_id=text, variant=next((v for v in VARIANTS if v.hub_id == text), None))
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
    names = [name for variant in VARIANTS for name in (variant.name, *variant.aliases)]
    close = difflib.get_close_matches(wanted[:LONGEST_SHOWN], names, n=2)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise RequestError(
        f"Model {shown!r} is not one of {', '.join(variant.name for variant in VARIANTS)}, an existing folder, or a "
        f"hub id such as org/name.{hint}"
    )


def check_task(source: ModelSource, task: Task) -> None:
    """Refuse a model whose row says that it cannot do a task, before anything of it is fetched or read.

    Editing checkpoints make pictures from text too. Raises RequestError with what would work; also for what is no task.
    """
    if task not in get_args(Task):
        raise RequestError(f"task={task!r:.80} is not one of {', '.join(get_args(Task))}.")
    if source.variant is not None and task == "editing" and source.variant.task != task:
        raise RequestError(
            f"The model {source.variant.name} makes pictures from text only. Editing needs an editing checkpoint: "
            "i2i-lite-sft (about 29 GB, fetched on first use), or a folder of one."
        )


def close_hub_ids(repo_id: str) -> list[str]:
    """Published hub ids that look like a mistyped one, the closest first; also for the authors' ids without -Diffusers.

    Empty for an id of the table itself.
    """
    known = {variant.hub_id.lower(): variant.hub_id for variant in VARIANTS if variant.hub_id}
    if repo_id.lower() in known:
        return []
    return [known[name] for name in difflib.get_close_matches(repo_id.lower(), known, n=2, cutoff=0.8)]
