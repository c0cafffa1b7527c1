"""Values of diffusers' loading arguments that no pipeline can be loaded with, refused before anything is fetched.

Comes in: arguments of `from_pretrained`. Goes out: nothing, or a RequestError that says what would work. Which
arguments there are is in `model.arguments`.
"""

from collections.abc import Collection
from typing import Any

from diffusers.pipelines.pipeline_utils import SUPPORTED_DEVICE_MAP

from kandinsky5.errors import RequestError


def check_load_values(dtype: Any, device_map: Any, models: Collection[str]) -> None:
    """Refuse a dtype for none of the models, which diffusers would ignore, and a device map that is not for pipelines.

    Raises:
        RequestError: naming the value, and those that are taken.
    """
    known = ("default", *sorted(models))
    for name in dtype if isinstance(dtype, dict) else ():
        if name not in known:
            raise RequestError(f"dtype names {name!r:.80}, which is none of {', '.join(known)}.")
    maps = [*dict.fromkeys(SUPPORTED_DEVICE_MAP)]
    if device_map is not None and device_map not in maps:
        raise RequestError(
            f"device_map={device_map!r:.80} is none of {', '.join(map(repr, maps))} for a pipeline; a network alone "
            "takes others (Kandinsky5Transformer3DModel.from_pretrained), and load_pipeline a budget of memory."
        )
