"""`kandinsky5 demo score`, `judge` and `pictures`: how good a model of the embedded model's world is.

In: a model of the published layout, and how to draw. Out: a table on standard output, files in a folder; the bar goes
to standard error. Refuses to know: what is asked, how pictures are scored.
"""

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from kandinsky5.cli import options
from kandinsky5.cli.extras import require_extra
from kandinsky5.cli.progress import StepBar, drawing, waiting
from kandinsky5.cli.targets import check_folder
from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.variants import EMBEDDED, resolve_model
from kandinsky5.version import __version__

if TYPE_CHECKING:
    from kandinsky5.demo.examination import Examined
    from kandinsky5.demo.sampling import OnStep, Sampling
    from kandinsky5.engine import Engine

demo = typer.Typer(
    name="demo", help="Scores and pictures of the embedded model, or of one like it.", no_args_is_help=True
)


class Set(StrEnum):
    """The withheld sets."""

    compositions = "compositions"
    foreign = "foreign"
    edits = "edits"


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME|ID|FOLDER", help="A model of the embedded model's world.", show_default=True
    ),
]
Sets = Annotated[
    list[Set] | None,
    typer.Option("--set", help="One of the sets; may be repeated. Default: all that the model can answer."),
]
CountOfSet = Annotated[
    int | None,
    typer.Option(
        "--count", min=1, help="So many of each set, the same ones always. Default: 500, 108 and 300."
    ),
]
SCORING_MODULES = ("scipy",)
"""Of the extra `demo`: pixels are read with it."""

Batch = Annotated[int, typer.Option(min=1, help="Pictures drawn at once.")]
SetSeed = Annotated[
    int,
    typer.Option(min=-(2**32), max=2**32, help="Start of the noise; the sets are the same for every seed."),
]


@demo.command()
def score(
    context: typer.Context,
    model: ModelArgument = EMBEDDED,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the files go, over older ones.")
    ] = Path("score"),
    sets: Sets = None,
    count: CountOfSet = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: SetSeed = 0,
    batch: Batch = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = options.Precision.auto,
    mode: options.Mode = options.ModeName.auto,
    quiet: options.Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask a model what it was never trained on, and score its pictures.

    Prints a table; writes score.json, score.md and failures-SET.png. Pixels are read with classical vision, no network.
    """
    require_extra("demo score", "demo", SCORING_MODULES)
    check_folder(output, output / "score.json")
    console = Console(stderr=True)
    engine = _open(context, model, device, dtype, console, quiet, mode)
    from kandinsky5.demo.sampling import Sampling

    sampling = Sampling(steps=steps, guidance=guidance, seed=seed, batch=batch)
    _report(*_examine(engine, _chosen(sets, engine), count, sampling, console, quiet), output, as_json)


@demo.command()
def judge(
    folder: Annotated[Path, typer.Argument(help="What the recipe's stage withheld wrote.", metavar="FOLDER")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the files go, over older ones.")
    ] = Path("score"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Score pictures of the withheld sets that were drawn elsewhere: the same tables and files as score."""
    require_extra("demo judge", "demo", SCORING_MODULES)
    check_folder(output, output / "score.json")
    from kandinsky5.demo.drawn_sets import load_drawn
    from kandinsky5.demo.examination import judge as judged

    drawn = load_drawn(folder)
    facts = {"drawn": str(folder), "kandinsky5": __version__, **drawn.facts}
    _report([judged(name, pictures) for name, pictures in drawn.pictures.items()], facts, output, as_json)


@demo.command()
def pictures(
    context: typer.Context,
    model: ModelArgument = EMBEDDED,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="FOLDER", help="Where the pictures go, over older ones.")
    ] = Path("pictures"),
    page: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the score table between the marks of this page."),
    ] = None,
    count: CountOfSet = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    seed: SetSeed = 0,
    batch: Batch = 16,
    device: options.Device = "auto",
    dtype: options.Dtype = options.Precision.auto,
    quiet: options.Quiet = False,
) -> None:
    """Draw the pictures of docs/demo.md, and score the model for its table and failures."""
    require_extra("demo pictures", "demo", SCORING_MODULES)
    from kandinsky5.demo import pictures as page_pictures
    from kandinsky5.demo.examination import sets_for
    from kandinsky5.demo.sampling import Sampling, can_edit
    from kandinsky5.demo.scorecard import write_whole

    check_folder(output, output)
    if page is not None:
        page_pictures.around_marks(page)
        check_folder(page.parent, page)
    console = Console(stderr=True)
    engine = _open(context, model, device, dtype, console, quiet)
    sampling = Sampling(steps=steps, guidance=guidance, seed=seed, batch=batch)
    sheets: dict[str, Any] = {}
    makers = {
        "embedded-grid.png": page_pictures.prompt_grid,
        "embedded-guidance-steps.png": page_pictures.guidance_and_steps,
    }
    if can_edit(engine.pipeline):
        makers["embedded-edits.png"] = page_pictures.edit_grid
    for name, make in makers.items():
        with _watched(engine, name, console, quiet) as on_step:
            sheets[name] = make(engine.pipeline, sampling, on_step)
    cards, _ = _examine(engine, sets_for(engine.pipeline), count, sampling, console, quiet)
    for card in cards:
        sheets[f"embedded-failures-{card.name}.png"] = page_pictures.few_failures(card)
    if page is not None:
        page_pictures.write_page(page, cards)
    output.mkdir(parents=True, exist_ok=True)
    for name, sheet in sheets.items():
        typer.echo(write_whole(output / name, sheet.save))


def _report(cards: Sequence["Examined"], facts: dict[str, Any], output: Path, as_json: bool) -> None:
    """Write the scores, and print them."""
    from kandinsky5.demo.scorecard import save_scores, score_record, score_text

    paths = save_scores(cards, facts, output)
    if as_json:
        typer.echo(json.dumps(score_record(cards, facts)))
        return
    typer.echo(score_text(cards))
    typer.echo("\n" + "\n".join(str(path) for path in paths))


def _open(
    context: typer.Context,
    model: str,
    device: str,
    dtype: options.Precision,
    console: Console,
    quiet: bool,
    mode: options.ModeName = options.ModeName.auto,
) -> "Engine":
    source = resolve_model(model)
    with waiting(console, f"Loading {source.name}", shown=not quiet and source.hub_id is None):
        engine: Engine = context.obj(model, device, dtype.value, mode=mode.value)
    return engine


def _chosen(sets: list[Set] | None, engine: "Engine") -> tuple[str, ...]:
    """The sets to ask, each once and in their own order."""
    from kandinsky5.demo.examination import sets_for

    possible = sets_for(engine.pipeline)
    if sets is None:
        return possible
    wanted = {one.value for one in sets}
    if impossible := wanted - {*possible}:
        raise RequestError(
            f"{engine.source} cannot answer {', '.join(sorted(impossible))}: its network takes no source picture."
        )
    return tuple(name for name in possible if name in wanted)


def _examine(
    engine: "Engine",
    names: Sequence[str],
    count: int | None,
    sampling: "Sampling",
    console: Console,
    quiet: bool,
) -> tuple[list["Examined"], dict[str, Any]]:
    """What became of each set, and what was examined how."""
    from kandinsky5.demo.examination import examine

    began = time.perf_counter()
    cards = []
    for name in names:
        with _watched(engine, name, console, quiet) as on_step:
            cards.append(examine(engine.pipeline, name, count, sampling, on_step))
    pipeline = engine.pipeline
    facts = {
        "model": engine.source,
        "kandinsky5": __version__,
        "steps": pipeline.default_steps if sampling.steps is None else sampling.steps,
        "guidance": pipeline.default_guidance if sampling.guidance is None else sampling.guidance,
        "seed": sampling.seed,
        "dtype": str(pipeline.transformer.dtype).removeprefix("torch."),
        "device": str(pipeline.device),
        "platform": platform.platform(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return cards, facts


@contextmanager
def _watched(engine: "Engine", text: str, console: Console, quiet: bool) -> Iterator["OnStep"]:
    """A bar named `text` from the first step on; running out of memory meanwhile is said in words."""
    from kandinsky5.out_of_memory import is_out_of_memory

    with ExitStack() as shown:
        bars: list[StepBar] = []

        def on_step(done: int, total: int) -> None:
            if not bars:
                bars.append(shown.enter_context(drawing(console, total, 1, shown=not quiet)))
                bars[0].start(1, text)
            bars[0].on_step(done, total)

        try:
            yield on_step
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise CapacityError(
                f"So many pictures at once do not fit into the memory of {engine.pipeline.device}; "
                "try a smaller --batch."
            ) from error
