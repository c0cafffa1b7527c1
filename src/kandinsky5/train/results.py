"""What a run leaves: adapter files for diffusers and ComfyUI or a model folder in the published layout, and a card.

In: a model whose network has the weights to be used, and settings. Out: files, each whole or not there. It refuses to
know how the weights came about.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from kandinsky5.hub.adapters import USUAL_NAME
from kandinsky5.lora import LoraFormat, from_network, write_lora
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.train.preparing import Model
from kandinsky5.train.settings import TrainingSettings
from kandinsky5.train.settings_file import as_toml
from kandinsky5.train.tuning.learning import ADAPTER
from kandinsky5.version import __version__

ADAPTER_FILES: Final[Mapping[LoraFormat, str]] = {
    LoraFormat.diffusers: USUAL_NAME,
    LoraFormat.comfyui: "comfyui_lora.safetensors",
}
MODEL_FOLDER: Final = "model"
CARD: Final = "README.md"
LOKR_LOADERS: Final = (
    "diffusers itself does not load a LoKr. `kandinsky5` does (`--lora`, and `load_lora_weights` of its pipelines), "
    "and ComfyUI takes `comfyui_lora.safetensors`."
)


def save_adapter(model: Model, settings: TrainingSettings, step: int, folder: Path) -> list[Path]:
    """Write the adapter in both formats; returns the paths. Raises CheckpointError where the disk is full."""
    lora = from_network(model.network, ADAPTER, trigger=settings.watch.trigger)
    about = {"base": settings.model.name, "steps": str(step), "software": f"kandinsky5 {__version__}"}
    for form, name in ADAPTER_FILES.items():
        write_lora(lora, folder / name, form, about=about)
    return [folder / name for name in ADAPTER_FILES.values()]


def save_model(model: Model, folder: Path, leads: bool) -> Path:
    """Write the whole pipeline in the published layout, the network in the dtype its blocks ran in.

    Every process must call it; `leads` writes. Raises CheckpointError where the disk is full.
    """
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    if distributed.is_initialized():
        weights: Mapping[str, Any] = get_model_state_dict(model.network, options=whole)
    else:
        weights = model.network.state_dict()
    path = folder / MODEL_FOLDER
    if leads:
        with torch.device("meta"):
            network = Kandinsky5Transformer3DModel.from_config(dict(model.network.config))
        precise = set(Kandinsky5Transformer3DModel._keep_in_fp32_modules)
        stored = {
            name: value if precise & set(name.split(".")) else value.to(model.dtype)
            for name, value in weights.items()
        }
        network.load_state_dict(stored, assign=True)
        pipeline = model.editing or model.drawing
        type(pipeline).from_pipe(pipeline, transformer=network).save_pretrained(path)
    return path


def write_card(
    folder: Path, settings: TrainingSettings, step: int, numbers: Mapping[str, Any], pictures: Sequence[Path]
) -> Path:
    """A model card: what it is, how to use it, its pictures, and the settings it was made with."""
    adapter, name = settings.tuning.kind != "full", folder.resolve().name
    trigger = f"\n\nSay `{settings.watch.trigger}` to call it up." if settings.watch.trigger else ""
    kind = f"{settings.tuning.kind} of rank {settings.tuning.rank}" if adapter else "full fine-tuning"
    drawn = "\n\n".join(
        f"![{text}]({path.relative_to(folder).as_posix()})\n\n{text}"
        for text, path in zip(settings.watch.prompts, pictures, strict=False)
    )
    loaders = f"\n\n{LOKR_LOADERS}" if settings.tuning.kind == "lokr" else ""
    header = json.dumps({"base_model": settings.model.name, "tags": ["kandinsky5", settings.tuning.kind]})
    figures = "".join(f"| {name} | {value} |\n" for name, value in numbers.items())
    text = f"""---
{header}
---

# {name}

A {kind} on {settings.model.name}, {step} steps, made by kandinsky5 {__version__}.{trigger}

```sh
{_command(settings, name)}
```{loaders}

{drawn}

| | |
|---|---|
{figures}
```toml
{as_toml(settings)}```
"""
    path = folder / CARD
    partial = folder / f".{CARD}"
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
    return path


def _command(settings: TrainingSettings, name: str) -> str:
    """What draws or edits with the result in the folder of this name, beside that folder."""
    watch, adapter = settings.watch, settings.tuning.kind != "full"
    task = ["generate", watch.prompts[0] if watch.prompts else watch.trigger or "a picture"]
    if settings.model.task == "editing":
        task = ["edit", "picture.png", watch.trigger or "an instruction"]
    model = settings.model.name if adapter else f"{name}/{MODEL_FOLDER}"
    option = ["--lora", name] if adapter else []
    return shlex.join(["kandinsky5", *task, "--model", model, *option, "-o", "result.png"])
