"""What may be asked of a pipeline whose network comes in one file, and where its other components come from.

Comes in: the arguments of `from_single_file`. Goes out: whether all components were passed, or a RequestError before a
byte of the file is read. It refuses to know what the arguments do where they are taken.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from kandinsky5.errors import RequestError
from kandinsky5.model.arguments import NETWORK_ONLY, check_arguments

OF_THE_FILE: Final = ("device_map", "disable_mmap")
"""Arguments of `from_pretrained` that the network's file is loaded with."""

HARMLESS: Final = ("token", "cache_dir", "local_files_only", "use_safetensors", "low_cpu_mem_usage")
"""Those that ask for nothing where nothing else is loaded; as with a folder, where the hub is not asked."""


def check_around_file(
    file: Path,
    arguments: Mapping[str, Any],
    *,
    components: Collection[str],
    settings: Collection[str],
    base: Any,
) -> bool:
    """Whether every component but the network was passed, so that nothing else is loaded.

    Args:
        file: of the network.
        arguments: of the call, but for `config`.
        components, settings: what the pipeline's class takes by name.
        base: `config` of the call.

    Raises:
        RequestError: nowhere to take the other components from, or an argument that would be ignored.
    """
    check_arguments(arguments, {*components, *settings, "text_encoder_parts"}, but=NETWORK_ONLY)
    if "transformer" in arguments:
        raise RequestError(
            f"The network comes from {file.name}; leave transformer out, or use from_pretrained."
        )
    missing = [name for name in components if name != "transformer" and name not in arguments]
    if missing and base is None:
        raise RequestError(
            f"{file.name} holds the network alone; {', '.join(missing)} must come from somewhere: pass "
            "config=<folder or hub id of a whole pipeline>, or each by name."
        )
    if "quantization_config" in arguments:
        raise RequestError(
            "quantization_config cannot be given with a single file: quantise the network with "
            "Kandinsky5Transformer3DModel.from_single_file(..., quantization_config=...), and pass it as "
            "from_pretrained(..., transformer=network)."
        )
    if not missing:
        _check_nothing_is_ignored(arguments, {*components, *settings, "text_encoder_parts"})
    return not missing


def _check_nothing_is_ignored(arguments: Mapping[str, Any], taken: Collection[str]) -> None:
    """With all components passed, refuse what is about loading them."""
    known = {*taken, *OF_THE_FILE, *HARMLESS, "dtype", "torch_dtype"}
    for name, value in arguments.items():
        if name not in known and value not in (None, False):
            raise RequestError(
                f"{name}={value!r:.80} is about loading the other components, and all of them were passed; leave it "
                "out."
            )
