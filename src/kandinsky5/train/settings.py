"""What a training run is asked to do: one tree of frozen values, each with the sentence that explains it.

In: values by name. Out: settings that make sense together, or a RequestError. How they stand in a TOML file is
`settings_file`'s business; nothing here is opened or loaded.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, Final

from kandinsky5.errors import RequestError
from kandinsky5.geometry import FIT_KINDS, check_size, parse_size
from kandinsky5.train.optimisers import OPTIMISERS

SOURCE_KINDS: Final = ("folder", "datasets", "webdataset")
TUNING_KINDS: Final = ("lora", "dora", "lokr", "full")
PACKED_BASES: Final = ("fp8", "int8", "nf4")
BASES: Final = ("bf16", "fp32", *PACKED_BASES)
TIME_DENSITIES: Final = {"logit-normal": 0.0, "mixed": 0.5, "uniform": 1.0}
"""Names of timestep densities, and the share of uniform times in each; the others are logit-normal."""
TASKS: Final = ("text-to-image", "editing")
NATIVE: Final = "native"


def setting(default: Any, says: str) -> Any:
    """A field with the sentence that `kandinsky5 train init` writes above it."""
    return field(default=default, metadata={"says": says})


def _one_of(name: str, value: object, choices: Any) -> None:
    if value not in choices:
        raise RequestError(f"{name} = {value!r} is not one of {', '.join(choices)}.")


def _within(name: str, value: float, low: float, high: float = math.inf) -> None:
    if not low <= value <= high:
        raise RequestError(f"{name} = {value:g} must be from {low:g} to {high:g}.".replace(" to inf", " up"))


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise RequestError(f"{name} = {value:g} must be above 0.")


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The model that is trained."""

    name: str = setting("t2i-lite-pretrain", "A name of `kandinsky5 models`, a folder, or a hub id.")
    task: str = setting("text-to-image", "text-to-image or editing; editing needs an editing checkpoint.")
    base: str = setting(
        "bf16",
        "What the weights that do not learn are kept in: bf16, fp32, fp8 or int8 (torchao), nf4 (bitsandbytes). In the "
        "published network 13.3, 24, 7.9, 7.9 or 5.2 GB; packed ones learn by adapters only.",
    )
    device: str = setting("auto", "auto, cpu, cuda, cuda:1.")

    def __post_init__(self) -> None:
        _one_of("model.task", self.task, TASKS)
        _one_of("model.base", self.base, BASES)


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Where pictures and words come from. Several tables [[data.sources]] are mixed."""

    path: str = setting("pictures", "A folder, a dataset's name, or shards such as shard-{0000..0009}.tar.")
    kind: str = setting(
        "folder",
        "folder: pictures with captions in .txt files of their names, a caption a line, or in a metadata.jsonl. "
        "datasets: of Hugging Face. webdataset: tar files.",
    )
    repeats: int = setting(1, "How often each picture is seen in an epoch.")
    weight: float = setting(1.0, "Times that; 0.5 shows each every other epoch.")
    split: str = setting("train", "Of a dataset.")
    picture: str = setting("image", "Column of a dataset that holds the picture (an edit's result).")
    text: str = setting("text", "Column of a dataset that holds the caption, captions, or instruction.")
    source: str = setting("", "Column of a dataset that holds the picture an edit starts from.")

    def __post_init__(self) -> None:
        _one_of("data.sources.kind", self.kind, SOURCE_KINDS)
        _within("data.sources.repeats", self.repeats, 1)
        _within("data.sources.weight", self.weight, 0)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is learnt from."""

    sources: tuple[SourceSettings, ...] = (SourceSettings(),)
    sizes: tuple[str, ...] = setting(
        (NATIVE,),
        "native: those of the checkpoint. Or sizes such as 512x768, multiples of 16. Each picture goes to the one that "
        "is nearest in shape.",
    )
    fit: str = setting("cover", "How a picture comes to its size: cover (cut the rest off), pad or stretch.")
    upscale: bool = setting(
        False,
        "Whether pictures smaller than their size are enlarged; otherwise they are left out, and listed.",
    )
    max_tokens: int = setting(512, "Text tokens kept of a caption.")
    max_edit_tokens: int = setting(
        1024, "Tokens kept of an instruction and the picture it is about; only words are cut."
    )
    bad_limit: float = setting(0.05, "Share of files that may be unreadable before the run refuses to go on.")
    validation_share: float = setting(0.0, "Share of the pictures held back for the validation loss.")
    cache: str = setting("", "Folder of encoded pictures and captions; empty: `cache` in the output folder.")

    def __post_init__(self) -> None:
        for size in self.sizes:
            if size != NATIVE:
                check_size(*parse_size(size))
        _one_of("data.fit", self.fit, FIT_KINDS)
        _within("data.bad_limit", self.bad_limit, 0, 1)
        _within("data.validation_share", self.validation_share, 0, 0.5)
        _within("data.max_tokens", self.max_tokens, 1, 1024)
        _within("data.max_edit_tokens", self.max_edit_tokens, 1, 1024)
        if not self.sources:
            raise RequestError("data.sources is empty; name a folder of pictures.")
        if not any(source.weight for source in self.sources):
            raise RequestError("data.sources.weight = 0 everywhere leaves nothing to learn from.")


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What is asked of the network: the velocity of the straight path from the picture to noise."""

    times: str = setting(
        "logit-normal", "Density of the times: logit-normal, uniform or mixed (half of each)."
    )
    shift: float = setting(3.0, "Moves the times towards the noise, as sampling does; 1 leaves them.")
    unconditional: float = setting(0.1, "Share of rows whose words are left out, for guidance.")
    editing_share: float = setting(0.8, "Share of edits where sources hold edits and captioned pictures.")

    def __post_init__(self) -> None:
        _one_of("objective.times", self.times, TIME_DENSITIES)
        _within("objective.shift", self.shift, 0.01, 100)
        _within("objective.unconditional", self.unconditional, 0, 1)
        _within("objective.editing_share", self.editing_share, 0, 1)


@dataclass(frozen=True, kw_only=True)
class TuningSettings:
    """What learns."""

    kind: str = setting("lora", "lora, dora or lokr (adapters, by peft), or full (every weight).")
    rank: int = setting(32, "Of an adapter.")
    alpha: float = setting(32.0, "An adapter's change is multiplied by alpha / rank.")
    targets: tuple[str, ...] = setting(
        (
            *("self_attention.to_query", "self_attention.to_key", "self_attention.to_value"),
            *("self_attention.out_layer", "cross_attention.to_query", "cross_attention.to_key"),
            *("cross_attention.to_value", "cross_attention.out_layer"),
            *("feed_forward.in_layer", "feed_forward.out_layer"),
        ),
        "Layers of each block that get an adapter, by the ends of their names.",
    )
    dropout: float = setting(0.0, "Of an adapter's inputs.")

    def __post_init__(self) -> None:
        _one_of("tuning.kind", self.kind, TUNING_KINDS)
        _within("tuning.rank", self.rank, 1, 4096)
        _positive("tuning.alpha", self.alpha)
        _within("tuning.dropout", self.dropout, 0, 0.9)
        if not self.targets:
            raise RequestError("tuning.targets is empty; an adapter needs layers to stand at.")


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """How it learns."""

    name: str = setting(
        "adamw", "adamw, adamw8bit (torchao), prodigy (prodigyopt) or schedule-free (schedulefree)."
    )
    rate: float = setting(1e-4, "Learning rate after the warm-up; 1.0 for prodigy.")
    betas: tuple[float, float] = setting((0.9, 0.95), "The authors'.")
    weight_decay: float = setting(0.0, "Of matrices; vectors never decay.")
    warmup: int = setting(100, "Steps up to the full rate.")
    decay_share: float = setting(
        0.0, "Last share of the run over which the rate goes down to nearly nothing."
    )
    clip: float = setting(1.0, "Largest norm of the gradient.")

    def __post_init__(self) -> None:
        _one_of("optimiser.name", self.name, OPTIMISERS)
        _positive("optimiser.rate", self.rate)
        _within("optimiser.decay_share", self.decay_share, 0, 1)
        _positive("optimiser.clip", self.clip)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long, how much at once, and how it is carried out."""

    steps: int = setting(1000, "Updates.")
    batch: int = setting(4, "Rows of an update, over all processes.")
    micro_batch: int = setting(1, "Rows of one forward pass; the rest of a batch is accumulated.")
    seed: int = setting(0, "Of the order, the noise, the times and what is left out.")
    ema: float = setting(0.0, "Decay of the averaged weights that are published, such as 0.9999; 0: none.")
    checkpointing: bool = setting(True, "Compute activations twice instead of keeping them.")
    compile: bool = setting(False, "torch.compile each block; worth it from some hundred steps on.")
    save_every: int = setting(250, "Steps between checkpoints, of which a kill loses at most so many.")
    keep: int = setting(2, "Checkpoints kept.")
    replicas: int = setting(1, "Full tuning with torchrun: groups that each hold all weights (HSDP).")

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "micro_batch", "save_every", "keep", "replicas"):
            _within(f"run.{name}", getattr(self, name), 1)
        _within("run.ema", self.ema, 0, 0.999999)
        if self.batch % self.micro_batch:
            raise RequestError(
                f"run.batch = {self.batch} is no multiple of run.micro_batch = {self.micro_batch}."
            )


@dataclass(frozen=True, kw_only=True)
class WatchSettings:
    """What is shown while it runs. None of it changes the result."""

    log_every: int = setting(10, "Steps between lines of log.jsonl.")
    prompts: tuple[str, ...] = setting((), "Drawn before, during and after training, from the same noise.")
    pictures_every: int = setting(250, "Steps between these pictures.")
    steps: int = setting(30, "Sampling steps of these pictures.")
    guidance: float = setting(3.5, "Of these pictures.")
    validation_every: int = setting(250, "Steps between validation losses.")
    tensorboard: bool = setting(False, "Also write events for TensorBoard (package tensorboard).")
    wandb: str = setting("", "Project of Weights & Biases to write to as well (package wandb); empty: none.")
    trigger: str = setting("", "Words that call the result up, for the model card and the file.")

    def __post_init__(self) -> None:
        for name in ("log_every", "pictures_every", "steps", "validation_every"):
            _within(f"watch.{name}", getattr(self, name), 1)


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """A training run."""

    output: str = setting("training", "Folder of everything the run writes.")
    model: ModelSettings = field(default_factory=ModelSettings)
    data: DataSettings = field(default_factory=DataSettings)
    objective: ObjectiveSettings = field(default_factory=ObjectiveSettings)
    tuning: TuningSettings = field(default_factory=TuningSettings)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    run: RunSettings = field(default_factory=RunSettings)
    watch: WatchSettings = field(default_factory=WatchSettings)

    def __post_init__(self) -> None:
        if self.tuning.kind == "full" and self.model.base in PACKED_BASES:
            raise RequestError(
                f"model.base = {self.model.base!r} is packed and cannot learn: use bf16, or an adapter."
            )
        if self.tuning.kind == "lokr" and self.model.base == "nf4":
            raise RequestError(
                'tuning.kind = "lokr" cannot stand beside model.base = "nf4": use "int8" or "fp8".'
            )

    def recipe(self) -> dict[str, Any]:
        """What decides the result, as JSON-able values: all but the output folder, the cache and what is watched."""
        tree = dataclasses.asdict(self)
        for name in ("output", "watch"):
            del tree[name]
        del tree["data"]["cache"]
        for name in ("save_every", "keep", "replicas", "compile", "checkpointing"):
            del tree["run"][name]
        del tree["model"]["device"]
        return tree
