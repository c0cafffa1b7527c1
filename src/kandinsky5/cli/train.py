"""`kandinsky5 train CONFIG.toml` and `kandinsky5 train init FILE`: a training run, and a file to start one from.

In: a TOML file and changes to it. Out: the run's folder, on standard output; progress goes to standard error. Refuses
to know: what is in the file, and how training is done.
"""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from typer import Argument, Option

from kandinsky5.cli import options
from kandinsky5.cli.extras import require_extra
from kandinsky5.cli.imports import collecting_later, quieten_libraries
from kandinsky5.errors import RequestError

if TYPE_CHECKING:
    from kandinsky5.train.lesson import LessonMaker
    from kandinsky5.train.settings import TrainingSettings

INIT = "init"

Config = Annotated[
    str,
    Argument(
        metavar="CONFIG.toml|init", help="Settings of a run; init writes such a file.", show_default=False
    ),
]
NewFile = Annotated[
    Path | None, Argument(metavar="[FILE]", help="With init: the file to write.", show_default=False)
]
Changes = Annotated[
    list[str] | None,
    Option(
        "--set",
        metavar="KEY=VALUE",
        help="Another value for a setting, such as run.steps=200; may be repeated.",
    ),
]


def train(
    config: Config,
    file: NewFile = None,
    changes: Changes = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
) -> None:
    """Train an adapter, or every weight, on pictures of your own.

    kandinsky5 train init FILE writes the settings with a sentence about each. The same command again continues a run
    that was stopped. On several GPUs: torchrun --nproc-per-node 4 -m kandinsky5 train CONFIG.toml.
    """
    require_extra("train", "train", ("peft", "torchao"))
    if config == INIT:
        _write_initial(file or Path("train.toml"), overwrite)
        return
    if file is not None:
        raise RequestError(
            f"{file} is one file too many: kandinsky5 train takes one, or init and the file to write."
        )
    quieten_libraries()
    with collecting_later():
        from kandinsky5.train.settings_file import read_settings
        from kandinsky5.train.training import train as carry_out

    path = Path(config)
    settings = read_settings(path, changes or ())
    leads = os.environ.get("RANK", "0") == "0"
    with TrainingBar(Console(stderr=True), shown=leads and not quiet) as bar:
        output = carry_out(settings, path.parent, bar, _lesson_of(settings))
    if leads:
        typer.echo(str(output))


def _lesson_of(settings: "TrainingSettings") -> "LessonMaker":
    """The trainer's own, or the embedded model's where scenes are drawn."""
    if settings.data.drawn is None:
        from kandinsky5.train.tuning.lesson import TuningLesson

        return TuningLesson
    from kandinsky5.demo.network_training import NetworkLesson

    return NetworkLesson


def _write_initial(path: Path, overwrite: bool) -> None:
    from kandinsky5.train.settings_file import initial_file

    if path.exists() and not overwrite:
        raise RequestError(f"{path} is there already; name another file, or say --overwrite.")
    try:
        path.write_text(initial_file(), encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}.") from error
    typer.echo(str(path))


class TrainingBar(AbstractContextManager["TrainingBar"]):
    """Steps done, on a terminal as a bar, and remarks above it."""

    def __init__(self, console: Console, *, shown: bool):
        self._console = console
        self._shown = shown
        self._task: TaskID | None = None
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not shown,
            transient=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A remark."""
        if self._shown:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def on_step(self, step: int, steps: int, loss: float | None) -> None:
        """A step is done."""
        if self._task is None:
            self._task = self._progress.add_task("training", total=steps)
        told = {} if loss is None else {"description": f"loss {loss:.4f}"}
        self._progress.update(self._task, completed=step, **told)  # type: ignore[arg-type]
