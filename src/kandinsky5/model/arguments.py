"""Which of diffusers' keyword arguments a loader takes, and why it refuses the others.

In: the arguments of a call, and the names the loader knows beside diffusers'. Out: nothing, or a RequestError.
diffusers warns of an unknown argument and goes on without it, so a misspelt `revision` loads another model than meant.
Refuses to know: what taken arguments do.
"""

import difflib
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

from kandinsky5.errors import RequestError

TAKEN: Final = (
    *(
        "cache_dir",
        "force_download",
        "local_files_only",
        "proxies",
        "revision",
        "subfolder",
        "token",
        "variant",
    ),
    *("device_map", "disable_mmap", "dtype", "low_cpu_mem_usage", "max_memory", "offload_folder"),
    *("offload_state_dict", "quantization_config", "torch_dtype", "use_safetensors"),
    *("output_loading_info", "parallel_config"),
)
"""Arguments of diffusers' `from_pretrained` methods, which are passed on or answered here."""

NETWORK_ONLY: Final = ("subfolder", "output_loading_info", "parallel_config")
"""Those that only the network's `from_pretrained` honours."""

_NO_FORMAT: Final = "only safetensors are read"
_NO_CODE: Final = "code from a repository is not run"
REFUSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        "custom_pipeline": _NO_CODE,
        "custom_revision": _NO_CODE,
        "trust_remote_code": _NO_CODE,
        "load_connected_pipeline": "there is no connected pipeline",
        "ignore_mismatched_sizes": "a tensor of another shape is a damaged or mistaken checkpoint",
        "mirror": "set HF_ENDPOINT in the environment",
        "use_onnx": _NO_FORMAT,
        "provider": _NO_FORMAT,
        "provider_options": _NO_FORMAT,
        "sess_options": _NO_FORMAT,
        "use_flashpack": _NO_FORMAT,
        "flashpack_kwargs": _NO_FORMAT,
        "dduf_file": _NO_FORMAT,
        "from_flax": _NO_FORMAT,
    }
)
"""Arguments that diffusers takes and this package cannot honour. What asks for nothing (None, False) passes."""


def check_arguments(arguments: Mapping[str, Any], own: Collection[str], but: Collection[str] = ()) -> None:
    """Refuse what would be ignored.

    Args:
        arguments: of the call.
        own: names that the class itself takes: components, config fields.
        but: of `TAKEN`, those that this loader cannot honour.

    Raises:
        RequestError: naming the argument, and what it may have been meant to be.
    """
    known = {*TAKEN, *own} - set(but)
    for name, value in arguments.items():
        if name in known or (name in REFUSED and not value):
            continue
        if name in REFUSED:
            raise RequestError(f"{name}={value!r:.80} cannot be honoured: {REFUSED[name]}; leave it out.")
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else "leave it out."
        raise RequestError(f"from_pretrained has no argument {name!r}; {hint}")
