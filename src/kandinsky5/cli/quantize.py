"""`kandinsky5 quantize MODEL OUT`: a copy of a checkpoint with fewer bits a weight.

In: a name, folder or hub id that is on this machine, and formats. Out: a folder, whose path is printed. Refuses to
know: formats and libraries.
"""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from kandinsky5.cli import options
from kandinsky5.cli.imports import collecting_later, quieten_libraries
from kandinsky5.cli.progress import waiting
from kandinsky5.cli.pull import CacheDir
from kandinsky5.cli.verify import folder_of
from kandinsky5.variants import resolve_model


class Format(StrEnum):
    """`kandinsky5.memory.formats` says what each is."""

    bf16 = "bf16"
    int8 = "int8"
    fp8 = "fp8"
    nf4 = "nf4"


Chosen = Annotated[Format | None, typer.Option(show_default=False, help="Of it alone. Default: --format.")]


def quantize(
    model: Annotated[
        str,
        typer.Argument(metavar="NAME|ID|FOLDER", help="A checkpoint on this machine.", show_default=False),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    form: Annotated[
        Format, typer.Option("--format", help="Of network and text encoder; bf16 leaves them as they are.")
    ] = Format.int8,
    network: Chosen = None,
    encoder: Chosen = None,
    device: options.Device = "auto",
    cache_dir: CacheDir = None,
    quiet: options.Quiet = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write a checkpoint with fewer bits a weight, which every command takes like any other.

    One component is in memory at a time. CLIP and the autoencoder are copied as they are.
    """
    source = resolve_model(model)
    folder = folder_of(source, cache_dir)
    quieten_libraries()
    with collecting_later():
        from kandinsky5.memory.packing import write_packed
        from kandinsky5.placement import resolve_device

    chosen = {"network": (network or form).value, "encoder": (encoder or form).value}
    with waiting(Console(stderr=True), f"Packing {source.name}", shown=not quiet):
        write_packed(folder, out, device=resolve_device(device), **chosen)
    size = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    typer.echo(json.dumps({"folder": str(out), **chosen, "bytes": size}) if as_json else str(out))
