"""`python -m kandinsky5.demo.train STAGE... --work DIR`: the recipe of the embedded model, stage by stage.

Stages, in order: tokenizers, autoencoder (or finished-parts, which takes both from a folder), reading (the text
encoders), network (drawing and editing at once), export, preview, withheld, archive; and unpack, at home. Each reads
what the earlier ones left in the working folder. Training stages continue where they stopped, and the stages after one
that is not finished yet still run (a preview of a half-trained model).
"""

import argparse
import logging
import math
import os
import sys
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from kandinsky5.demo import train_options as chosen
from kandinsky5.demo.autoencoder_quality import require_quality
from kandinsky5.demo.autoencoder_training import AUTOENCODER, QUALITY, show_quality, train_autoencoder
from kandinsky5.demo.caption_reading import train_reading
from kandinsky5.demo.export import export, pack_archive, unpack_archive
from kandinsky5.demo.network_loss import NetworkLoss, task_tokens
from kandinsky5.demo.network_training import NetworkLesson
from kandinsky5.demo.preview import load_exported, save_preview, save_withheld
from kandinsky5.demo.running import Remarks
from kandinsky5.demo.scene_batches import PackedScenes
from kandinsky5.demo.tokenizers import PARTS, load_tokenizers, save_tokenizers, train_tokenizers
from kandinsky5.demo.trained_modules import build_modules
from kandinsky5.demo.warm_start import take_finished_parts
from kandinsky5.train.training import train

logger = logging.getLogger("kandinsky5.demo.train")  # not __name__, which is "__main__" here

EXPORTED = Path("weights")


def main(arguments: list[str] | None = None) -> None:
    """Run the stages that the command line names."""
    logging.getLogger("kandinsky5").setLevel(logging.INFO)
    options = chosen.command_line(__doc__).parse_args(arguments)
    options.out = options.out or options.work / "out"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and options.stages != ["network"]:
        raise SystemExit("Only the stage network runs on several GPUs; run the others without torchrun.")
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
        "reading": _reading,
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
    short.autoencoder_steps, short.reading_steps, short.count = 50, 20, 24
    short.changes = [*options.changes, "run.steps=30", "optimiser.warmup=5", "watch.log_every=10"]
    short.least_things_db = 0.0
    table: list[tuple[str, float, float]] = []
    for stage, stop_at in (
        ("tokenizers", 0),
        ("autoencoder", 0),
        ("reading", 0),
        ("network", 20),
        ("network", 0),
        ("export", 0),
        ("preview", 0),
        ("withheld", 0),
        ("archive", 0),
        ("unpack", 0),
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
    qwen, clip = load_tokenizers(options.work / PARTS)
    settings, size = chosen.network_settings(options), chosen.architecture(options)
    modules = build_modules(size, options.seed, qwen, clip)
    autoencoder = AutoencoderKL.from_pretrained(options.work / AUTOENCODER)
    loss = NetworkLoss(modules, autoencoder, task_tokens(size, qwen, clip), settings, chosen.running(options))
    packed = PackedScenes(seed=options.seed, batch=settings.run.batch)[0].to(options.device)
    loss.encode_scenes(packed)[1].sum().item()
    began = time.monotonic()
    for _ in range(4):
        loss.encode_scenes(packed)[1].sum().item()
    rate = 4 * settings.run.batch / (time.monotonic() - began)
    logger.info("drawing and encoding alone: %.0f pictures a second", rate)


def _tokenizers(options: argparse.Namespace) -> None:
    qwen, clip = train_tokenizers(chosen.architecture(options).vocabulary)
    save_tokenizers(qwen, clip, options.work / PARTS)
    logger.info("%d and %d tokens", len(qwen), len(clip))


def _autoencoder(options: argparse.Namespace) -> None:
    train_autoencoder(chosen.autoencoder_recipe(options), chosen.running(options), options.work, options.out)


def _reading(options: argparse.Namespace) -> None:
    qwen, clip = load_tokenizers(options.work / PARTS)
    train_reading(chosen.reading_recipe(options), chosen.running(options), options.work, qwen, clip)


def _network(options: argparse.Namespace) -> None:
    require_quality(options.work / QUALITY, options.least_things_db)
    train(chosen.network_settings(options), Path(), Remarks(), NetworkLesson)


def _finished_parts(options: argparse.Namespace) -> None:
    """Instead of the stages tokenizers and autoencoder: those of the folder that `--parts` names."""
    if not options.parts:
        raise SystemExit("the stage finished-parts takes them from a folder: --parts FOLDER")
    take_finished_parts(options.parts, options.work / PARTS)
    recipe = chosen.autoencoder_recipe(options)
    autoencoder = AutoencoderKL.from_pretrained(options.work / AUTOENCODER, dtype=torch.bfloat16)
    show_quality(autoencoder.to(options.device), recipe, chosen.running(options), options.work, options.out)


def _export(options: argparse.Namespace) -> None:
    export(options.work, options.work / EXPORTED)


def _preview(options: argparse.Namespace) -> None:
    path = options.out / "preview.png"
    save_preview(load_exported(options.work / EXPORTED, options.device), path, chosen.sampling(options))
    logger.info("%s", path)


def _withheld(options: argparse.Namespace) -> None:
    pipeline = load_exported(options.work / EXPORTED, options.device)
    paths = save_withheld(
        pipeline, options.out, sets=options.sets, count=options.count, sampling=chosen.sampling(options)
    )
    for path in paths:
        logger.info("%s %.2f MiB", path, path.stat().st_size / 2**20)


def _archive(options: argparse.Namespace) -> None:
    for part in pack_archive(options.work / EXPORTED, options.out):
        logger.info("%s %.2f MiB", part, part.stat().st_size / 2**20)


def _unpack(options: argparse.Namespace) -> None:
    logger.info("%s", unpack_archive(options.out, EXPORTED.name, options.work / "unpacked"))


if __name__ == "__main__":
    logging.basicConfig(format="%(message)s", stream=sys.stdout)
    main()
