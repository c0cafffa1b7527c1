"""`kandinsky5 edit`: a picture and instructions become edited pictures in files.

In: the options, and a function that opens an engine. Out: a checked `Job`, carried out. Refuses to know: how a job is
carried out, and how a source is fitted.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from kandinsky5.cli import options
from kandinsky5.cli.adapters import chosen_loras, weights_of
from kandinsky5.cli.job import Source, changes_of, draw, model_of, plan
from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.cli.promptlist import read_prompts
from kandinsky5.provenance import Provenance
from kandinsky5.request import EditRequest, choose_seed
from kandinsky5.variants import check_task, resolve_model

if TYPE_CHECKING:
    from PIL import Image

SIZE_OF_SOURCE = "source"


def edit(
    context: typer.Context,
    source: options.SourcePicture,
    instruction: options.Instruction = None,
    output: options.Output = None,
    model: options.Model = None,
    size: options.EditSize = None,
    fit: options.Fit = None,
    compare: options.Compare = False,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    negative: options.Negative = None,
    seed: options.Seed = None,
    n: options.Count = None,
    expand: options.Expand = False,
    from_file: options.FromFile = None,
    like: options.Like = None,
    lora: options.Loras = None,
    device: options.Device = "auto",
    dtype: options.Dtype = options.Precision.auto,
    mode: options.Mode = options.ModeName.auto,
    memory: options.Memory = None,
    picture_format: options.Format = None,
    quality: options.Quality = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    as_json: options.AsJson = False,
) -> None:
    """Edit a picture as an instruction says.

    Prints a line for each picture when it is written: path, seed, seconds and with --compare the second path, separated
    by tabs. A picture holds the request that made it, and the hash of its source.
    """
    stored = read_provenance(like) if like is not None else None
    chosen = model_of(model, stored)
    check_task(resolve_model(chosen), "editing")
    changes = changes_of(
        None if size == SIZE_OF_SOURCE else size,
        steps=steps,
        guidance=guidance,
        negative_prompt=negative,
        seed=seed,
        count=n,
        fit=fit.value if fit is not None else None,
    )
    loras = chosen_loras("edit", lora, stored)
    changes |= {"lora": weights_of(loras)}
    if size == SIZE_OF_SOURCE:
        changes |= {"size_from": "source", "width": None, "height": None}
    instructions = _instructions(instruction, from_file, stored)
    picture = _read(source)
    job = plan(
        _requests(instructions, picture, stored, changes),
        output,
        picture_format,
        model=chosen,
        device=device,
        dtype=dtype.value,
        mode=mode,
        memory=memory,
        quality=quality,
        overwrite=overwrite,
        quiet=quiet,
        as_json=as_json,
        loras=loras,
        expand=expand,
        source=Source(name=str(source), picture=picture),
        compare=compare,
    )
    draw(job, context.obj)


def _instructions(instruction: str | None, from_file: str | None, stored: Provenance | None) -> Sequence[str]:
    if stored is not None and instruction is None and from_file is None:
        return [stored.request.prompt]
    return read_prompts(instruction, from_file, example='edit photo.png "make it night"', wanted="change")


def _requests(
    instructions: Sequence[str],
    picture: "Image.Image",
    stored: Provenance | None,
    changes: dict[str, Any],
) -> Sequence[EditRequest]:
    """A request for each instruction with its seed chosen, so that names can be settled before anything is drawn."""
    from kandinsky5.pictures import content_hash

    start = stored.request.to_dict() if stored is not None else {}
    about = {"source": content_hash(picture)}
    made = [EditRequest(**{**start, **changes, **about, "prompt": text}) for text in instructions]
    return [replace(request, seed=choose_seed()) if request.seed is None else request for request in made]


def _read(path: Path) -> "Image.Image":
    from kandinsky5.pictures import read_picture  # loads numpy and Pillow, which --help must not

    return read_picture(path)
