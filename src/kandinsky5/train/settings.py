"""What a training run is asked to do: one tree of frozen values, each with the sentence that explains it.

In: values by name. Out: settings that make sense together, or a RequestError. How they stand in a TOML file is
`settings_file`'s business; nothing here is opened or loaded.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from kandinsky5.errors import RequestError
from kandinsky5.geometry import FIT_KINDS, check_size, parse_size
from kandinsky5.train.bounds import one_of, positive, within
from kandinsky5.train.optimisers import OPTIMISERS

STORED: Final = ("folder", "datasets", "webdataset")
DRAWN: Final = "drawn"
SOURCE_KINDS: Final = (*STORED, DRAWN)
ARCHITECTURES: Final = ("embedded", "toy")
COMPILED_PARTS: Final = ("text", "autoencoder", "renderer")
TUNING_KINDS: Final = ("lora", "dora", "lokr", "full")
PACKED_BASES: Final = ("fp8", "int8", "nf4")
BASES: Final = ("bf16", "fp32", *PACKED_BASES)
TIME_DENSITIES: Final = {"logit-normal": 0.0, "mixed": 0.5, "uniform": 1.0}
"""Names of timestep densities, and the share of uniform times in each; the others are logit-normal."""
FILES_OF_SOURCES: Final = {
    *("path", "kind", "split", "picture", "text", "source", "begin_from", "reading", "workers", "compiled")
}
"""Settings of sources that say where files are, or who reads them."""
TASKS: Final = ("text-to-image", "editing")
NATIVE: Final = "native"


def setting(default: Any, says: str) -> Any:
    """A field with the sentence that `kandinsky5 train init` writes above it."""
    return field(default=default, metadata={"says": says})


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
        one_of("model.task", self.task, TASKS)
        one_of("model.base", self.base, BASES)


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """Where pictures and words come from. Several tables [[data.sources]] are mixed."""

    KINDS: ClassVar = STORED

    path: str = setting("pictures", "A folder, a dataset's name, or shards such as shard-{0000..0009}.tar.")
    kind: str = setting(
        "folder",
        "folder: pictures with captions in .txt files of their names, a caption a line, or in a metadata.jsonl. "
        "datasets: of Hugging Face. webdataset: tar files. drawn: the embedded model's world, with settings of its own "
        "(docs/demo.md).",
    )
    repeats: int = setting(1, "How often each picture is seen in an epoch.")
    weight: float = setting(1.0, "Times that; 0.5 shows each every other epoch.")
    split: str = setting("train", "Of a dataset.")
    picture: str = setting("image", "Column of a dataset that holds the picture (an edit's result).")
    text: str = setting("text", "Column of a dataset that holds the caption, captions, or instruction.")
    source: str = setting("", "Column of a dataset that holds the picture an edit starts from.")

    def __post_init__(self) -> None:
        one_of("data.sources.kind", self.kind, SOURCE_KINDS)
        within("data.sources.repeats", self.repeats, 1)
        within("data.sources.weight", self.weight, 0)


@dataclass(frozen=True, kw_only=True)
class DrawnSettings:
    """Endless scenes of the embedded model's world, drawn and encoded inside the step; its text encoders learn along.

    `model.name` brings the tokenizers and the autoencoder.
    """

    KINDS: ClassVar = (DRAWN,)

    kind: str = setting(DRAWN, "Scenes of the embedded model's world.")
    architecture: str = setting("embedded", "What learns: embedded, or toy for rehearsals.")
    begin_from: str = setting("", "Model whose weights the run begins from; empty: random ones.")
    reading: str = setting("", "File of text encoders that have learnt to read; empty: none.")
    draws: int = setting(4, "Rows that each scene gives, with times and noise of their own.")
    place_weight: float = setting(0.1, "Of the loss that asks the network's states where a token stands.")
    map_weight: float = setting(0.1, "Of the loss that asks them what stands there.")
    workers: int = setting(-1, "Processes that make batches; -1: the cores that are left beside a GPU.")
    compiled: tuple[str, ...] = setting(
        (), "What is compiled beside the network (run.compile): text, autoencoder, renderer."
    )

    def __post_init__(self) -> None:
        one_of("data.sources.architecture", self.architecture, ARCHITECTURES)
        within("data.sources.draws", self.draws, 1)
        within("data.sources.place_weight", self.place_weight, 0)
        within("data.sources.map_weight", self.map_weight, 0)
        within("data.sources.workers", self.workers, -1)
        for part in self.compiled:
            one_of("data.sources.compiled", part, COMPILED_PARTS)


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """What is learnt from."""

    sources: tuple[SourceSettings | DrawnSettings, ...] = (SourceSettings(),)
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
        one_of("data.fit", self.fit, FIT_KINDS)
        within("data.bad_limit", self.bad_limit, 0, 1)
        within("data.validation_share", self.validation_share, 0, 0.5)
        within("data.max_tokens", self.max_tokens, 1, 1024)
        within("data.max_edit_tokens", self.max_edit_tokens, 1, 1024)
        if not self.sources:
            raise RequestError("data.sources is empty; name a folder of pictures.")
        if self.drawn is None and not any(source.weight for source in self.stored):
            raise RequestError("data.sources.weight = 0 everywhere leaves nothing to learn from.")
        if self.drawn is not None and len(self.sources) > 1:
            raise RequestError(
                f"A source of kind {DRAWN!r} is never mixed with others: leave one of both out."
            )

    @property
    def drawn(self) -> DrawnSettings | None:
        """The world that is drawn, where a run learns from one."""
        return next((source for source in self.sources if isinstance(source, DrawnSettings)), None)

    @property
    def stored(self) -> tuple[SourceSettings, ...]:
        """Sources of pictures that exist."""
        return tuple(source for source in self.sources if isinstance(source, SourceSettings))


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
        one_of("objective.times", self.times, TIME_DENSITIES)
        within("objective.shift", self.shift, 0.01, 100)
        within("objective.unconditional", self.unconditional, 0, 1)
        within("objective.editing_share", self.editing_share, 0, 1)


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
    dropout: float = setting(0.0, "Of the inputs of a LoRA or DoRA.")

    def __post_init__(self) -> None:
        one_of("tuning.kind", self.kind, TUNING_KINDS)
        within("tuning.rank", self.rank, 1, 4096)
        positive("tuning.alpha", self.alpha)
        within("tuning.dropout", self.dropout, 0, 0.9)
        if not self.targets:
            raise RequestError("tuning.targets is empty; an adapter needs layers to stand at.")
        if self.kind == "lokr" and self.dropout:
            raise RequestError(
                'tuning.dropout: a LoKr has no inputs of its own to drop; leave it out, or use "lora" or "dora".'
            )


@dataclass(frozen=True, kw_only=True)
class OptimiserSettings:
    """How it learns."""

    name: str = setting(
        "adamw",
        "adamw, adamw8bit (torchao), prodigy (prodigyopt), schedule-free (schedulefree), or muon: matrices inside "
        "blocks by Muon, all else by AdamW at the same rate; for full tuning by one process.",
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
        one_of("optimiser.name", self.name, OPTIMISERS)
        positive("optimiser.rate", self.rate)
        for beta in self.betas:
            within("optimiser.betas", beta, 0, 0.999999)
        within("optimiser.weight_decay", self.weight_decay, 0)
        within("optimiser.warmup", self.warmup, 0)
        within("optimiser.decay_share", self.decay_share, 0, 1)
        positive("optimiser.clip", self.clip)


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
    graphs: bool = setting(
        True,
        "Replay an adapter's passes as CUDA graphs, where there is memory and neither dropout nor compile.",
    )
    save_every: int = setting(250, "Steps between checkpoints, of which a kill loses at most so many.")
    keep: int = setting(2, "Checkpoints kept.")
    replicas: int = setting(1, "Full tuning with torchrun: groups that each hold all weights (HSDP).")
    max_seconds: float = setting(
        0.0, "Pause so long after the first step began, with a checkpoint; 0: never."
    )
    stop_at: int = setting(0, "Pause after this step, likewise; 0: never.")

    def __post_init__(self) -> None:
        within("run.seed", self.seed, 0, 2**32 - 1)
        within("run.max_seconds", self.max_seconds, 0)
        within("run.stop_at", self.stop_at, 0)
        for name in ("steps", "batch", "micro_batch", "save_every", "keep", "replicas"):
            within(f"run.{name}", getattr(self, name), 1)
        within("run.ema", self.ema, 0, 0.999999)
        if self.batch % self.micro_batch:
            raise RequestError(
                f"run.batch = {self.batch} is no multiple of run.micro_batch = {self.micro_batch}."
            )

    def recipe(self) -> dict[str, Any]:
        """What of it decides the result."""
        names = ("steps", "batch", "micro_batch", "seed", "ema")
        return {name: getattr(self, name) for name in names}


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
            within(f"watch.{name}", getattr(self, name), 1)
        within("watch.guidance", self.guidance, 0)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a run goes, whatever it learns.

    `output` is the folder of everything it writes. `recipe` is what decides the result, JSON-able values by part and
    name: a run is not continued with another.
    """

    output: Path
    optimiser: OptimiserSettings
    run: RunSettings
    recipe: Mapping[str, Mapping[str, Any]]
    watch: WatchSettings = WatchSettings()


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
        if self.tuning.kind != "full" and self.run.replicas > 1:
            raise RequestError(
                f"run.replicas = {self.run.replicas}: every process holds an adapter whole; leave it out, or set "
                'tuning.kind = "full".'
            )
        if self.tuning.kind == "lokr" and self.model.base == "nf4":
            raise RequestError(
                'tuning.kind = "lokr" cannot stand beside model.base = "nf4": use "int8" or "fp8".'
            )
        if self.tuning.kind != "full" and self.optimiser.name == "muon":
            raise RequestError(
                'optimiser.name = "muon" steps the matrices inside blocks, which an adapter leaves as they are: set '
                'tuning.kind = "full", or use "adamw".'
            )
        if self.data.drawn is not None:
            self._check_drawn()

    def _check_drawn(self) -> None:
        """Raise RequestError for settings that mean nothing where scenes are drawn inside the step."""
        if self.tuning.kind != "full":
            raise RequestError(f'A source of kind {DRAWN!r} teaches every weight: set tuning.kind = "full".')
        meant = (
            ("data", self.data, ("sources",)),
            ("tuning", self.tuning, ("kind",)),
            ("watch", self.watch, ("log_every", "tensorboard", "wandb")),
        )
        idle = [
            f"{name}.{field.name}"
            for name, part, used in meant
            for field in dataclasses.fields(part)
            if field.name not in used and getattr(part, field.name) != field.default
        ]
        idle += ["run.replicas"] if self.run.replicas > 1 else []
        if idle:
            raise RequestError(f"{', '.join(idle)}: of no use to a source of kind {DRAWN!r}; leave it out.")

    def plan(self, base: Path) -> Plan:
        """How the run goes; `base` is the folder that paths count from."""
        return Plan(
            output=base / self.output,
            optimiser=self.optimiser,
            run=self.run,
            watch=self.watch,
            recipe=self.recipe(),
        )

    def recipe(self) -> dict[str, Any]:
        """What decides the result, as JSON-able values: all but the output folder, the cache and what is watched.

        Of a source's files the lesson's digest tells, wherever they lie.
        """
        tree = dataclasses.asdict(self)
        del tree["output"], tree["watch"], tree["model"]["device"]
        del tree["data"]["cache"], tree["data"]["bad_limit"]
        tree["run"] = self.run.recipe()
        if self.data.drawn is not None:
            del tree["model"]["name"]
        for source in tree["data"]["sources"]:
            for name in source.keys() & FILES_OF_SOURCES:
                del source[name]
        return tree
