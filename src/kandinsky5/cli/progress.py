"""What a person watches while a picture is drawn: a bar with a live estimate, on standard error.

In: the text to show and steps as they are done. Out: nothing but the bar; standard output is left alone. Refuses to
know: requests, pictures, files.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as EstimateColumn


@contextmanager
def waiting(console: Console, text: str, *, shown: bool) -> Iterator[None]:
    """A spinner with the elapsed time, for work whose length is not known."""
    with _progress(
        console, shown, SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    ) as bar:
        bar.add_task(text, total=None)
        yield


class StepBar:
    """A bar over all steps of all prompts; `on_step` is the engine's."""

    def __init__(self, bar: Progress, steps: int, prompts: int) -> None:
        self._bar = bar
        self._prompts = prompts
        self._task = bar.add_task("", total=steps, place="")
        self._before = 0

    def start(self, number: int, text: str) -> None:
        """Begin prompt `number` (from 1), shown as `text`."""
        place = f"{number}/{self._prompts} " if self._prompts > 1 else ""
        self._before = int(self._bar.tasks[0].completed)
        self._bar.update(self._task, description=text, place=place)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Take the bar off the terminal while a line is printed to standard output, which may be the same one."""
        self._bar.stop()
        yield
        self._bar.start()

    def on_step(self, done: int, total: int) -> None:
        """After `done` of `total` steps of the present prompt."""
        self._bar.update(self._task, completed=self._before + done)


@contextmanager
def drawing(console: Console, steps: int, prompts: int, *, shown: bool) -> Iterator[StepBar]:
    """A bar of `steps` in all, for `prompts` prompts."""
    columns = (
        TextColumn("{task.fields[place]}{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        TimeElapsedColumn(),
        TextColumn("left"),
        EstimateColumn(),
    )
    with _progress(console, shown, *columns) as bar:
        yield StepBar(bar, steps, prompts)


def _progress(console: Console, shown: bool, *columns: ProgressColumn) -> Progress:
    return Progress(
        *columns,
        console=console,
        transient=True,
        disable=not (shown and console.is_terminal),
        redirect_stdout=False,
    )
