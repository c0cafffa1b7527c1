"""Which components a `quantization_config` is for, and whether it reached them.

Comes in: diffusers' `PipelineQuantizationConfig`, before and after a pipeline is loaded. Goes out: a refusal where a
component would stay as it is without a word, and a line in the log about the layers that a library leaves alone. How
anything is quantised is the libraries' affair.
"""

import logging
from collections.abc import Collection
from typing import Any

from diffusers import PipelineQuantizationConfig
from torch import Tensor, nn

from kandinsky5.errors import RequestError

logger = logging.getLogger(__name__)


def check_quantization(config: Any, models: Collection[str], brought: Collection[str]) -> None:
    """Refuse a config that would not reach what it names.

    Args:
        config: the argument of `from_pretrained`; None quantises nothing.
        models: names of components with weights.
        brought: components that the caller passes, which are not loaded.

    Raises:
        RequestError: a config for one model instead of a pipeline, or a component that is unknown or passed.
    """
    if config is None:
        return
    if not isinstance(config, PipelineQuantizationConfig):
        raise RequestError(
            f"quantization_config must be a diffusers.PipelineQuantizationConfig, which says what each component gets, "
            f'not a {type(config).__name__}: PipelineQuantizationConfig(quant_mapping={{"transformer": ...}}).'
        )
    for name in _named(config):
        if name not in models:
            raise RequestError(
                f"quantization_config names {name!r}, which is none of {', '.join(sorted(models))}."
            )
        if name in brought:
            raise RequestError(
                f"quantization_config names {name!r}, which was passed as it is; quantise it where it is loaded."
            )


def check_quantized(pipeline: Any, config: Any) -> None:
    """Tell what was left alone in the components that a config names.

    Raises:
        RequestError: a component that has no quantised layer at all.
    """
    for name in _named(config) if config is not None else ():
        model = getattr(pipeline, name)
        layers = {key: layer for key, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        plain = [key for key, layer in layers.items() if is_plain(layer.weight)]
        if len(plain) == len(layers):
            raise RequestError(
                f"quantization_config reached no layer of {name!r}: it has {len(layers)} linear layers, all as stored."
            )
        if plain:
            logger.info(
                "%s: %d of %d linear layers keep their dtype: %s", name, len(plain), len(layers), plain
            )


def write_as_packed(model: Any) -> None:
    """Let a model that was loaded from packed files be saved as it is: transformers would first take back what its
    quantiser did on loading, which it cannot.
    """
    steps = getattr(model, "_weight_conversions", None)
    if steps is not None and getattr(model, "hf_quantizer", None) is not None:
        model._weight_conversions = [step for step in steps if _can_be_taken_back(step)]


def is_packed_in_memory(model: nn.Module) -> bool:
    """Whether weights are packed and no library knows of it, which would save them as what they are not."""
    if getattr(model, "hf_quantizer", None) is not None:
        return False
    layers = (layer for layer in model.modules() if isinstance(layer, nn.Linear))
    return any(not is_plain(layer.weight) for layer in layers)


def is_plain(weight: Tensor) -> bool:
    """Whether a weight is neither packed in a tensor of another class nor narrower than 16 bits."""
    return type(weight.data) is Tensor and weight.is_floating_point() and weight.dtype.itemsize > 1


def _can_be_taken_back(step: Any) -> bool:
    try:
        step.reverse_transform()
    except NotImplementedError:
        return False
    return True


def _named(config: PipelineQuantizationConfig) -> Collection[str]:
    """Components that the config names; a config for all of them names none."""
    return tuple(config.quant_mapping or config.components_to_quantize or ())
