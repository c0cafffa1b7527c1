"""One tier in one process: load within a budget, draw or edit, tell seconds, peaks and bytes.

Comes in: a `Tier`. Goes out: a row of figures. Refuses to know: other tiers.
"""

import io
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from kandinsky5.budget import Budget
from kandinsky5.loading import load_pipeline
from kandinsky5.memory import load_planned, plan_for
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.streaming.conveyor import ATTRIBUTE
from remembering.watching import host_bytes, watched

OUTSIDE = 700 * 10**6
"""Bytes of a tier that torch's allocator does not get. Part of what a tier is; CUDA's context takes somewhat more."""

PROMPT = "A lighthouse on a cliff at dusk, painted in broad strokes, with gulls and a small boat far below."

WARM_UP: Final = 10
"""Steps with the longest prompt, for which a plan is made; the fast path prepares no more of them at once."""

FEW: Final = 4
"""Steps with the timed prompt before: kernels for its length are compiled, and graphs captured where there are any."""

PICTURES: Final = 2
"""That are timed, the quicker one counts: two of one plan were 3 % apart beside another process on the host
(benchmarks/results/2026-11-28-memory-h200-filled.json)."""


@dataclass(frozen=True, kw_only=True)
class Tier:
    """What one process does.

    gigabytes: of the device; None is the whole device with all weights on it, in mode exact.
    host_gigabytes: of the host; None is what is free.
    task: "drawing" or "editing".
    forced: place blocks and encoder on the host whatever fits, to rehearse on a small model.
    """

    folder: str
    device: str
    gigabytes: float | None
    host_gigabytes: float | None
    task: str
    size: int
    steps: int
    forced: bool = False


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Of a picture: seconds from prompt to PNG, to the end of the first step and after the last; bytes moved."""

    seconds: float
    first: float
    after: float
    moved: int
    moved_first: int


def measure(tier: Tier) -> dict[str, Any]:
    """Load, warm up with the longest prompt, draw, and tell."""
    device = torch.device(tier.device)
    before = host_bytes()
    cap(tier, device)
    start = time.perf_counter()
    with watched(device) as loading:
        pipeline = load(tier, device)
        pipeline.set_progress_bar_config(disable=True)
    loaded = time.perf_counter() - start
    with watched(device) as longest:  # kernels are compiled, slots and libraries' workspaces made
        draw(pipeline, tier, steps=min(WARM_UP, tier.steps), prompt=40 * PROMPT)
        draw(pipeline, tier, steps=min(FEW, tier.steps))
    with watched(device) as drawing:
        pictures = [draw(pipeline, tier, steps=tier.steps) for _ in range(PICTURES)]
    best = min(pictures, key=lambda picture: picture.seconds)
    plan = pipeline.plan
    row: dict[str, Any] = {
        **asdict(tier),
        "seconds": round(best.seconds, 3),
        "all_seconds": [round(picture.seconds, 3) for picture in pictures],
        "first_step_seconds": round(best.first, 3),
        "after_steps_seconds": round(best.after, 3),
        "load_seconds": round(loaded, 1),
        "moved_per_step_gb": gb((best.moved - best.moved_first) / max(1, tier.steps - 1)),
        "moved_bytes": best.moved,
        "host_before_gb": {kind: gb(size) for kind, size in before.items()},
        "loading": peaks(loading),
        "longest_prompt": peaks(longest),
        "drawing": peaks(drawing),
        "plan": None if plan is None else {**plan.to_dict(), "lines": plan.lines},
    }
    if plan is not None and "allocated" in drawing:
        for kind in ("allocated", "reserved"):
            peak = max(found[kind] for found in (loading, longest, drawing))
            row[f"predicted_over_{kind}"] = round(plan.device_bytes / peak, 3)
    return row


def cap(tier: Tier, device: torch.device) -> None:
    """Let torch's allocator have the tier less `OUTSIDE`."""
    if tier.gigabytes is not None and device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        share = min(1.0, (tier.gigabytes * 1e9 - OUTSIDE) / total)
        torch.cuda.set_per_process_memory_fraction(share, device.index or torch.cuda.current_device())


def load(tier: Tier, device: torch.device) -> Any:
    """The tier's pipeline."""
    edits = tier.task == "editing"
    budget = None
    if tier.gigabytes is not None:
        host = None if tier.host_gigabytes is None else round(tier.host_gigabytes * 1e9)
        budget = Budget(
            device_bytes=round(tier.gigabytes * 1e9), host_bytes=host, width=tier.size, height=tier.size
        )
    if budget is not None and tier.forced:
        kind = Kandinsky5I2IPipeline if edits else Kandinsky5T2IPipeline
        plan = plan_for(Path(tier.folder), budget, device=device, dtype=torch.bfloat16, edits=edits)
        streamed = replace(
            plan,
            network_origin="host",
            encoder_origin="disk",
            resident_blocks=0,
            resident_layers=0,
            slots=2,
            small_stream=True,
        )
        return load_planned(kind, Path(tier.folder), streamed, dtype=torch.bfloat16)
    task = "editing" if edits else "text-to-image"
    return load_pipeline(tier.folder, device=tier.device, dtype="bf16", task=task, memory=budget)  # type: ignore[arg-type]


def draw(pipeline: Any, tier: Tier, *, steps: int, prompt: str = PROMPT) -> Drawn:
    """Prompt to PNG once."""
    conveyors = find_conveyors(pipeline)
    ends: list[tuple[float, int]] = []

    def moved() -> int:
        return sum(conveyor.moved for conveyor in conveyors)

    def after_step(_: Any, index: int, __: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if index in (0, steps - 1):
            if tier.device != "cpu":
                torch.cuda.synchronize(tier.device)
            ends.append((time.perf_counter(), moved()))
        return tensors

    arguments: dict[str, Any] = {"image": source(tier.size)} if tier.task == "editing" else {}
    start, before = time.perf_counter(), moved()
    image = pipeline(
        prompt=prompt,
        width=tier.size,
        height=tier.size,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        callback_on_step_end=after_step,
        **arguments,
    ).images[0]
    image.save(io.BytesIO(), format="PNG")
    end = time.perf_counter()
    return Drawn(
        seconds=end - start,
        first=ends[0][0] - start,
        after=end - ends[-1][0],
        moved=moved() - before,
        moved_first=ends[0][1] - before,
    )


def source(size: int) -> Image.Image:
    """A picture to edit."""
    rows, columns = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(5 * columns + 3 * rows * (i + 1) + i) for i in range(3)]
    return Image.fromarray(np.uint8(np.stack(waves, axis=-1) * 100 + 128))


def find_conveyors(pipeline: Any) -> list[Any]:
    """All of a pipeline."""
    found = {}
    for name in ("transformer", "text_encoder", "text_encoder_2"):
        for module in getattr(pipeline, name).modules():
            entry = getattr(module, ATTRIBUTE, None)
            if entry is not None:
                found[id(entry[0])] = entry[0]
    return list(found.values())


def peaks(found: dict[str, Any]) -> dict[str, Any]:
    """In gigabytes; host_gb is what counts: anonymous, shared and torch's own locked memory."""
    host = found["host"]
    told: dict[str, Any] = {
        "host_gb": gb(host["anonymous"] + host["shared"] + found.get("locked_by_torch", 0)),
        **{f"host_{kind}_gb": gb(size) for kind, size in host.items()},
    }
    told |= {
        f"device_{name}_gb": gb(found[key])
        for name, key in (("driver", "device_bytes"), ("allocated", "allocated"), ("reserved", "reserved"))
        if found.get(key)
    }
    return told


def gb(size: float) -> float:
    """Bytes as gigabytes (1e9)."""
    return round(size / 1e9, 3)


def main(text: str) -> None:
    """In the new process."""
    print(json.dumps(measure(Tier(**json.loads(text)))))
