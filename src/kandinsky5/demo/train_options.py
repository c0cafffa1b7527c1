"""What the recipe's command line says, as recipes and as how they are carried out.

Comes in: options. Goes out: the parser of them, and the settings of each stage. It does not know what stages do.
"""

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import get_args

import torch

from kandinsky5.demo.architecture import Architecture
from kandinsky5.demo.autoencoder_quality import LEAST_THINGS_DB
from kandinsky5.demo.autoencoder_training import AutoencoderRecipe
from kandinsky5.demo.caption_reading import STATE as READING
from kandinsky5.demo.caption_reading import ReadingRecipe
from kandinsky5.demo.examination import SETS
from kandinsky5.demo.network_training import NetworkRecipe
from kandinsky5.demo.running import COMPILED_PARTS, Running
from kandinsky5.demo.sampling import Sampling
from kandinsky5.demo.warm_start import digest
from kandinsky5.train.replicas import ALONE
from kandinsky5.train.run import Limits
from kandinsky5.train.update import Optimiser, UpdateSettings

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
    base = AutoencoderRecipe(architecture=architecture(options), seed=options.seed)
    return replace(
        base,
        update=replace(
            base.update,
            steps=options.autoencoder_steps,
            peak=options.autoencoder_peak,
            warmup=min(100, options.autoencoder_steps // 4),
        ),
        batch=options.autoencoder_batch,
    )


def sampling(options: argparse.Namespace) -> Sampling:
    """How pictures are drawn to be looked at."""
    return Sampling(
        steps=options.sampling_steps,
        guidance=options.guidance,
        seed=options.seed,
        batch=options.drawn_at_once,
    )


def network_recipe(options: argparse.Namespace) -> NetworkRecipe:
    """The network's."""
    return NetworkRecipe(
        architecture=architecture(options),
        update=UpdateSettings(
            steps=options.steps, peak=options.peak, warmup=options.warmup, optimiser=options.optimiser
        ),
        shift=options.shift,
        start=_start_digest(options),
        batch=options.batch or (TOY_BATCH if options.toy else NetworkRecipe.batch),
        draws=options.draws,
        edited=options.edited,
        micro_batches=options.micro_batches,
        replicas=options.replicas.count,
        seed=options.seed,
    )


def _start_digest(options: argparse.Namespace) -> str:
    """What the network's run begins from: a folder's weights, encoders that have learnt to read, both, or nothing."""
    reading = options.work / READING
    begun = [options.begin_from] if options.begin_from else []
    return " ".join(digest(folder) for folder in [*begun, *([reading.parent] if reading.exists() else [])])


def reading_recipe(options: argparse.Namespace) -> ReadingRecipe:
    """The text encoders'."""
    base = ReadingRecipe()
    return ReadingRecipe(
        architecture=architecture(options),
        update=replace(base.update, steps=options.reading_steps, warmup=min(100, options.reading_steps // 4)),
        batch=TOY_BATCH if options.toy else base.batch,
        seed=options.seed,
    )


def architecture(options: argparse.Namespace) -> Architecture:
    """The embedded model, or one small enough for a rehearsal on a CPU."""
    if not options.toy:
        return Architecture()
    return Architecture(
        image_size=64,
        vocabulary=800,
        model_dim=64,
        ff_dim=128,
        time_dim=32,
        text_blocks=1,
        visual_blocks=2,
        text_dim=64,
        text_ff_dim=128,
        text_layers=2,
        text_heads=2,
        vision_dim=32,
        pooled_dim=48,
        autoencoder_widths=(8, 8, 16, 16),
    )


def running(options: argparse.Namespace) -> Running:
    """How any of them is carried out."""
    return Running(
        device=options.device,
        dtype=getattr(torch, options.dtype),
        workers=options.workers,
        compiled=frozenset(options.compile),
        limits=Limits(max_seconds=options.max_seconds, stop_at=options.stop_at),
        replicas=options.replicas,
    )


def command_line(stages: str | None) -> argparse.ArgumentParser:
    """The parser of all options; `stages` says what there is to do."""
    parser = argparse.ArgumentParser(prog="python -m kandinsky5.demo.train", description=stages)
    parser.set_defaults(replicas=ALONE)
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
    add, base, autoencoder = parser.add_argument, NetworkRecipe(), AutoencoderRecipe()
    add("--seed", type=int, default=5)
    add(
        "--steps",
        type=int,
        default=base.update.steps,
        help="length of the network's run; may change until its decay begins",
    )
    add("--batch", type=int, help=f"rows of a step (default: {base.batch}; {TOY_BATCH} with --toy)")
    add("--draws", type=int, default=base.draws, help="rows that each scene of a batch gives")
    add("--edited", type=float, default=base.edited, help="share of the scenes that are edits")
    add(
        "--micro-batches",
        type=int,
        default=base.micro_batches,
        help="parts a batch is computed in, to save memory",
    )
    add("--peak", type=float, default=base.update.peak, help="highest learning rate of the network's run")
    add(
        "--optimiser",
        choices=get_args(Optimiser),
        default=base.update.optimiser,
        help="of the matrices inside the network's and the encoders' blocks",
    )
    add("--shift", type=float, default=base.shift, help="how far training times move towards the noise")
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
    add("--reading-steps", type=int, default=ReadingRecipe().update.steps)
    add("--warmup", type=int, default=200)
    add("--autoencoder-steps", type=int, default=autoencoder.update.steps)
    add("--autoencoder-batch", type=int, default=autoencoder.batch)
    add("--autoencoder-peak", type=float, default=autoencoder.update.peak, help="its highest learning rate")
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
    add("--max-seconds", type=float, default=math.inf, help="pause a training stage after this long")
    add("--stop-at", type=int, help="pause a training stage at this step")
    add("--sampling-steps", type=int, help="of preview and withheld (default: as exported)")
    add("--guidance", type=float, help="likewise")
    add("--drawn-at-once", type=int, default=100 if cuda else 8, help="likewise; changes only their time")
    add("--sets", nargs="+", choices=SETS, default=("compositions", "edits"), help="sets that withheld draws")
    add("--count", type=int, help="so many of each set (default: all)")
    add("--device", type=torch.device, default=torch.device("cuda" if cuda else "cpu"))
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="what training computes in")
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    add("--workers", type=int, default=max(1, cores - 2) if cuda else 0, help="processes that make batches")
    add("--compile", nargs="*", choices=COMPILED_PARTS, default=COMPILED_PARTS if cuda else ())
