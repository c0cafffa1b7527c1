"""`kandinsky5 show FILE`: how a picture was made.

In: a picture this package wrote. Out: its request on standard output. Refuses to know: how it is stored.
"""

import json
from pathlib import Path
from typing import Annotated

import typer

from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.cli.printable import printable


def show(
    file: Annotated[Path, typer.Argument(help="A picture written by kandinsky5.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Print the request, model and software a picture was made with."""
    provenance = read_provenance(file)
    if as_json:
        typer.echo(json.dumps(provenance.to_dict()))
        return
    facts = provenance.request.to_dict() | {"model": provenance.model, "seconds": provenance.seconds}
    for name, value in (*facts.items(), *provenance.software.items()):
        typer.echo(printable(f"{name}: {value}"))
