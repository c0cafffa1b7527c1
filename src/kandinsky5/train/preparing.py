"""A model and its data before the first step: loaded, encoded, and put where they learn.

In: settings. Out: pipelines whose network has learning parameters, and rows whose tensors are in the cache. It refuses
to know steps and files of results.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import distributed, nn

from kandinsky5.errors import RequestError
from kandinsky5.loading import load_pipeline
from kandinsky5.model.blocks import Modulation
from kandinsky5.model.kernels import stretches_for
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.placement import free_memory, resolve_device
from kandinsky5.prompts import Task
from kandinsky5.train.data.cache import TensorCache, key_of
from kandinsky5.train.data.encoding import Encoder, Learnable, check_flaws, held_back
from kandinsky5.train.data.examples import Example, Flaw
from kandinsky5.train.data.remote import examples_of
from kandinsky5.train.data.sizes import sizes_of
from kandinsky5.train.muon import hidden_matrices
from kandinsky5.train.replicas import Replicas
from kandinsky5.train.settings import TrainingSettings
from kandinsky5.train.tuning.holders import ReplicatedWeights, ShardedWeights, Weights
from kandinsky5.train.tuning.learning import learning_parameters, pack_base
from kandinsky5.train.tuning.passes import recomputed
from kandinsky5.train.tuning.sharding import make_mesh, shard

FLAWS_FILE: Final = "left-out.jsonl"

TOLD_EVERY: Final = 30.0
"""Seconds of encoding between remarks."""

ENCODING_ROOM: Final = 1.15
"""Memory for encoding, in that of the encoders' weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Model:
    """What is trained, as pipelines that share its parts, and where and in which dtype its blocks run."""

    drawing: Kandinsky5T2IPipeline
    editing: Kandinsky5I2IPipeline | None
    device: torch.device
    dtype: torch.dtype

    @property
    def network(self) -> Any:
        """The network of both pipelines."""
        return self.drawing.transformer


@dataclass(frozen=True, kw_only=True, eq=False)
class Data:
    """Rows to learn from, rows held back, keys of the prompts to be watched, and where all of that is kept."""

    rows: Sequence[Learnable]
    held_back: Sequence[Learnable]
    prompts: Sequence[str]
    flaws: Sequence[Flaw]
    cache: TensorCache

    def digest(self) -> str:
        """What tells these rows from others: their pictures, texts and sizes, in order."""
        return key_of(rows=[[row.picture, row.texts, row.source, row.share] for row in self.rows])


def load_model(settings: TrainingSettings, say: Callable[[str], None]) -> Model:
    """The pipelines, on the CPU: parts go to the device when they are needed.

    Raises:
        RequestError, CheckpointError, CapacityError: as `loading.load_pipeline`, and for a network that is packed.
    """
    device, dtype = place_of(settings)
    task: Task = "editing" if settings.model.task == "editing" else "text-to-image"
    say(f"loading {settings.model.name}")
    loaded = load_pipeline(
        settings.model.name,
        task=task,
        device="cpu",
        dtype="fp32" if dtype is torch.float32 else "bf16",
    )
    editing = loaded if isinstance(loaded, Kandinsky5I2IPipeline) else None
    drawing = loaded if editing is None else Kandinsky5T2IPipeline.from_pipe(editing)
    assert isinstance(drawing, Kandinsky5T2IPipeline)
    if getattr(drawing.transformer, "hf_quantizer", None) is not None:
        raise RequestError(
            f"The network of model.name = {settings.model.name!r} is packed already. Train on the model that it "
            "was made from; model.base packs that for training, and an adapter of it fits both."
        )
    for pipeline in (loaded, drawing):
        pipeline.set_progress_bar_config(disable=True)
    for name in ("vae", "text_encoder", "text_encoder_2", "transformer"):
        getattr(drawing, name).requires_grad_(False)
    return Model(drawing=drawing, editing=editing, device=device, dtype=dtype)


def place_of(settings: TrainingSettings) -> tuple[torch.device, torch.dtype]:
    """Where a run computes, this process's own of several devices, and in which dtype."""
    device = resolve_device(settings.model.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    return device, torch.float32 if settings.model.base == "fp32" else torch.bfloat16


def prepare_data(
    model: Model, settings: TrainingSettings, base: Path, replicas: Replicas, say: Callable[[str], None]
) -> Data:
    """Encode what is not in the cache yet, each process its share of it.

    Raises:
        RequestError: sources that are missing, or too much of them unusable.
        CheckpointError: the cache cannot be written.
    """
    output = base / settings.output
    cache = TensorCache(base / settings.data.cache if settings.data.cache else output / "cache")
    sizes = sizes_of(settings.data.sizes, model.drawing.resolutions)
    encoders = (model.drawing.vae, model.drawing.text_encoder, model.drawing.text_encoder_2)
    # Without the network, which stays where it is: a pipeline runs where its first part is.
    drawing = Kandinsky5T2IPipeline.from_pipe(model.drawing, transformer=None)
    editing = model.editing and Kandinsky5I2IPipeline.from_pipe(model.editing, transformer=None)
    encoder = Encoder(drawing, editing, settings.data, sizes, cache)
    place = _encoding_place(encoders, model.device, say)
    for part in encoders:
        part.to(place)
    try:
        mine = _encode_share(encoder, _all_examples(settings, base), replicas, say)
        prompts = [encoder.text(text) for text in (*settings.watch.prompts, "")]
    finally:
        for part in encoders:
            part.to("cpu")
    found = [one for _, one in sorted(_from_all(mine, replicas), key=lambda pair: pair[0])]
    flaws = [one for one in found if isinstance(one, Flaw)]
    learnables = [one for one in found if isinstance(one, Learnable)]
    if replicas.leads:
        _list_flaws(output / FLAWS_FILE, flaws)
    check_flaws(len(learnables), flaws, settings.data.bad_limit)
    if flaws:
        say(f"{len(flaws)} of {len(found)} files left out, listed in {output / FLAWS_FILE}")
    rows, back = held_back(learnables, settings.data.validation_share)
    if not rows:
        raise RequestError("data.validation_share holds every picture back; there are too few of them.")
    if not any(row.share for row in rows):
        raise RequestError("data.sources: what is left to learn from has weight = 0.")
    if settings.data.validation_share and not back:
        say(f"data.validation_share = {settings.data.validation_share:g} holds none back: too few pictures")
    say(f"{len(rows)} pictures to learn from" + (f", {len(back)} held back" if back else ""))
    return Data(rows=rows, held_back=back, prompts=prompts, flaws=flaws, cache=cache)


def prepare_network(model: Model, settings: TrainingSettings, replicas: Replicas) -> Weights:
    """Give the network its learning parameters, on the device, and say where their float32 masters are.

    Raises:
        RequestError: targets, a base or a number of processes that cannot be.
    """
    network, run = model.network, settings.run
    if not run.compile:  # which fuses more
        network.use_stretches(stretches_for(model.device))
    weights: Weights
    if settings.tuning.kind == "full":
        network.float()
        hidden = hidden_matrices(network, but_not=(Modulation,)) if settings.optimiser.name == "muon" else ()
        if run.compile:
            network.compile_repeated_blocks()  # before `shard`, which gives blocks classes of other names
        shard(network, make_mesh(model.device, run.replicas), model.dtype)
        learning = learning_parameters(network, settings.tuning, model.dtype, run.seed)
        weights = ShardedWeights(network, learning, hidden)
    else:
        pack_base(network, settings.model.base, model.device)
        network.to(model.device)
        learning = learning_parameters(network, settings.tuning, model.dtype, run.seed)
        weights = ReplicatedWeights(learning, replicas)
        if run.compile:
            network.compile_repeated_blocks()
    network.train()
    if run.checkpointing:
        network.enable_gradient_checkpointing(None if settings.tuning.dropout else recomputed)
    return weights


def count_parameters(network: nn.Module) -> tuple[int, int]:
    """(learning, all) parameters."""
    sizes = [(_values(parameter), parameter.requires_grad) for parameter in network.parameters()]
    return sum(n for n, learns in sizes if learns), sum(n for n, _ in sizes)


def _values(parameter: Any) -> int:
    """How many numbers it stands for; bitsandbytes keeps two in a byte."""
    state = getattr(parameter, "quant_state", None)
    return parameter.numel() if state is None else state.shape.numel()


def _encoding_place(
    parts: Sequence[nn.Module], device: torch.device, say: Callable[[str], None]
) -> torch.device:
    """The device if these parts fit there, else the CPU."""
    needed = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
    free = free_memory(device)
    if device.type == "cpu" or free is None or needed * ENCODING_ROOM <= free:
        return device
    say(
        f"the text encoders need {needed / 1e9:.1f} GB and {device} has {free / 1e9:.1f}: encoding on the CPU"
    )
    return torch.device("cpu")


def _encode_share(
    encoder: Encoder, examples: Iterable[Example | Flaw], replicas: Replicas, say: Callable[[str], None]
) -> list[tuple[int, Learnable | Flaw]]:
    """This process's share of the examples, encoded, by their numbers; now and then is told how far it is."""
    mine: list[tuple[int, Learnable | Flaw]] = []
    told = time.monotonic()
    for number, example in enumerate(examples):
        if number % replicas.count == replicas.rank:
            mine.append((number, encoder.encode(example) if isinstance(example, Example) else example))
        if time.monotonic() - told > TOLD_EVERY:
            say(f"{number + 1} pictures encoded so far")
            told = time.monotonic()
    return mine


def _all_examples(settings: TrainingSettings, base: Path) -> Any:
    for source in settings.data.stored:
        yield from examples_of(source, base)


def _from_all(mine: list[Any], replicas: Replicas) -> list[Any]:
    """What all processes have, together."""
    if replicas.count == 1:
        return mine
    gathered: list[Any] = [None] * replicas.count
    distributed.all_gather_object(gathered, mine)
    return [one for part in gathered for one in part]


def _list_flaws(path: Path, flaws: Sequence[Flaw]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"name": flaw.name, "reason": flaw.reason}) for flaw in flaws]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
