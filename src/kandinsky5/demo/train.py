"""`python -m kandinsky5.demo.train STAGE... --work DIR`: the recipe of the embedded model, stage by stage.

Stages, in order: tokenizers, autoencoder (or finished-parts, which takes both from a folder), network (drawing and
editing at once), export, preview, withheld, archive; and unpack, at home. Each reads what the earlier ones left in the
working folder. Training stages continue where they stopped, and the stages after one that is not finished yet still run
(a preview of a half-trained model).
"""

import argparse
import logging
import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from kandinsky5.demo.architecture import Architecture
from kandinsky5.demo.autoencoder_quality import LEAST_THINGS_DB, require_quality
from kandinsky5.demo.autoencoder_training import FOLDER as AUTOENCODER
from kandinsky5.demo.autoencoder_training import QUALITY, AutoencoderRecipe, show_quality, train_autoencoder
from kandinsky5.demo.examination import SETS
from kandinsky5.demo.export import export, pack_archive, unpack_archive
from kandinsky5.demo.network_training import (
    NetworkGradients,
    NetworkRecipe,
    build_modules,
    task_tokens,
    train_network,
)
from kandinsky5.demo.preview import load_exported, save_preview, save_withheld
from kandinsky5.demo.running import COMPILED_PARTS, Running
from kandinsky5.demo.sampling import Sampling
from kandinsky5.demo.scene_batches import PackedScenes
from kandinsky5.demo.tokenizers import FOLDER as TOKENIZERS
from kandinsky5.demo.tokenizers import load_tokenizers, save_tokenizers, train_tokenizers
from kandinsky5.demo.warm_start import digest, take_finished_parts, take_weights
from kandinsky5.train.run import Limits
from kandinsky5.train.update import Update, UpdateSettings

logger = logging.getLogger("kandinsky5.demo.train")  # not __name__, which is "__main__" here

EXPORTED = Path("weights")
TOY_BATCH = 32
STAGES = (
    "tokenizers",
    "autoencoder",
    "finished-parts",
    "network",
    "export",
    "preview",
    "withheld",
    "archive",
    "unpack",
    "smoke",
)


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that the command line names."""
    logging.getLogger("kandinsky5").setLevel(logging.INFO)
    options = _parser().parse_args(arguments)
    options.out = options.out or options.work / "out"
    for stage in options.stages:
        logger.info("== %s", stage)
        began = time.monotonic()
        if stage == "smoke":
            smoke(options)
        else:
            run_stage(stage, options)
        logger.info("== %s: %.1f s", stage, time.monotonic() - began)


def run_stage(stage: str, options: argparse.Namespace) -> None:
    """Run one stage with these options; raises KeyError for one that does not exist."""
    actions = {
        "tokenizers": _tokenizers,
        "autoencoder": _autoencoder,
        "finished-parts": _finished_parts,
        "network": _network,
        "export": _export,
        "preview": _preview,
        "withheld": _withheld,
        "archive": _archive,
        "unpack": _unpack,
    }
    actions[stage](options)


def smoke(options: argparse.Namespace) -> None:
    """Every stage, briefly, in a folder of its own: a rehearsal of the long runs on the machine at hand.

    The network's run is stopped half-way and continued, as the real one will be.
    """
    short = argparse.Namespace(**vars(options))
    short.work = options.work / "smoke"
    short.out = short.work / "out"
    short.autoencoder_steps, short.steps, short.warmup, short.count = 50, 30, 5, 24
    short.least_things_db = 0.0
    table: list[tuple[str, float, float]] = []
    for stage, stop_at in (
        ("tokenizers", None),
        ("autoencoder", None),
        ("network", 20),
        ("network", None),
        ("export", None),
        ("preview", None),
        ("withheld", None),
        ("archive", None),
        ("unpack", None),
    ):
        short.stop_at = stop_at
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        began = time.monotonic()
        run_stage(stage, short)
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else math.nan
        table.append((stage, time.monotonic() - began, peak))
    _measure_drawing(short)
    for stage, seconds, peak in table:
        logger.info("%-16s %7.1f s  peak %6.2f GiB", stage, seconds, peak)


def _measure_drawing(options: argparse.Namespace) -> None:
    """How many pictures a second are drawn and encoded, apart from the rest of a step."""
    qwen, clip = load_tokenizers(options.work / TOKENIZERS)
    recipe, running = _recipe(options), _running(options)
    modules = build_modules(recipe, qwen, clip)
    update = Update(modules.parameters(), recipe.update)
    autoencoder = AutoencoderKL.from_pretrained(options.work / AUTOENCODER)
    training = NetworkGradients(
        modules, autoencoder, task_tokens(recipe, qwen, clip), update, recipe, running
    )
    packed = PackedScenes(seed=options.seed, batch=recipe.batch)[0].to(options.device)
    training.encode_scenes(packed)[1].sum().item()
    began = time.monotonic()
    for _ in range(4):
        training.encode_scenes(packed)[1].sum().item()
    rate = 4 * recipe.batch / (time.monotonic() - began)
    logger.info("drawing and encoding alone: %.0f pictures a second", rate)


def _tokenizers(options: argparse.Namespace) -> None:
    qwen, clip = train_tokenizers(_architecture(options).vocabulary)
    save_tokenizers(qwen, clip, options.work / TOKENIZERS)
    logger.info("%d and %d tokens", len(qwen), len(clip))


def _autoencoder(options: argparse.Namespace) -> None:
    base = AutoencoderRecipe(architecture=_architecture(options), seed=options.seed)
    recipe = replace(
        base,
        update=replace(
            base.update,
            steps=options.autoencoder_steps,
            peak=options.autoencoder_peak,
            warmup=min(100, options.autoencoder_steps // 4),
        ),
        batch=options.autoencoder_batch,
    )
    train_autoencoder(recipe, _running(options), options.work, options.out)


def _network(options: argparse.Namespace) -> None:
    qwen, clip = load_tokenizers(options.work / TOKENIZERS)
    require_quality(options.work / QUALITY, options.least_things_db)
    autoencoder = AutoencoderKL.from_pretrained(options.work / AUTOENCODER, dtype=torch.bfloat16)
    begin = (
        (lambda modules: take_weights(options.start, modules)) if options.start else (lambda modules: None)
    )
    train_network(_recipe(options), _running(options), options.work, autoencoder, qwen, clip, begin)


def _finished_parts(options: argparse.Namespace) -> None:
    """Instead of the stages tokenizers and autoencoder: those of the folder that `--start` names."""
    if not options.start:
        raise SystemExit("the stage finished-parts takes them from a folder: --start FOLDER")
    take_finished_parts(options.start, options.work / TOKENIZERS, options.work / AUTOENCODER)
    recipe = AutoencoderRecipe(architecture=_architecture(options), seed=options.seed)
    autoencoder = AutoencoderKL.from_pretrained(options.work / AUTOENCODER, dtype=torch.bfloat16)
    show_quality(autoencoder.to(options.device), recipe, _running(options), options.work, options.out)


def _export(options: argparse.Namespace) -> None:
    export(_recipe(options), options.work, options.work / EXPORTED)


def _preview(options: argparse.Namespace) -> None:
    path = options.out / "preview.png"
    save_preview(load_exported(options.work / EXPORTED, options.device), path, _sampling(options))
    logger.info("%s", path)


def _withheld(options: argparse.Namespace) -> None:
    pipeline = load_exported(options.work / EXPORTED, options.device)
    paths = save_withheld(
        pipeline, options.out, sets=options.sets, count=options.count, sampling=_sampling(options)
    )
    for path in paths:
        logger.info("%s %.2f MiB", path, path.stat().st_size / 2**20)


def _archive(options: argparse.Namespace) -> None:
    for part in pack_archive(options.work / EXPORTED, options.out):
        logger.info("%s %.2f MiB", part, part.stat().st_size / 2**20)


def _unpack(options: argparse.Namespace) -> None:
    logger.info("%s", unpack_archive(options.out, EXPORTED.name, options.work / "unpacked"))


def _sampling(options: argparse.Namespace) -> Sampling:
    return Sampling(
        steps=options.sampling_steps,
        guidance=options.guidance,
        seed=options.seed,
        batch=options.drawn_at_once,
    )


def _recipe(options: argparse.Namespace) -> NetworkRecipe:
    return NetworkRecipe(
        architecture=_architecture(options),
        update=UpdateSettings(steps=options.steps, peak=options.peak, warmup=options.warmup),
        shift=options.shift,
        start=digest(options.start) if options.start else "",
        batch=options.batch or (TOY_BATCH if options.toy else NetworkRecipe.batch),
        draws=options.draws,
        edited=options.edited,
        micro_batches=options.micro_batches,
        seed=options.seed,
    )


def _architecture(options: argparse.Namespace) -> Architecture:
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


def _running(options: argparse.Namespace) -> Running:
    return Running(
        device=options.device,
        dtype=getattr(torch, options.dtype),
        workers=options.workers,
        compiled=frozenset(options.compile),
        limits=Limits(max_seconds=options.max_seconds, stop_at=options.stop_at),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m kandinsky5.demo.train", description=__doc__)
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
    add("--shift", type=float, default=base.shift, help="how far training times move towards the noise")
    add(
        "--start", type=Path, help="published folder whose weights the run begins from (default: random ones)"
    )
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
    add("--workers", type=int, default=max(1, (os.cpu_count() or 1) - 2) if cuda else 0)
    add("--compile", nargs="*", choices=COMPILED_PARTS, default=COMPILED_PARTS if cuda else ())


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    main()
