"""The command `kandinsky5`: its parts, and how every ending becomes an exit code and one line.

In: the words typed. Out: an exit code. This is where the edge meets the engine: commands receive the function that
opens one, so that nothing heavier than typer is imported until a picture is drawn. Refuses to know: what commands do.
"""

import logging
import sys
import traceback
from collections.abc import Sequence
from enum import IntEnum
from typing import Annotated, NoReturn

import typer

from kandinsky5.cli.demo import demo
from kandinsky5.cli.edit import edit
from kandinsky5.cli.generate import generate
from kandinsky5.cli.info import info
from kandinsky5.cli.job import OpenEngine
from kandinsky5.cli.models import models
from kandinsky5.cli.opening import open_engine, quieten_imports
from kandinsky5.cli.pull import pull
from kandinsky5.cli.quantize import quantize
from kandinsky5.cli.serve import serve
from kandinsky5.cli.show import show
from kandinsky5.cli.train import train
from kandinsky5.cli.verify import verify
from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.version import __version__


class ExitCode(IntEnum):
    """What the command's exit code says; part of the documented surface."""

    OK = 0
    UNEXPECTED = 1
    REQUEST = 2
    CHECKPOINT = 3
    CAPACITY = 4
    INTERRUPTED = 130


EPILOG = (
    "Exit codes: 0 done, 1 unexpected error, 2 something in the request, 3 a problem with the model's files, "
    "4 no room for it on this machine, 130 interrupted."
)

app = typer.Typer(
    name="kandinsky5",
    help="Kandinsky 5.0 Image Lite: a prompt becomes a picture, a picture and an instruction another.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(edit)
app.command()(show)
app.command()(info)
app.command()(models)
app.command()(pull)
app.command()(verify)
app.command()(quantize)
app.command()(serve)
app.command()(train)
app.add_typer(demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kandinsky5 {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show the log, and tracebacks of errors.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Kandinsky 5.0 Image Lite: a prompt becomes a picture, a picture and an instruction another."""
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kandinsky5").setLevel(logging.DEBUG if debug else logging.WARNING)
    if not debug:
        quieten_imports()


def main(argv: Sequence[str] | None = None, *, opener: OpenEngine = open_engine) -> NoReturn:
    """Run the command line and leave with its exit code. `opener` opens the engine that draws."""
    sys.exit(run(sys.argv[1:] if argv is None else argv, opener))


def run(argv: Sequence[str], opener: OpenEngine = open_engine) -> int:
    """The exit code of one command; errors are one line on standard error."""
    try:
        code = app(args=list(argv), prog_name="kandinsky5", standalone_mode=False, obj=opener)
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except Exception as error:
        if logging.getLogger("kandinsky5").isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        code, line = _explain(error)
        if line:
            typer.echo(f"kandinsky5: {line}", err=True)
    if code == ExitCode.INTERRUPTED:
        typer.echo("kandinsky5: interrupted; no file is left half written.", err=True)
    return int(code or 0)


def _explain(error: Exception) -> tuple[int, str]:
    """The exit code and the line for an error that reached the edge; no line where help was shown instead."""
    for kind, code in (
        (RequestError, ExitCode.REQUEST),
        (CheckpointError, ExitCode.CHECKPOINT),
        (CapacityError, ExitCode.CAPACITY),
    ):
        if isinstance(error, kind):
            return code, _one_line(str(error))
    if isinstance(error, FloatingPointError):  # the engine's: it says what may help
        return ExitCode.UNEXPECTED, _one_line(str(error))
    if hasattr(error, "format_message") and hasattr(
        error, "exit_code"
    ):  # typer's own: a wrong option or value
        told = _one_line(error.format_message()).rstrip(".")
        return error.exit_code, f"{told} (kandinsky5 --help lists what works)" if told else ""
    return (
        ExitCode.UNEXPECTED,
        f"unexpected {type(error).__name__}: {_one_line(str(error))} (kandinsky5 --debug ... shows where)",
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())
