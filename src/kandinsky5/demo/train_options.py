"""What the recipe's command line says, as recipes and as how they are carried out.

Comes in: options. Goes out: the parser of them, and the settings of each stage. It does not know what stages do.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from kandinsky5.demo.architecture import ARCHITECTURES, Architecture
from kandinsky5.demo.autoencoder_quality import LEAST_THINGS_DB
from kandinsky5.demo.autoencoder_training import AutoencoderRecipe
from kandinsky5.demo.caption_reading import ENCODERS, ReadingRecipe
from kandinsky5.demo.examination import SETS
from kandinsky5.demo.export import NETWORK
from kandinsky5.demo.network_training import RECIPE
from kandinsky5.demo.running import COMPILED, Running
from kandinsky5.demo.sampling import Sampling
from kandinsky5.demo.tokenizers import PARTS
from kandinsky5.train.settings import RunSettings, TrainingSettings
from kandinsky5.train.settings_file import read_settings

TOY_BATCH = 32
STAGES = (
    "tokenizers",
    "autoencoder",
    "finished-parts",
    "reading",
    "network",
    "export",
    "preview",
    "withheld",
    "archive",
    "unpack",
    "smoke",
)


def autoencoder_recipe(options: argparse.Namespace) -> AutoencoderRecipe:
    """The autoencoder's."""
    base, steps = AutoencoderRecipe(), options.autoencoder_steps
    warmup = min(base.optimiser.warmup, steps // 4)
    return replace(
        base,
        architecture=architecture(options),
        optimiser=replace(base.optimiser, rate=options.autoencoder_peak, warmup=warmup),
        run=_run(base.run, steps, options.autoencoder_batch, options),
    )


def reading_recipe(options: argparse.Namespace) -> ReadingRecipe:
    """The text encoders'."""
    base, steps = ReadingRecipe(), options.reading_steps
    return replace(
        base,
        architecture=architecture(options),
        optimiser=replace(base.optimiser, warmup=min(base.optimiser.warmup, steps // 4)),
        run=_run(base.run, steps, TOY_BATCH if options.toy else base.run.batch, options),
    )


def _run(base: RunSettings, steps: int, batch: int, options: argparse.Namespace) -> RunSettings:
    return replace(
        base,
        steps=steps,
        batch=batch,
        micro_batch=batch,
        seed=options.seed,
        max_seconds=options.max_seconds,
        stop_at=options.stop_at,
    )


def network_settings(options: argparse.Namespace) -> TrainingSettings:
    """The network's: `embedded.toml`, over it what these options say of the stage, and then each `--set`."""
    reading = (options.work / ENCODERS).resolve()
    said = {
        "output": str(options.work / NETWORK),
        "model.name": str(options.work / PARTS),
        "model.device": str(options.device),
        "model.base": "bf16" if options.dtype == "bfloat16" else "fp32",
        "data.sources.begin_from": str(options.begin_from or ""),
        "data.sources.reading": str(reading) if reading.exists() else "",
        "data.sources.workers": options.workers,
        "data.sources.compiled": [part for part in options.compile if part != "network"],
        "run.compile": "network" in options.compile,
        "run.seed": options.seed,
        "run.max_seconds": options.max_seconds,
        "run.stop_at": options.stop_at,
    }
    if options.toy:
        said |= {"data.sources.architecture": "toy", "run.batch": TOY_BATCH, "run.micro_batch": TOY_BATCH}
    return read_settings(
        RECIPE, [*(f"{key}={json.dumps(value)}" for key, value in said.items()), *options.changes]
    )


def architecture(options: argparse.Namespace) -> Architecture:
    """The embedded model, or one small enough for a rehearsal on a CPU."""
    return ARCHITECTURES["toy" if options.toy else "embedded"]


def running(options: argparse.Namespace) -> Running:
    """How autoencoder and reading are carried out."""
    return Running(
        device=options.device,
        dtype=getattr(torch, options.dtype),
        workers=options.workers,
        compiled=frozenset(options.compile),
    )


def sampling(options: argparse.Namespace) -> Sampling:
    """How pictures are drawn to be looked at."""
    return Sampling(
        steps=options.sampling_steps,
        guidance=options.guidance,
        seed=options.seed,
        batch=options.drawn_at_once,
    )


def command_line(stages: str | None) -> argparse.ArgumentParser:
    """The parser of all options; `stages` says what there is to do."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky5.demo.train", description=stages)
    add = parser.add_argument
    add("stages", nargs="+", choices=STAGES, metavar="STAGE", help=", ".join(STAGES))
    add("--work", type=Path, required=True, help="working folder")
    add(
        "--out",
        type=Path,
        help="where pictures and the archive go, and where unpack finds it (default: WORK/out)",
    )
    _add_recipe(parser)
    _add_running(parser)
    return parser


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    """What decides the result."""
    add, autoencoder = parser.add_argument, AutoencoderRecipe()
    add("--seed", type=int, default=5)
    add(
        "--set",
        dest="changes",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help=f"another value for a setting of the network's run ({RECIPE.name}), such as run.steps=200",
    )
    add(
        "--begin-from",
        type=Path,
        help="published folder whose weights the network's run begins from, those of the encoders unless the stage "
        "reading has made others (default: none)",
    )
    add(
        "--parts",
        type=Path,
        help="published folder that finished-parts takes tokenizers and autoencoder from",
    )
    add("--reading-steps", type=int, default=ReadingRecipe().run.steps)
    add("--autoencoder-steps", type=int, default=autoencoder.run.steps)
    add("--autoencoder-batch", type=int, default=autoencoder.run.batch)
    add(
        "--autoencoder-peak", type=float, default=autoencoder.optimiser.rate, help="its highest learning rate"
    )
    add(
        "--least-things-db",
        type=float,
        default=LEAST_THINGS_DB,
        help="train no network on an autoencoder that keeps things worse than this",
    )
    add("--toy", action="store_true", help="a tiny architecture, to try the recipe on a CPU")


def _add_running(parser: argparse.ArgumentParser) -> None:
    """How it is carried out."""
    add, cuda = parser.add_argument, torch.cuda.is_available()
    add("--max-seconds", type=float, default=0.0, help="pause a training stage after this long (0: never)")
    add("--stop-at", type=int, default=0, help="pause a training stage at this step (0: never)")
    add("--sampling-steps", type=int, help="of preview and withheld (default: as exported)")
    add("--guidance", type=float, help="likewise")
    add("--drawn-at-once", type=int, default=100 if cuda else 8, help="likewise; changes only their time")
    add("--sets", nargs="+", choices=SETS, default=("compositions", "edits"), help="sets that withheld draws")
    add("--count", type=int, help="so many of each set (default: all)")
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"))
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="what training computes in")
    add(
        "--workers",
        type=int,
        default=-1,
        help="processes that make batches (-1: the cores left beside a GPU)",
    )
    add("--compile", nargs="*", choices=COMPILED, default=COMPILED if cuda else ())
