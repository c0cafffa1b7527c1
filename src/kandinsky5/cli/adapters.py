"""`--lora FILE[:WEIGHT]`, as it is typed.

In: the option's texts, and the picture that `--like` names. Out: adapters to load, each with the name that pictures
keep of it. Nothing is opened. Refuses to know: what is in a file, and what a mode is beyond its name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from kandinsky5.cli.extras import require_extra
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.provenance import Provenance

NONE = "none"


@dataclass(frozen=True, kw_only=True)
class ChosenLora:
    """An adapter to draw with. `name` goes into pictures: the file's without its folder, or the hub id."""

    name: str
    source: str
    weight: float


def chosen_loras(command: str, texts: Sequence[str] | None, stored: Provenance | None) -> list[ChosenLora]:
    """The adapters that the option names.

    A picture tells names of adapters and not where they are, so one that was drawn with some is not followed silently.

    Raises:
        RequestError: a weight that is none, two files of one name, no peft, or adapters in the picture of `--like`
            and no `--lora`.
    """
    if not texts:
        if stored is not None and stored.request.lora:
            used = ", ".join(f"{name}:{weight:g}" for name, weight in stored.request.lora)
            raise RequestError(
                f"The picture of --like was drawn with {used}: say --lora FILE[:WEIGHT] for it, or --lora none."
            )
        return []
    if list(texts) == [NONE]:
        return []
    require_extra(f"{command} --lora", "lora", ("peft",))
    chosen = [_chosen(text) for text in texts]
    names = [lora.name for lora in chosen]
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise RequestError(f"--lora names {repeated} twice; files of one name are told apart by nobody.")
    return chosen


def offered_loras(command: str, texts: Sequence[str] | None) -> list[ChosenLora]:
    """The adapters that a server's requests may name. Raises as `chosen_loras`, and for a weight."""
    chosen = chosen_loras(command, texts, None)
    for text, lora in zip(texts or (), chosen, strict=False):
        if text != lora.source:
            raise RequestError(f"--lora {text!r}: each request gives its own weight; say {lora.source!r}.")
    return chosen


def check_loras(loras: Sequence[ChosenLora], mode: str) -> None:
    """Refuse, before a model is loaded, adapters that could not be put into it.

    Raises:
        RequestError: a mode whose layers take none.
        CheckpointError: a file that is missing.
    """
    if loras and mode.startswith("fp8"):
        raise RequestError(
            f"--mode {mode} has float8 layers, which take no adapter: leave out --mode, or --lora."
        )
    for lora in loras:
        if lora.source.endswith(".safetensors") and not Path(lora.source).is_file():
            raise CheckpointError(f"{lora.source} is missing.")


def weights_of(loras: Sequence[ChosenLora]) -> tuple[tuple[str, float], ...] | None:
    """What a request holds of them."""
    return tuple((lora.name, lora.weight) for lora in loras) or None


def _chosen(text: str) -> ChosenLora:
    source, colon, number = text.rpartition(":")
    try:
        weight = float(number) if colon else 1.0
    except ValueError:  # a colon of the path itself
        source, weight = text, 1.0
    if not colon:
        source = text
    if not source or not math.isfinite(weight):
        raise RequestError(f"--lora {text!r} is not FILE or FILE:WEIGHT, such as stars.safetensors:0.8.")
    path = PurePath(source)
    is_file = path.suffix == ".safetensors" or len(path.parts) != 2
    return ChosenLora(name=path.name if is_file else source, source=source, weight=weight)
