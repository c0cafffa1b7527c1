"""From the words `--model`, `--device` and `--precision` to an engine.

In: the options. Out: an `Engine`, or one for each task. Torch is imported here and not earlier. Refuses to know:
requests, pictures.
"""

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kandinsky5.budget import Budget
from kandinsky5.checkpoint.document import read_object
from kandinsky5.cli.adapters import ChosenLora
from kandinsky5.cli.imports import collecting_later, quieten_libraries
from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.prompts import Task
from kandinsky5.variants import ModelSource, resolve_model

if TYPE_CHECKING:
    from kandinsky5.engine import Engine

IMPORTED_ALOUD = (
    *("torchao", "bitsandbytes", "torch.utils._pytree"),
    "diffusers.quantizers.torchao.torchao_quantizer",
)
"""Loggers that remark on this machine while diffusers imports what it can quantise with; `--debug` shows it."""


def quieten_imports() -> None:
    """Keep those remarks off standard error."""
    for library in IMPORTED_ALOUD:
        logging.getLogger(library).setLevel(logging.ERROR)


def open_engine(
    model: str,
    device: str,
    dtype: str,
    task: Task = "text-to-image",
    budget: Budget | None = None,
    mode: str = "auto",
) -> "Engine":
    """Load a model for a task, within a budget of memory or in a mode, and put an engine around it.

    `mode` is what `options.ModeName` has.

    Raises RequestError for options that name nothing, CheckpointError for files that cannot be read, CapacityError
    when the device has no room.
    """
    source = resolve_model(model)
    if mode != "auto" and budget is not None:
        raise RequestError("--memory chooses how the network computes, too: leave --mode out, or --memory.")
    if _cores_are_busy():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read by OpenMP when torch loads
    quieten_libraries()
    with collecting_later():
        from kandinsky5.engine import Engine
        from kandinsky5.loading import load_pipeline
        from kandinsky5.out_of_memory import is_out_of_memory

    try:
        pipeline = load_pipeline(
            model,
            device=device,
            dtype=dtype,
            task=task,
            memory=budget,
            mode=None if mode == "ordinary" else mode,
        )
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise CapacityError(
            f"{source.name} does not fit into the memory of device {device}; try --memory auto, --precision bf16, or "
            "--device cpu."
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return Engine(pipeline, source=source.name)


def open_engines(
    model: str,
    device: str,
    dtype: str,
    budget: Budget | None = None,
    mode: str = "auto",
    loras: Sequence[ChosenLora] = (),
) -> "dict[Task, Engine]":
    """An engine for each task that a model can do, over one set of weights, with adapters that requests may name.

    Raises as `open_engine` and `NamedAdapters.add` do.
    """
    if not logging.getLogger("kandinsky5").isEnabledFor(logging.DEBUG):
        quieten_imports()
    task: Task = "editing" if _edits(resolve_model(model)) else "text-to-image"
    engine = open_engine(model, device, dtype, task, budget, mode)
    for lora in loras:
        engine.adapters.add(lora.name, lora.source)
    if task == "text-to-image":
        return {task: engine}
    from kandinsky5.pipelines import Kandinsky5T2IPipeline

    drawing = Kandinsky5T2IPipeline.from_pipe(engine.pipeline)
    drawing.set_progress_bar_config(disable=True)
    return {"text-to-image": engine.over(drawing), task: engine}


def _edits(source: ModelSource) -> bool:
    """Whether a model's network takes a source picture: by its folder, else by its row."""
    if source.folder is not None:
        return bool(read_object(source.folder / "transformer" / "config.json").get("visual_cond"))
    return source.variant is not None and source.variant.task == "editing"


def _cores_are_busy() -> bool:
    """Whether other processes use this machine's cores, going by the last minute's load.

    Threads that spin for a core that somebody else has made a picture of the embedded model ten times slower (46 s
    against 3.7 s on two cores, one and a half of them taken); on idle cores spinning is faster (3.2 s against 5.3 s).
    """
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.5
