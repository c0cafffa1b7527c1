"""`kandinsky5 generate`: prompts become pictures in files.

In: the options, and a function that opens an engine. Out: files, one line about each on standard output; the bar and
remarks go to standard error. Everything that can be refused is refused before the model is read. Refuses to know: how a
picture is drawn or encoded.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console

from kandinsky5.cli import options
from kandinsky5.cli.hints import hints_for
from kandinsky5.cli.picturefile import Provenance, check_request_fits, read_provenance, write_picture
from kandinsky5.cli.progress import drawing, waiting
from kandinsky5.cli.promptlist import read_prompts
from kandinsky5.cli.targets import PictureFormat, choose_format, plan_paths
from kandinsky5.errors import RequestError
from kandinsky5.geometry import parse_size
from kandinsky5.request import ImageRequest, choose_seed
from kandinsky5.variants import EMBEDDED, VARIANTS, resolve_model

if TYPE_CHECKING:
    from kandinsky5.engine import Engine
    from kandinsky5.records import GeneratedImage

OpenEngine = Callable[[str, str, str], "Engine"]
"""(model, device, dtype) -> an engine that draws."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A checked command: what to draw with which model, and the path of each picture."""

    requests: Sequence[ImageRequest]
    paths: Sequence[Sequence[Path]]
    model: str
    device: str
    dtype: str
    format: PictureFormat
    quality: int | None
    overwrite: bool
    quiet: bool
    as_json: bool


def generate(
    context: typer.Context,
    prompt: options.Prompt = None,
    output: options.Output = None,
    model: options.Model = None,
    size: options.Size = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative: options.Negative = None,
    seed: options.Seed = None,
    n: options.Count = None,
    from_file: options.FromFile = None,
    like: options.Like = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.Precision.auto,
    picture_format: options.Format = None,
    quality: options.Quality = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Draw pictures of a prompt.

    Prints a line for each picture when it is written: path, seed and seconds, separated by tabs. A picture holds the
    request that made it: kandinsky5 show prints it, --like draws from it.
    """
    stored = read_provenance(like) if like is not None else None
    changes = _changes(size, steps=steps, guidance=guidance, negative_prompt=negative, seed=seed, count=n)
    requests = _requests(prompt, from_file, stored, changes)
    chosen_format = choose_format(output, picture_format)
    if quality is not None and chosen_format is PictureFormat.png:
        raise RequestError("--quality is for jpg and webp; a png is always exact.")
    for request in requests:
        check_request_fits(request, chosen_format)
    job = Job(
        requests=requests,
        paths=plan_paths(requests, output, chosen_format, overwrite=overwrite),
        model=_model(model, stored),
        device=device,
        dtype=dtype.value,
        format=chosen_format,
        quality=quality,
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
    )
    draw(job, context.obj)


def draw(job: Job, opener: OpenEngine) -> None:
    """Carry out a checked job: open the engine, draw each prompt, write each picture and print its line."""
    console = Console(stderr=True)
    source = resolve_model(job.model)
    # A download shows bars of its own, with better estimates than a spinner.
    with waiting(console, f"Loading {source.name}", shown=not job.quiet and source.hub_id is None):
        engine = opener(job.model, job.device, job.dtype)
    requests = [engine.resolve(request) for request in job.requests]
    if not job.quiet and source.name == EMBEDDED:
        for hint in hints_for([request.prompt for request in requests]):
            console.print(hint, markup=False, highlight=False, soft_wrap=True)
    steps = sum(request.steps or 0 for request in requests)
    with drawing(console, steps, len(requests), shown=not job.quiet) as bar:
        for number, (request, paths) in enumerate(zip(requests, job.paths, strict=True), start=1):
            bar.start(number, _shortened(request.prompt))
            pictures = engine.generate(request, on_step=bar.on_step)
            for picture, path in zip(pictures, paths, strict=True):
                write_picture(picture, path, job.format, quality=job.quality, overwrite=job.overwrite)
                with bar.aside():
                    typer.echo(_line(picture, path, job.as_json))


def _changes(size: str | None, **settings: Any) -> dict[str, Any]:
    """The request fields that options name."""
    sides = dict(zip(("width", "height"), parse_size(size), strict=True)) if size is not None else {}
    return sides | {name: value for name, value in settings.items() if value is not None}


def _requests(
    prompt: str | None, from_file: str | None, stored: Provenance | None, changes: dict[str, Any]
) -> list[ImageRequest]:
    """A request for each prompt with its seed chosen, so that names can be settled before anything is drawn."""
    if stored is not None and prompt is None and from_file is None:
        prompts = [stored.request.prompt]
    else:
        prompts = read_prompts(prompt, from_file)
    start = stored.request if stored is not None else None
    made = [
        replace(start, prompt=text, **changes) if start is not None else ImageRequest(prompt=text, **changes)
        for text in prompts
    ]
    return [replace(request, seed=choose_seed()) if request.seed is None else request for request in made]


def _model(wanted: str | None, stored: Provenance | None) -> str:
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


def _line(picture: "GeneratedImage", path: Path, as_json: bool) -> str:
    if as_json:
        return json.dumps({"path": str(path), **Provenance.of(picture).to_dict()})
    return f"{path}\tseed {picture.request.seed}\t{picture.seconds:.1f} s"


def _shortened(prompt: str, width: int = 40) -> str:
    text = " ".join(prompt.split())
    return text if len(text) <= width else text[: width - 1] + "…"
