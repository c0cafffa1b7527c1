"""The checks of a checkpoint's folder, in their order, from the cheapest to the dearest.

In: a folder in the published layout, and its row of the table if it has one. Out: a finding a check. Refuses to know:
how two networks are compared, and how findings are shown.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from kandinsky5.checkpoint.document import read_object
from kandinsky5.checkpoint.finite import find_non_finite, is_finite
from kandinsky5.checkpoint.packing import PLAIN, stored_format
from kandinsky5.checkpoint.weights import Library, compare, compare_packed, read_weights
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.hub import missing_files
from kandinsky5.hub.need import PARTS
from kandinsky5.loading import load_pipeline
from kandinsky5.out_of_memory import is_out_of_memory
from kandinsky5.pipelines.folder import check_folder, empty_network, load_tokenizer
from kandinsky5.placement import resolve_device, resolve_dtype
from kandinsky5.prompts import TEMPLATES, Task, crop
from kandinsky5.variants import Variant
from kandinsky5.verification.agreement import MEANINGLESS, dtype_of, has_peer, measure, velocity

if TYPE_CHECKING:
    from kandinsky5.pipelines import Kandinsky5T2IPipeline

PUBLISHED_NETWORK: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "in_visual_dim": 16,
        "out_visual_dim": 16,
        "in_text_dim": 3584,
        "in_text_dim2": 768,
        "time_dim": 512,
        "patch_size": [1, 2, 2],
        "model_dim": 2560,
        "ff_dim": 10240,
        "num_text_blocks": 2,
        "num_visual_blocks": 50,
        "axes_dims": [32, 48, 48],
    }
)
"""Sizes of the four published networks; `visual_cond` is true for editing (authors' repository, 2025-11-28)."""

QWEN_VOCABULARY: Final = 151_643
"""Byte pairs of Qwen2.5's tokenizer, which the templates' token counts were taken with."""

QWEN_PREFIX_TOKENS: Final[Mapping[Task, int]] = MappingProxyType({"text-to-image": 41, "editing": 52})

PICTURE_SIDE: Final = 256
"""Pixels of the picture: small, so that a CPU has it in seconds."""

Outcome = Literal["ok", "failed", "no room", "skipped"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found. `figure` is the measure, or the reason."""

    check: str
    outcome: Outcome
    figure: str


class _Skipped(Exception):  # noqa: N818 - an ending, not an error
    """A check that does not apply; its text says why."""


@dataclass(kw_only=True)
class _Subject:
    """What is being checked, and tokenizer and pipeline once they are loaded."""

    folder: Path
    variant: Variant | None
    device: str
    dtype: str
    tokenizer: Any = None
    pipeline: "Kandinsky5T2IPipeline | None" = field(default=None)

    @property
    def is_published(self) -> bool:
        return self.variant is not None and self.variant.hub_id is not None

    @property
    def config(self) -> dict[str, Any]:
        """The network's config, read again by each check that asks."""
        return read_object(self.folder / "transformer" / "config.json")

    def loaded(self) -> "Kandinsky5T2IPipeline":
        if self.pipeline is None:
            raise _Skipped("it could not be loaded")
        return self.pipeline


def verify(
    folder: Path,
    variant: Variant | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    files_only: bool = False,
    on_check: Callable[[str], None] = lambda check: None,
) -> Iterator[Finding]:
    """Check a folder, one finding at a time, from the cheapest check to the dearest.

    Args:
        folder: in the published layout.
        variant: its row; a published one is held to the published sizes.
        device, dtype: where and in which dtype it is run, as `load_pipeline` takes them.
        files_only: load nothing; the checks that run the model are skipped.
        on_check: told the name of each check before it starts.

    A check whose outcome is "no room" could not be made on this machine; it says nothing of the checkpoint.

    Raises:
        RequestError: a device or dtype that does not exist.
    """
    if not files_only:
        resolve_dtype(dtype, resolve_device(device))
    subject = _Subject(folder=folder, variant=variant, device=device, dtype=dtype)
    failed: list[Finding] = []
    for check, look, runs_model in CHECKS:
        on_check(check)
        if runs_model and files_only:
            reason = "only files are looked at"
        elif failed and (runs_model or failed[0].check == "files"):
            reason = f"{failed[0].check}: {failed[0].outcome}"
        else:
            reason = ""
        finding = _look(check, look, subject, reason)
        if finding.outcome in ("failed", "no room"):
            failed.append(finding)
        yield finding


def _look(check: str, look: Callable[[_Subject], str], subject: _Subject, reason: str) -> Finding:
    if reason:
        return Finding(check=check, outcome="skipped", figure=reason)
    try:
        return Finding(check=check, outcome="ok", figure=look(subject))
    except _Skipped as skipped:
        return Finding(check=check, outcome="skipped", figure=str(skipped))
    except Exception as error:  # whatever a library makes of files that are not what they seem
        no_room = isinstance(error, CapacityError) or is_out_of_memory(error)
        outcome: Outcome = "no room" if no_room else "failed"
        ours = isinstance(error, CheckpointError | CapacityError | RequestError)
        figure = str(error) if ours else f"{type(error).__name__}: {error}"
    return Finding(check=check, outcome=outcome, figure=" ".join(figure.split())[:500])


# -- Files --------------------------------------------------------------------------------------------------------


def _files(subject: _Subject) -> str:
    missing = missing_files(subject.folder)
    if missing:
        raise CheckpointError(f"{subject.folder} lacks {', '.join(missing[:3])}.")
    files = [file for file in subject.folder.rglob("*") if file.is_file()]
    return f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e9:.2f} GB"


def _network_config(subject: _Subject) -> str:
    config = subject.config
    sizes = f"{config.get('num_visual_blocks')} blocks of width {config.get('model_dim')}"
    if subject.variant is None or not subject.is_published:
        raise _Skipped(f"{sizes}; not one of the published checkpoints")
    expected = {**PUBLISHED_NETWORK, "visual_cond": subject.variant.task == "editing"}
    for name, value in expected.items():
        found = config.get(name, False if name == "visual_cond" else None)
        if found != value:
            raise CheckpointError(
                f"{name} of the network is {found}; {subject.variant.name} was published with {value}."
            )
    return f"{sizes}, as published"


def _network_tensors(subject: _Subject) -> str:
    network = empty_network(subject.folder / "transformer")
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    stored = read_weights(subject.folder / "transformer", "diffusers")
    form = stored_format(subject.config)
    if form == PLAIN:
        compare(stored, expected, subject.folder / "transformer")
    else:
        compare_packed(stored, expected, subject.folder / "transformer", form)
    parameters = sum(math.prod(shape) for shape in expected.values())
    packed = "" if form == PLAIN else f", packed ({form})"
    return f"{len(stored)} tensors, {parameters / 1e6:.1f} M parameters, as the config says{packed}"


def _other_components(subject: _Subject) -> str:
    checked = check_folder(subject.folder, brought=("transformer",))
    subject.tokenizer = checked.light.get("tokenizer")
    return "tensors of autoencoder and encoders as their configs say; tokenizers and scheduler load"


def _dtypes(subject: _Subject) -> str:
    described = []
    for part in PARTS:
        if part.weights is None:
            continue
        library: Library = "diffusers" if part.shards_first else "transformers"
        stored = read_weights(subject.folder / part.folder, library)
        counts = Counter(tensor.dtype for tensor in stored.values())
        described.append(f"{part.folder} " + " + ".join(f"{n} {dtype}" for dtype, n in counts.most_common()))
    return "; ".join(described)


def _template(subject: _Subject) -> str:
    loaded = subject.tokenizer or load_tokenizer(subject.folder)
    tokenizer = getattr(loaded, "tokenizer", loaded)  # of a processor, where that can be built
    counts = {
        task: len(tokenizer(TEMPLATES[task, "release"].prefix)["input_ids"]) for task in QWEN_PREFIX_TOKENS
    }
    told = ", ".join(f"{task} {count} (cut {crop(count)})" for task, count in counts.items())
    if counts == QWEN_PREFIX_TOKENS:
        return told
    if subject.is_published or tokenizer.vocab_size == QWEN_VOCABULARY:
        raise CheckpointError(f"Tokens of the templates' prefixes: {told}; Qwen's tokenizer gives 41 and 52.")
    return f"{told}; a tokenizer of its own, so exactly its prefixes are cut"


def _finite(subject: _Subject) -> str:
    started = time.perf_counter()
    found = find_non_finite(subject.folder)
    if found:
        file, name = found[0]
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise CheckpointError(f"Tensor {name!r}{more} in {file} has NaN or infinity.")
    return f"every tensor of every safetensors file, {time.perf_counter() - started:.1f} s"


# -- The model, run -------------------------------------------------------------------------------------------------


def _loading(subject: _Subject) -> str:
    started = time.perf_counter()
    subject.pipeline = load_pipeline(str(subject.folder), device=subject.device, dtype=subject.dtype)
    subject.pipeline.set_progress_bar_config(disable=True)
    network = subject.pipeline.transformer
    dtype = str(dtype_of(network)).removeprefix("torch.")
    return f"{time.perf_counter() - started:.1f} s, {network.device}, {dtype}"


def _forward(subject: _Subject) -> str:
    """The velocity of random latents, text and time, beside that of diffusers' class with the same tensors."""
    network = subject.loaded().transformer
    form = stored_format(subject.config)
    if form != PLAIN:
        velocity(network)
        raise _Skipped(f"finite; packed ({form}), and diffusers' class would have to unpack it")
    if not has_peer():
        velocity(network)
        raise _Skipped("finite; this diffusers has no class to compare with")
    found = measure(network)
    dtype = str(dtype_of(network)).removeprefix("torch.")
    told = f"relative L2 distance to diffusers in float32 {found.ours:.1e}, of diffusers in {dtype} {found.theirs:.1e}"
    if not found.theirs <= MEANINGLESS:
        raise _Skipped(f"{told}: rounding hides what the networks compute; try --precision fp32")
    if not found.ours <= found.limit:
        raise CheckpointError(f"{told}; {found.limit:.2g} is allowed.")
    return f"{told} (at most {found.limit:.1e})"


def _picture(subject: _Subject) -> str:
    pipeline = subject.loaded()
    started = time.perf_counter()
    width, height = (min(side, PICTURE_SIDE) for side in pipeline.default_size)
    output: Any = pipeline(
        prompt="a red circle",
        width=width,
        height=height,
        num_inference_steps=2,
        generator=torch.Generator("cpu").manual_seed(0),
        output_type="pt",
    )
    pixels = output.images.float()
    spread = float(pixels.std())
    if not is_finite(pixels) or spread == 0:
        raise CheckpointError(f"The picture is not one: standard deviation {spread}.")
    seconds = time.perf_counter() - started
    return f"{width}x{height}, 2 steps, {seconds:.1f} s, standard deviation {spread:.2f}"


CHECKS: Final[tuple[tuple[str, Callable[[_Subject], str], bool], ...]] = (
    ("files", _files, False),
    ("network config", _network_config, False),
    ("network tensors", _network_tensors, False),
    ("other components", _other_components, False),
    ("stored dtypes", _dtypes, False),
    ("template tokens", _template, False),
    ("finite values", _finite, False),
    ("loading", _loading, True),
    ("forward pass", _forward, True),
    ("picture", _picture, True),
)
"""Name, check, and whether it runs the model."""
