"""Whether a library can read what a config says of packed weights (`quantization_config`).

Comes in: a `config.json` as a mapping, and which library will read the component. Goes out: nothing, or what is wrong.
A library that does not know the method may go on without it and fill every packed tensor with random numbers, so the
library's own quantiser is built here first. Refuses to know: tensors, and what the methods do.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kandinsky5.checkpoint.document import reason
from kandinsky5.checkpoint.weights import Library
from kandinsky5.errors import CheckpointError

FIELD = "quantization_config"


def check_quantizer(config: Mapping[str, Any], library: Library, file: Path) -> None:
    """Refuse a config whose `quantization_config` the installed library does not handle. None of it is plain weights.

    Args:
        config: the content of `file`.
        library: whose quantisers are asked.
        file: for messages.

    Raises:
        CheckpointError: it is no object, names no method that is known here, stands in a part of the config, or has
            settings that the method refuses.
    """
    for part, inner in config.items():
        if isinstance(inner, dict) and part != FIELD and inner.get(FIELD) is not None:
            raise CheckpointError(f"{file}: {FIELD} stands in {part!r}; it must be beside it.")
    settings = config.get(FIELD)
    if settings is None:
        return
    if not isinstance(settings, dict) or not settings:
        raise CheckpointError(
            f"{file}: {FIELD} must be an object that names a method, not {str(settings)[:80]}."
        )
    try:
        _build(dict(settings), library)
    except Exception as error:  # whatever a lying config, or a package that is missing, leads to
        raise CheckpointError(
            f"{file}: {library} cannot load what {FIELD} says: {type(error).__name__}: {reason(error)}"
        ) from error


def _build(settings: dict[str, Any], library: Library) -> None:
    if library == "diffusers":
        from diffusers.quantizers.auto import DiffusersAutoQuantizer

        DiffusersAutoQuantizer.from_config(settings, pre_quantized=True)
    else:
        from transformers.quantizers.auto import AutoHfQuantizer

        AutoHfQuantizer.from_config(settings, pre_quantized=True)
