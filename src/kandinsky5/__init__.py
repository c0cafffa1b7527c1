"""Kandinsky 5.0 Image Lite: a prompt becomes an image, an image and an instruction another.

The public names. Each is imported on first use, so that `import kandinsky5` loads no tensor library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from kandinsky5.version import __version__

if TYPE_CHECKING:
    from kandinsky5.errors import CapacityError, CheckpointError, RequestError
    from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
    from kandinsky5.pipelines import (
        Kandinsky5I2IPipeline,
        Kandinsky5T2IPipeline,
        KandinskyImagePipelineOutput,
    )
    from kandinsky5.request import ImageRequest

_HOMES: Final = {
    "CapacityError": "kandinsky5.errors",
    "CheckpointError": "kandinsky5.errors",
    "ImageRequest": "kandinsky5.request",
    "Kandinsky5I2IPipeline": "kandinsky5.pipelines",
    "Kandinsky5T2IPipeline": "kandinsky5.pipelines",
    "Kandinsky5Transformer3DModel": "kandinsky5.model.transformer",
    "KandinskyImagePipelineOutput": "kandinsky5.pipelines",
    "RequestError": "kandinsky5.errors",
}

__all__ = [
    "CapacityError",
    "CheckpointError",
    "ImageRequest",
    "Kandinsky5I2IPipeline",
    "Kandinsky5T2IPipeline",
    "Kandinsky5Transformer3DModel",
    "KandinskyImagePipelineOutput",
    "RequestError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kandinsky5' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
