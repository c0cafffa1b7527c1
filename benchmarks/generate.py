"""How fast and how exact each way of drawing is: ours by mode, and diffusers', with the same weights and inputs.

    python benchmarks/generate.py [--tiny] [--budget SECONDS] [--only SECTION ...] [--file ROWS.jsonl]

Builds the network at the published size with drawn weights on the device, or with `--tiny` takes the embedded model,
and measures, in this order:

    truth      velocities and a short run in float32, which every way's error is measured by
    ceilings   matrix products, attention by back end, and a copy: what no way can beat
    pieces     each fused stretch, eager and as a kernel
    ways       the denoising loop from embeddings to latents, guided, and each way's error
    layers     what float8 does to each layer's result
    profile    where the time of a step goes
    sizes      other sizes and prompt lengths, the first time and after
    batches    several pictures at once
    editing    with a source picture
    torchao    diffusers with torchao's row-wise float8, compiled: minutes of compiling
    stages     text encoding and decoding, at full size
    warm_up    in a new process, weights there: the first step, with and without a kept cache

Times are medians, by CUDA events where there are some. Rows are printed and written down as they come; the last line is
JSON. A section that no longer fits into the budget is skipped and listed.
"""

import argparse
import gc
import json
import platform
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from drawing.bench import Bench
from drawing.ceilings import ceilings, pieces
from drawing.ledger import Ledger, Row
from drawing.sections import batches, child, editing, layers, loop, profile, sizes, stages, truth, warm_up

from kandinsky5.placement import MODES, resolve_mode

SECTIONS = (
    *("truth", "ceilings", "pieces", "ways", "layers", "profile"),
    *("sizes", "batches", "editing", "torchao", "stages", "warm_up"),
)


def sections(bench: Bench) -> Iterator[tuple[str, float, Callable[[], Iterator[Row]]]]:
    """Name, guessed seconds at full size on an H200, and the section."""
    scale = 0.02 if bench.tiny else 1
    quick = ("ours exact", "ours fp8")
    yield "truth", 20 * scale, lambda: truth(bench)
    yield "ceilings", 10 * scale, lambda: ceilings(bench)
    yield "pieces", 8 * scale, lambda: pieces(bench)
    ways = {"ours exact": 22, "ours fp8": 16, "diffusers": 25}
    if bench.device.type == "cuda":
        ways |= {"diffusers compiled": 35, "ours exact + graphs": 20, "ours fp8 + graphs": 14}
        ways |= {"ours fp8-attention + graphs": 13}
    for name, cost in ways.items():
        yield "ways", cost * scale, partial(loop, bench, name)
    yield "layers", 6 * scale, lambda: layers(bench)
    for name in quick:
        yield "profile", 6 * scale, partial(profile, bench, name)
    by_graph = tuple(f"{name} + graphs" for name in quick) if bench.device.type == "cuda" else ()
    yield "sizes", 45 * scale, lambda: sizes(bench, (*quick, *by_graph))
    yield "batches", 18 * scale, lambda: batches(bench, quick)
    yield "editing", 8 * scale, lambda: editing(bench)
    if bench.device.type == "cuda" and not bench.tiny:
        yield "torchao", 160, partial(loop, bench, "diffusers compiled torchao")
    yield "stages", 30 * scale, lambda: stages(bench)
    yield "warm_up", 60 * scale, lambda: warm_up(bench)
    yield "ways", 20 * scale, partial(loop, bench, "ours ordinary")


def versions() -> dict[str, str | None]:
    """Of what computes."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("torch", "triton", "diffusers", "transformers", "torchao"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def summary(bench: Bench) -> dict[str, Any]:
    """The last line: what ran where, every row, and the comparisons that the rows allow."""
    device = bench.device
    ways = {row["way"]: row for name in ("ways", "torchao") for row in bench.ledger.rows.get(name, [])}
    ratios = {
        f"{mine} over {theirs}": round(ways[theirs]["seconds"] / ways[mine]["seconds"], 3)
        for mine in ways
        if mine.startswith("ours")
        for theirs in ways
        if theirs.startswith("diffusers")
    }
    return {
        "command": " ".join(sys.argv),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "versions": versions(),
        "dtype": str(bench.dtype).removeprefix("torch."),
        "size": bench.size,
        "tokens": bench.tokens,
        "steps": bench.steps,
        "modes": {name: list(resolve_mode(name, device, bench.dtype).reasons) for name in MODES},
        "times_faster": ratios,
        **bench.ledger.summary(),
    }


def parse() -> argparse.Namespace:
    """The command line."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--tiny", action="store_true", help="the embedded model instead of the full size")
    arguments.add_argument("--device", help="default: cuda if there is one")
    arguments.add_argument("--dtype", choices=["bfloat16", "float32"], help="default: bfloat16 on CUDA")
    arguments.add_argument("--size", type=int, help="pixels a side; default 1024, with --tiny 128")
    arguments.add_argument("--tokens", type=int, help="of a prompt; default 128, with --tiny 12")
    arguments.add_argument("--steps", type=int, default=50)
    arguments.add_argument("--repeats", type=int, default=2, help="of a whole loop")
    arguments.add_argument(
        "--truth-steps", type=int, default=4, help="of the run in float32; 50 takes 2 minutes"
    )
    arguments.add_argument("--only", nargs="+", default=[], choices=SECTIONS, help="sections to run")
    arguments.add_argument("--budget", type=float, default=470, help="seconds for everything")
    arguments.add_argument("--file", type=Path, help="where rows are written as JSON lines")
    arguments.add_argument("--child", help=argparse.SUPPRESS)
    return arguments.parse_args()


def main() -> None:
    """Measure what is wanted and fits."""
    given = parse()
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = getattr(torch, given.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    ledger = Ledger(given.budget, given.file, given.only)
    bench = Bench(
        device=device,
        dtype=dtype,
        tiny=given.tiny,
        size=given.size or (128 if given.tiny else 1024),
        tokens=given.tokens or (12 if given.tiny else 128),
        steps=given.steps,
        repeats=given.repeats,
        truth_steps=given.truth_steps,
        ledger=ledger,
    )
    if given.child:
        print(json.dumps(child(bench, given.child)))
        return
    if ledger.left > 0:
        bench.build()
    for name, cost, measure in sections(bench):
        ledger.section(name, cost, measure)
        if name in ledger.seconds:
            gc.collect()
    print(json.dumps(summary(bench)))


if __name__ == "__main__":
    main()
