"""`kandinsky5 generate`: prompts become pictures in files.

In: the options, and a function that opens an engine. Out: a checked `Job`, carried out. Refuses to know: how a job is
carried out.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import typer

from kandinsky5.cli import options
from kandinsky5.cli.adapters import chosen_loras, weights_of
from kandinsky5.cli.job import changes_of, draw, model_of, plan
from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.cli.promptlist import read_prompts
from kandinsky5.errors import RequestError
from kandinsky5.provenance import Provenance
from kandinsky5.request import EditRequest, ImageRequest, choose_seed


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
    """Draw pictures of a prompt.

    Prints a line for each picture when it is written: path, seed and seconds, separated by tabs. A picture holds the
    request that made it: kandinsky5 show prints it, --like draws from it.
    """
    stored = read_provenance(like) if like is not None else None
    loras = chosen_loras("generate", lora, stored)
    changes = changes_of(size, steps=steps, guidance=guidance, negative_prompt=negative, seed=seed, count=n)
    changes |= {"lora": weights_of(loras)}
    job = plan(
        _requests(prompt, from_file, stored, changes),
        output,
        picture_format,
        model=model_of(model, stored),
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
    )
    draw(job, context.obj)


def _requests(
    prompt: str | None, from_file: str | None, stored: Provenance | None, changes: dict[str, Any]
) -> Sequence[ImageRequest]:
    """A request for each prompt with its seed chosen, so that names can be settled before anything is drawn."""
    start = stored.request if stored is not None else None
    if isinstance(start, EditRequest):
        raise RequestError(
            "The picture of --like was made by an edit: kandinsky5 edit SOURCE --like does it again."
        )
    if start is not None and prompt is None and from_file is None:
        prompts = [start.prompt]
    else:
        prompts = read_prompts(prompt, from_file)
    made = [
        replace(start, prompt=text, **changes) if start is not None else ImageRequest(prompt=text, **changes)
        for text in prompts
    ]
    return [replace(request, seed=choose_seed()) if request.seed is None else request for request in made]
