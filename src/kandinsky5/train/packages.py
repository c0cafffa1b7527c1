"""What a run needs beyond the core, looked for before anything is loaded.

In: settings. Out: nothing, or a RequestError that names the package, the setting that wants it and how to get it.
"""

from collections.abc import Iterator
from importlib.util import find_spec

from kandinsky5.errors import RequestError
from kandinsky5.train.settings import TrainingSettings


def check_packages(settings: TrainingSettings) -> None:
    """Raise RequestError where a package is missing that these settings need."""
    for reason, package, source in _needed(settings):
        if find_spec(package) is None:
            raise RequestError(f"{reason} needs the package {package}: pip install {source}.")


def _needed(settings: TrainingSettings) -> Iterator[tuple[str, str, str]]:
    """(setting, package, what to install) of everything wanted."""
    train, quantize = "'kandinsky5[train]'", "'kandinsky5[quantize]'"
    if settings.tuning.kind != "full":
        yield f"tuning.kind = {settings.tuning.kind!r}", "peft", train
    packer = {"int8": "torchao", "fp8": "torchao", "nf4": "bitsandbytes"}.get(settings.model.base)
    if packer:
        yield f"model.base = {settings.model.base!r}", packer, quantize
    optimisers = {"adamw8bit": "torchao", "prodigy": "prodigyopt", "schedule-free": "schedulefree"}
    if settings.optimiser.name in optimisers:
        yield f"optimiser.name = {settings.optimiser.name!r}", optimisers[settings.optimiser.name], train
    for source in settings.data.stored:
        if source.kind != "folder":
            yield f"data.sources.kind = {source.kind!r}", source.kind, f"'kandinsky5[{source.kind}]'"
    if settings.watch.tensorboard:
        yield "watch.tensorboard = true", "tensorboard", "tensorboard"
    if settings.watch.wandb:
        yield f"watch.wandb = {settings.watch.wandb!r}", "wandb", "wandb"
