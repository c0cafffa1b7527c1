"""Components without weights: the scheduler, and the tokenizers or the processor that one is part of.

Comes in: a component's folder, and the class that the index names. Goes out: the component, loaded, which is the check
of its files. No code of a folder is run, and nobody is asked whether it may be. Refuses to know: models, and how a
scheduler's times are used.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from diffusers.schedulers.scheduling_utils import SchedulerMixin
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from kandinsky5.checkpoint.document import read_object, reason
from kandinsky5.denoise import FLOW_PREDICTION, predicts
from kandinsky5.errors import CheckpointError

LIGHT: Mapping[str, tuple[type, ...]] = {
    "scheduler": (SchedulerMixin,),
    "tokenizer": (PreTrainedTokenizerBase, ProcessorMixin),
    "tokenizer_2": (PreTrainedTokenizerBase,),
}
"""Components without weights, and what their class must be."""

NO_OBJECTS: Final = ("merges.json", "added_tokens.json", "vocab.json")
"""JSON files of tokenizers that may be large; their library says what is wrong with them."""

SCHEDULER_CONFIG: Final = "scheduler_config.json"
LARGEST_SHIFT: Final = 100
MOST_TIMES: Final = 100_000
"""Of a scheduler; the published ones have shifts of 3 and 5, and 1000 times."""

OTHER_TIMES: Final = {
    "use_dynamic_shifting": "would take the shift from the picture's size; these networks have one shift",
    "invert_sigmas": "would run time backwards; these networks go from t = 1 to t = 0",
}
"""Settings that other networks were trained with, and what they would do here."""


def load_light(name: str, entry: list[str], folder: Path) -> Any:
    """A scheduler, tokenizer or processor.

    Args:
        name: of `LIGHT`.
        entry: library and class, as the index names them.
        folder: of the component.

    Raises:
        CheckpointError: files that are damaged or would run code, another kind of class, a scheduler that does not
            take the network's velocity or has times that cannot be.
    """
    for file in folder.glob("*.json"):
        if file.name not in NO_OBJECTS:
            check_no_code(read_object(file, infinite=name == "scheduler"), file)
    if name == "scheduler":
        _check_times(folder / SCHEDULER_CONFIG)
    try:
        loaded_class = getattr(importlib.import_module(entry[0]), entry[1])
        if not issubclass(loaded_class, LIGHT[name]):
            raise TypeError(f"{entry[1]} is no {' or '.join(kind.__name__ for kind in LIGHT[name])}")
        trust = {"trust_remote_code": False} if entry[0] == "transformers" else {}
        loaded = loaded_class.from_pretrained(str(folder), **trust)
    except Exception as error:  # whatever damaged files lead to
        raise CheckpointError(
            f"{folder} cannot be loaded as {entry[1]}: {type(error).__name__}: {reason(error)}"
        ) from error
    if name == "scheduler" and not _takes_velocities(loaded):
        raise CheckpointError(
            f"{folder} holds a {entry[1]}, which does not take the velocities of flow matching; it must be a "
            f"FlowMatch... scheduler, or one with use_flow_sigmas and prediction_type {FLOW_PREDICTION!r}."
        )
    return loaded


def check_no_code(config: Mapping[str, Any], file: Path) -> None:
    """Refuse a config that names code of its folder. Raises CheckpointError."""
    if config.get("auto_map"):
        raise CheckpointError(
            f"{file} names code of its own (auto_map: {str(config['auto_map'])[:80]}); code in a folder is not run."
        )


def _check_times(file: Path) -> None:
    """The settings that times are made of, before a table of so many is."""
    config = read_object(file, infinite=True)
    for field in ("shift", "flow_shift"):
        shift = config.get(field, 1.0)
        if type(shift) not in (int, float) or not 0 < shift <= LARGEST_SHIFT:
            raise CheckpointError(
                f"{file}: {field} must be above 0 and at most {LARGEST_SHIFT}, not {str(shift)[:80]}."
            )
    count = config.get("num_train_timesteps", 1000)
    if type(count) is not int or not 1 <= count <= MOST_TIMES:
        raise CheckpointError(
            f"{file}: num_train_timesteps must be from 1 to {MOST_TIMES}, not {str(count)[:80]}."
        )
    for field, does in OTHER_TIMES.items():
        if config.get(field):
            raise CheckpointError(f"{file}: {field} {does}.")


def _takes_velocities(scheduler: Any) -> bool:
    """Whether `denoise.denoise` can step with it: made for flow matching, or told to be (UniPC, DPM++, DEIS)."""
    if type(scheduler).__name__.startswith("FlowMatch"):
        return True
    return bool(scheduler.config.get("use_flow_sigmas")) and predicts(scheduler) == FLOW_PREDICTION
