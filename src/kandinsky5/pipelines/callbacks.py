"""diffusers' step callbacks over our `Run`.

Comes in: a callback as diffusers documents it, and the run it may look at and change. Goes out: the changed run. It
refuses to know what the tensors mean.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from kandinsky5.denoise import Run
from kandinsky5.errors import RequestError
from kandinsky5.records import Conditioning

StepCallback: TypeAlias = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]
"""A function, or one of diffusers' callback objects, which are called the same way."""

TENSOR_NAMES = (
    "latents",
    "prompt_embeds_qwen",
    "prompt_embeds_clip",
    "negative_prompt_embeds_qwen",
    "negative_prompt_embeds_clip",
)
"""What a callback may ask for and give back."""


def tensor_inputs(callback: StepCallback | None, names: list[str] | None) -> list[str]:
    """The tensors a callback is given: what its own class says, else `names`, else the latents."""
    if isinstance(callback, PipelineCallback | MultiPipelineCallbacks):
        return callback.tensor_inputs
    return ["latents"] if names is None else names


def apply_callback(
    callback: StepCallback, pipeline: Any, i: int, timestep: Tensor, run: Run, names: list[str]
) -> None:
    """Hand `names` of the run's tensors to the callback, and put what it returns back into the run.

    Raises:
        RequestError: it returned no dictionary, names that are none of `TENSOR_NAMES`, or tensors of other shapes.
    """
    tensors: dict[str, Any] = {
        "latents": run.latents,
        "prompt_embeds_qwen": run.positive.text,
        "prompt_embeds_clip": run.positive.pooled,
        "negative_prompt_embeds_qwen": run.negative.text if run.negative else None,
        "negative_prompt_embeds_clip": run.negative.pooled if run.negative else None,
    }
    given = {name: tensors[name] for name in names}
    # What was handed out may have been written to, so it goes back even if it is not returned.
    changed = given | _returned(callback(pipeline, i, timestep, dict(given)))
    run.latents = _latents(changed.get("latents", run.latents), run.latents)
    run.positive = _with_embeds(
        run.positive, changed.get("prompt_embeds_qwen"), changed.get("prompt_embeds_clip")
    )
    if run.negative is not None:
        run.negative = _with_embeds(
            run.negative,
            changed.get("negative_prompt_embeds_qwen"),
            changed.get("negative_prompt_embeds_clip"),
        )


def _returned(value: Any) -> dict[str, Any]:
    """What a callback gave back; nothing is an empty dictionary."""
    if not isinstance(value, Mapping | None):
        raise RequestError(
            f"callback_on_step_end must return a dictionary of tensors, or nothing, not a {type(value).__name__}."
        )
    if unknown := [name for name in value or () if name not in TENSOR_NAMES]:
        raise RequestError(
            f"callback_on_step_end returned {unknown[0]!r:.80}, which would be ignored; what it may replace is "
            f"{', '.join(TENSOR_NAMES)}."
        )
    return dict(value or {})


def _latents(value: Any, old: Tensor) -> Tensor:
    """Latents from a callback, in float32."""
    if not isinstance(value, Tensor) or value.shape != old.shape:
        given = tuple(value.shape) if isinstance(value, Tensor) else value
        raise RequestError(
            f"callback_on_step_end returned {given!r:.80} as latents, which must be a tensor {tuple(old.shape)}; leave "
            "out of the dictionary what stays as it is."
        )
    return value.to(torch.float32)


def _with_embeds(old: Conditioning, text: Any, pooled: Any) -> Conditioning:
    """The conditioning with replaced tensors, itself if there are none. Text of another length has no padding."""
    if text is None and pooled is None:
        return old
    text, pooled = _embeds(text, old.text), _embeds(pooled, old.pooled)
    mask = old.mask
    if text.shape[:2] != mask.shape:
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
    return Conditioning(text=text, mask=mask, pooled=pooled)


def _embeds(value: Any, old: Tensor) -> Tensor:
    """Embeddings from a callback, as those that they replace but for the number of tokens; None replaces none."""
    if value is None:
        return old
    if not isinstance(value, Tensor) or value.ndim != old.ndim or _but_length(value) != _but_length(old):
        given = tuple(value.shape) if isinstance(value, Tensor) else value
        raise RequestError(
            f"callback_on_step_end returned {given!r:.80} as embeddings, which must be a tensor {tuple(old.shape)}; of "
            "text another number of tokens is taken too."
        )
    value = value.to(old)
    return value.clone() if value.is_inference() else value  # writing to one of that mode leaves no trace


def _but_length(tensor: Tensor) -> tuple[int, int]:
    """Rows and channels."""
    return tensor.shape[0], tensor.shape[-1]
