"""A checked command that draws, and carrying it out: what `generate` and `edit` share.

In: requests, options, and a function that opens an engine. Out: files, one line about each on standard output; the bar
and remarks go to standard error. Everything that can be refused is refused before the model is read. Refuses to know:
how a picture is drawn or encoded.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from kandinsky5.budget import Budget
from kandinsky5.cli.adapters import ChosenLora, check_loras
from kandinsky5.cli.hints import hints_for
from kandinsky5.cli.picturefile import write_picture
from kandinsky5.cli.printable import printable
from kandinsky5.cli.progress import drawing, waiting
from kandinsky5.cli.pull import quieten_client
from kandinsky5.cli.targets import choose_format, comparison_path, plan_paths
from kandinsky5.errors import RequestError
from kandinsky5.geometry import parse_size
from kandinsky5.prompts import Task
from kandinsky5.provenance import PictureFormat, Provenance, check_request_fits
from kandinsky5.request import ImageRequest
from kandinsky5.variants import EMBEDDED, VARIANTS, resolve_model

if TYPE_CHECKING:
    from PIL import Image

    from kandinsky5.engine import Engine
    from kandinsky5.generated import GeneratedImage

OpenEngine = Callable[..., "Engine"]
"""(model, device, dtype, task, budget) -> an engine that draws; as `opening.open_engine`."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """The picture that all requests of a job edit, and what to call it."""

    name: str
    picture: "Image.Image"


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked command: what to draw with which model, and the path of each picture. `source` is None for drawing."""

    requests: Sequence[ImageRequest]
    paths: Sequence[Sequence[Path]]
    model: str
    device: str
    dtype: str
    budget: Budget | None
    mode: str
    format: PictureFormat
    quality: int | None
    overwrite: bool
    quiet: bool
    as_json: bool
    loras: Sequence[ChosenLora] = ()
    expand: bool = False
    source: Source | None = None
    compare: bool = False

    @property
    def task(self) -> Task:
        """What the model is opened for."""
        return "text-to-image" if self.source is None else "editing"


def changes_of(size: str | None, **settings: Any) -> dict[str, Any]:
    """The request fields that options name."""
    sides = dict(zip(("width", "height"), parse_size(size), strict=True)) if size is not None else {}
    return sides | {name: value for name, value in settings.items() if value is not None}


def model_of(wanted: str | None, stored: Provenance | None) -> str:
    """The model to use. One that a picture names is only followed when it is a row of our table."""
    if wanted is not None:
        resolve_model(wanted)
        return wanted
    if stored is None:
        return EMBEDDED
    if stored.model not in [name for v in VARIANTS for name in (v.name, v.hub_id)]:
        raise RequestError(
            f"The picture was made with {stored.model!r}; say --model to use that, or another."
        )
    return stored.model


def plan(
    requests: Sequence[ImageRequest],
    output: str | None,
    picture_format: PictureFormat | None,
    *,
    quality: int | None,
    overwrite: bool,
    compare: bool = False,
    memory: str | None = None,
    mode: str = "auto",
    loras: Sequence[ChosenLora] = (),
    **rest: Any,
) -> Job:
    """The job of these requests, whose seeds are chosen; `rest` are its other fields.

    Raises RequestError for an output that cannot be written, or options that contradict each other, and CheckpointError
    for an adapter whose file is missing.
    """
    chosen = choose_format(output, picture_format)
    if quality is not None and chosen is PictureFormat.png:
        raise RequestError("--quality is for jpg and webp; a png is always exact.")
    for request in requests:
        check_request_fits(request, chosen)
    check_loras(loras, mode)
    return Job(
        requests=requests,
        paths=plan_paths(requests, output, chosen, overwrite=overwrite, compare=compare),
        budget=None if memory is None else _budget(memory, requests),
        format=chosen,
        quality=quality,
        overwrite=overwrite,
        compare=compare,
        mode=mode,
        loras=loras,
        **rest,
    )


def _budget(memory: str, requests: Sequence[ImageRequest]) -> Budget:
    """The memory of `--memory`, for the largest of the requests."""
    largest = max(requests, key=lambda request: (request.width or 0) * (request.height or 0))
    count = max(request.count for request in requests)
    return Budget.of(memory, width=largest.width, height=largest.height, pictures=count)


def draw(job: Job, opener: OpenEngine) -> None:
    """Carry out a checked job: open the engine, draw each prompt, write each picture and print its line."""
    console = Console(stderr=True)
    model = resolve_model(job.model)
    if job.expand and model.name == EMBEDDED:
        raise RequestError(
            "The embedded model's text encoder only reads; --expand needs a published model, or a folder of one."
        )
    if job.quiet and model.hub_id is not None:
        quieten_client(bars=True)
    # A download shows bars of its own, with better estimates than a spinner.
    with waiting(console, f"Loading {model.name}", shown=not job.quiet and model.hub_id is None):
        engine = opener(job.model, job.device, job.dtype, job.task, job.budget, job.mode)
        for lora in job.loras:
            engine.adapters.add(lora.name, lora.source)
    source = job.source.picture if job.source is not None else None
    requests = [engine.resolve(request, source) for request in _expanded(job, engine, console)]
    if not job.quiet and model.name == EMBEDDED:
        for hint in hints_for([request.prompt for request in requests]):
            _remark(console, hint)
    steps = sum(request.steps or 0 for request in requests)
    fits: set[str] = set()
    with drawing(console, steps, len(requests), shown=not job.quiet) as bar:
        for number, (request, paths) in enumerate(zip(requests, job.paths, strict=True), start=1):
            bar.start(number, _shortened(request.prompt))
            pictures = engine.generate(request, picture=source, on_step=bar.on_step)
            for picture, path in zip(pictures, paths, strict=True):
                _write(job, picture, path)
                with bar.aside():
                    fit = _fit_remark(job, picture)
                    if fit not in fits and not job.quiet:
                        _remark(console, fit)
                    fits.add(fit)
                    typer.echo(_line(job, picture, path))


def _expanded(job: Job, engine: "Engine", console: Console) -> Sequence[ImageRequest]:
    """The job's requests; where it is asked for, with their prompts written out, which are then told."""
    if not job.expand:
        return job.requests
    picture = job.source.picture if job.source is not None else None
    with waiting(console, "Writing the prompt out", shown=not job.quiet):
        longer = [engine.expanded(request, picture) for request in job.requests]
    if not job.quiet:
        for request in longer:
            _remark(console, request.prompt)
    return longer


def _write(job: Job, picture: "GeneratedImage", path: Path) -> None:
    """The picture, and where it is asked for the comparison beside it."""
    write_picture(picture, path, job.format, quality=job.quality, overwrite=job.overwrite)
    if job.compare and job.source is not None:
        from kandinsky5.cli.comparison import beside_its_source

        compared = beside_its_source(picture, job.source.picture)
        write_picture(
            compared, comparison_path(path), job.format, quality=job.quality, overwrite=job.overwrite
        )


def _fit_remark(job: Job, picture: "GeneratedImage") -> str:
    """What the fit did to the source, empty where it only changed the scale."""
    if job.source is None or picture.fit is None or not picture.fit.changes:
        return ""
    width, height = picture.fit.size
    return (
        f"{job.source.name}: {picture.fit.changes}, for {width}x{height} (--fit cover, pad or stretch; --size source "
        "keeps its shape)"
    )


def _remark(console: Console, text: str) -> None:
    if text:
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _line(job: Job, picture: "GeneratedImage", path: Path) -> str:
    compared = str(comparison_path(path)) if job.compare else None
    if not job.as_json:
        told = [str(path), f"seed {picture.request.seed}", f"{picture.seconds:.1f} s"]
        return "\t".join(told if compared is None else [*told, compared])
    facts: dict[str, Any] = {"path": str(path), **Provenance.of(picture).to_dict()}
    if picture.fit is not None:
        facts["fit"] = {**asdict(picture.fit), "changes": picture.fit.changes}
    return json.dumps(facts if compared is None else {**facts, "comparison": compared})


def _shortened(prompt: str, width: int = 40) -> str:
    text = printable(" ".join(prompt.split()))
    return text if len(text) <= width else text[: width - 1] + "…"
