"""`kandinsky5 info`: what this machine and this installation would do.

In: the options that place a model. Out: versions, devices, where and in which dtype a model would run, and the models
known, on standard output. Refuses to know: how those choices are made; it asks the code that makes them.
"""

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer

from kandinsky5.budget import Budget
from kandinsky5.cli import options
from kandinsky5.cli.imports import collecting_later
from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.geometry import check_size, parse_size
from kandinsky5.variants import VARIANTS, Variant, embedded_folder
from kandinsky5.version import __version__

LIBRARIES = ("torch", "diffusers", "transformers", "accelerate", "safetensors", "huggingface_hub", "peft")


def info(
    device: options.Device = "auto",
    dtype: options.Dtype = options.Precision.auto,
    memory: options.Memory = None,
    size: options.Size = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print versions, devices, kernels, the models known, and where and how a model would run with these options."""
    width, height = parse_size(size) if size is not None else (None, None)
    if width is not None and height is not None:
        check_size(width, height)
    budget = Budget.of("auto" if memory is None else memory, width=width, height=height)
    facts = describe(device, dtype.value, budget)
    typer.echo(json.dumps(facts) if as_json else _as_text(facts))


def describe(device: str = "auto", precision: str = "auto", budget: Budget | None = None) -> dict[str, Any]:
    """Everything `info` prints, as a JSON object. Imports torch, downloads nothing."""
    with collecting_later():
        from kandinsky5.placement import (
            MODES,
            automatic_mode,
            free_memory,
            resolve_device,
            resolve_dtype,
            resolve_mode,
        )

    chosen = resolve_device(device)
    dtype = resolve_dtype(precision, chosen)
    return {
        "versions": {
            "kandinsky5": __version__,
            "python": platform.python_version(),
            "platform": platform.platform(),
            **{name: _version(name) for name in LIBRARIES},
        },
        "devices": _devices(),
        "chosen": {
            "device": str(chosen),
            "dtype": str(dtype).removeprefix("torch."),
            "free_bytes": free_memory(chosen),
        },
        "attention": _attention_backend(),
        "mode": automatic_mode(chosen) or "ordinary",
        "modes": [
            asdict(mode) | {"told": mode.told}
            for mode in (resolve_mode(name, chosen, dtype) for name in MODES)
        ],
        "plans": _plans(chosen, dtype, budget or Budget()),
        "models": _models(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    """One entry for each device that can be named, with what decides the dtype there."""
    import torch

    from kandinsky5.placement import available_devices, has_fast_bfloat16

    entries: list[dict[str, Any]] = []
    for name in available_devices():
        if name == "auto":
            continue
        device = torch.device(name)
        entry: dict[str, Any] = {"name": name, "fast_bfloat16": has_fast_bfloat16(device)}
        if device.type == "cuda":
            properties = torch.cuda.get_device_properties(device)
            entry |= {"hardware": properties.name, "memory_bytes": properties.total_memory}
        elif device.type == "cpu":
            entry |= {"hardware": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
        entries.append(entry)
    return entries


def _attention_backend() -> str:
    """The back end that diffusers' dispatch hands attention to; DIFFUSERS_ATTN_BACKEND changes it."""
    from diffusers.utils.constants import DIFFUSERS_ATTN_BACKEND

    return str(DIFFUSERS_ATTN_BACKEND)


def _plans(device: Any, dtype: Any, budget: Budget) -> list[dict[str, Any]]:
    """What `--memory` would do with the models of the published size: a plan, or why there is none."""
    with collecting_later():
        from kandinsky5.memory import plan_for_model
        from kandinsky5.memory.published import published_model

    plans: list[dict[str, Any]] = []
    for task in ("text-to-image", "editing"):
        edits = task == "editing"
        try:
            model = published_model(dtype, edits=edits)
            plan = plan_for_model(model, budget, device=device, dtype=dtype, edits=edits)
            plans.append({"task": task, "plan": plan.to_dict(), "lines": plan.lines})
        except (CapacityError, RequestError) as error:
            plans.append({"task": task, "plan": None, "lines": [str(error)]})
    return plans


def _models() -> list[dict[str, Any]]:
    """The known checkpoints, and whether all files of one are here."""
    from kandinsky5.hub import cached

    whole = {entry.repo_id for entry in cached() if not entry.missing}
    return [_model(variant, whole) for variant in VARIANTS]


def _model(variant: Variant, whole: set[str]) -> dict[str, Any]:
    here = variant.hub_id in whole if variant.hub_id else (embedded_folder() / "model_index.json").is_file()
    return {
        "name": variant.name,
        "hub_id": variant.hub_id,
        "task": variant.task,
        "size": list(variant.size),
        "approximate_bytes": variant.approximate_bytes,
        "on_this_machine": here,
    }


def _as_text(facts: dict[str, Any]) -> str:
    lines = [f"{name:<16} {value or 'not installed'}" for name, value in facts["versions"].items()]
    lines.append("")
    for device in facts["devices"]:
        speed = "fast bfloat16" if device["fast_bfloat16"] else "no fast bfloat16"
        memory = f", {device['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in device else ""
        threads = f", {device['threads']} threads" if "threads" in device else ""
        lines.append(f"device {device['name']:<9} {device.get('hardware', '')}{memory}{threads}, {speed}")
    chosen = facts["chosen"]
    free = f", {chosen['free_bytes'] / 1e9:.1f} GB free" if chosen["free_bytes"] is not None else ""
    lines.append(f"{'chosen':<16} {chosen['device']}, {chosen['dtype']}{free}")
    lines.append(f"{'attention':<16} {facts['attention']}")
    lines.append(f"{'mode':<16} {facts['mode']} (auto)")
    lines += [_mode_line(mode) for mode in facts["modes"]]
    for entry in facts["plans"]:
        lines += ["", f"--memory for a published model, {entry['task']}"]
        lines += [f"  {line}" for line in entry["lines"]]
    lines.append("")
    for model in facts["models"]:
        size = f"{model['size'][0]}x{model['size'][1]}"
        place = "on this machine" if model["on_this_machine"] else _absence(model)
        lines.append(
            f"model {model['name']:<18} {model['task']:<14} {size:<10} {place:<17} {model['hub_id'] or ''}"
        )
    return "\n".join(line.rstrip() for line in lines)


def _mode_line(mode: dict[str, Any]) -> str:
    """A mode that `placement.use_mode` would put a network into here, and why it is no faster than that."""
    because = f": {'; '.join(mode['reasons'])}" if mode["reasons"] else ""
    return f"mode {mode['name']:<11} {mode['told']}{because}"


def _absence(model: dict[str, Any]) -> str:
    return f"{model['approximate_bytes'] / 1e9:.0f} GB to fetch" if model["hub_id"] else "files are missing"
