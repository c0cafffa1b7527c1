"""What one call asks for, in diffusers' words, as plain numbers that can be carried out.

Comes in: the arguments of the public pipelines. Goes out: a `Call`, or a RequestError before any model runs. It refuses
to know components, and how anything is drawn.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from kandinsky5.errors import RequestError
from kandinsky5.pipelines.callbacks import StepCallback
from kandinsky5.pipelines.output import OUTPUT_TYPES
from kandinsky5.pipelines.prompt_input import Prompts


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one call asks for. None is the checkpoint's own default.

    pictures: sources at the size of the result, none, one for all prompts or one each.

    Raises:
        RequestError: a number, generator or output type that is none.
    """

    prompts: Prompts
    width: int
    height: int
    num_inference_steps: int | None
    guidance_scale: float | None
    num_images_per_prompt: int | None
    generator: torch.Generator | list[torch.Generator] | None
    latents: Tensor | None
    output_type: str
    callback: StepCallback | None
    callback_tensors: list[str]
    max_sequence_length: int
    pictures: Sequence[Image.Image] = ()

    def __post_init__(self) -> None:
        plain: dict[str, Any] = {"generator": _generators(self.generator)}
        for name in ("num_inference_steps", "num_images_per_prompt"):
            if getattr(self, name) is not None:
                plain[name] = whole(name, getattr(self, name))
        if self.guidance_scale is not None:
            plain["guidance_scale"] = _finite("guidance_scale", self.guidance_scale)
        if self.output_type not in OUTPUT_TYPES:
            raise RequestError(f"output_type={self.output_type!r} must be one of {', '.join(OUTPUT_TYPES)}.")
        for name, value in plain.items():
            object.__setattr__(self, name, value)

    @property
    def per_prompt(self) -> int:
        """Pictures a prompt."""
        return 1 if self.num_images_per_prompt is None else self.num_images_per_prompt

    @property
    def rows(self) -> int:
        """Pictures in all."""
        return len(self.prompts) * self.per_prompt

    @property
    def picture_rows(self) -> list[int]:
        """For each picture to draw, which source it is made of."""
        return [row // self.per_prompt if len(self.pictures) > 1 else 0 for row in range(self.rows)]


def index_of(value: Any) -> Any:
    """A whole number of any library (numpy's, a tensor) as Python's own; what is none as it came, to be refused."""
    try:
        return value if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return value


def whole(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A whole number within bounds, as Python's own. Raises RequestError that names it and them."""
    number = index_of(value)
    if type(number) is not int or number < least or (most is not None and number > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise RequestError(f"{name}={value!r:.80} must be a whole number, {bounds}.")
    return number


def _finite(name: str, value: Any) -> float:
    """A number of any library as a float. Raises RequestError for text, NaN, infinity and what is no number."""
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):  # the last is a tensor of several
        number = math.nan
    if not math.isfinite(number):
        raise RequestError(f"{name}={value!r:.80} must be a finite number.")
    return number


def _generators(value: Any) -> Any:
    """None, a generator, or a list of them. Raises RequestError for anything else, such as a seed."""
    each = list(value) if isinstance(value, list | tuple) else [value]
    if value is not None and not all(isinstance(generator, torch.Generator) for generator in each):
        raise RequestError(
            f"generator={value!r:.80} must be a torch.Generator, or a list of one for each picture; a seed becomes one "
            "with torch.Generator().manual_seed(seed)."
        )
    return each if isinstance(value, list | tuple) else value
