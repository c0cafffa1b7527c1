"""How fast the trainer learns and what it takes: `python benchmarks/training.py`, one large GPU, random weights.

Sections, each a line of JSON as it is done; the last line is one JSON object with all of them:
  lora-BASE   adapters of rank 16 on a frozen base, by --base: images a second, peak memory
  lora-peer   the same loop over diffusers' network, its weights random too
  full-NAME   every weight, with AdamW and with the 8-bit one: images a second, peak memory
each as it is, `-compiled` block by block, and adapters with passes replayed as CUDA `-graphs` (--ways). What fails is
said in its line, and the others go on.
Under torchrun (2 or 4 processes) only `full` is run, cut up by FSDP2; its images a second are those of all processes.
Against the output of one process its lines also say their efficiency:
  python benchmarks/training.py --sections full > one.txt
  torchrun --nproc-per-node 2 benchmarks/training.py --sections full --against one.txt
`--budget SECONDS` leaves out sections that would take longer, judged by the longest so far.
`--tiny` runs everything with a small network on any machine, to show that it runs; its figures say nothing.
"""

import argparse
import gc
import json
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from random_networks import OurNetwork, PeerCall, PeerNetwork, build, filled, restore_tables
from torch import distributed

from kandinsky5.model.kernels import stretches_for
from kandinsky5.records import Conditioning
from kandinsky5.train.data.rows import Rows
from kandinsky5.train.rectified_flow import points_of
from kandinsky5.train.replicas import Replicas, join_replicas, leave_replicas
from kandinsky5.train.settings import ObjectiveSettings, OptimiserSettings, TuningSettings
from kandinsky5.train.tuning.holders import ReplicatedWeights, ShardedWeights, Weights
from kandinsky5.train.tuning.learning import learning_parameters, pack_base
from kandinsky5.train.tuning.passes import Passes, recomputed
from kandinsky5.train.tuning.sharding import make_mesh, shard
from kandinsky5.train.tuning.stepper import Stepper

SECTIONS = ("lora", "lora-peer", "full")
WAYS = ("eager", "compiled", "graphs")
WARM = 3
PATIENCE = timedelta(seconds=60)
"""How long a process that is through a section waits for the others before it takes them for lost."""

LOST = "a process is lost"

Sections = list[tuple[str, Callable[[], dict[str, Any]]]]


def main() -> None:
    """Run the sections and print them."""
    options = command_line().parse_args()
    replicas = join_replicas()
    device = (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
    facts = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "processes": replicas.count,
        "size": f"{options.side}x{options.side}",
        "text_tokens": options.text,
        "micro_batch": options.batch,
        "tiny": options.tiny,
    }
    done: list[dict[str, Any]] = []
    together = run_sections(planned(options, device, replicas), options, replicas, done)
    if replicas.leads or not together:
        print(json.dumps({**facts, "sections": done, "times_of_peer": times_of_peer(done)}), flush=True)
    if not together:
        os._exit(1)  # the others wait in a sum that never comes; torchrun ends them
    leave_replicas()


def run_sections(
    sections: Sections, options: argparse.Namespace, replicas: Replicas, done: list[dict[str, Any]]
) -> bool:
    """Append each section's row to `done`; False as soon as a process is lost."""
    began, longest = time.perf_counter(), 0.0
    alone = rates_of(options.against)
    for name, action in sections:
        start = time.perf_counter()
        if replicas.agree(start - began + longest > options.budget):
            row: dict[str, Any] = {"section": name, "left_out": "would take longer than --budget"}
        else:
            row = {"section": name, **outcome(action)}
        if alone.get(name) and "images_per_second" in row:
            row["efficiency"] = round(row["images_per_second"] / replicas.count / alone[name], 3)
        done.append(row)
        if replicas.count > 1 and not all_through(name, replicas):
            row["lost"] = "a process did not come to the end of this section"
            return False
        longest = max(longest, time.perf_counter() - start)
        if replicas.leads:
            print(json.dumps(row), flush=True)
    return True


def all_through(name: str, replicas: Replicas) -> bool:
    """Whether every process comes to the end of a section, within `PATIENCE` of this one."""
    store = distributed.distributed_c10d._get_default_store()
    try:
        store.set(f"{name}/{replicas.rank}", "")
        store.wait([f"{name}/{rank}" for rank in range(replicas.count)], PATIENCE)
        return not store.check([LOST])
    except RuntimeError:  # nobody comes, or the store went with its process
        with suppress(RuntimeError):
            store.set(LOST, "")
        return False


def outcome(action: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a section measured, or why it could not: too little memory, a missing package, a packing not had here."""
    try:
        return action()
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {one_line(error)}"}
    finally:
        gc.collect()
        torch.compiler.reset()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def one_line(error: BaseException) -> str:
    """The beginning of what it says."""
    return " ".join(str(error).split())[:200]


def rates_of(file: Path | None) -> dict[str, float]:
    """Images a second by section, of a run whose output is in a file."""
    if file is None:
        return {}
    rows = json.loads(file.read_text().strip().splitlines()[-1])["sections"]
    return {row["section"]: row["images_per_second"] for row in rows if "images_per_second" in row}


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--base",
        nargs="+",
        choices=("bf16", "int8", "fp8", "nf4"),
        default=["bf16", "int8", "fp8", "nf4"],
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--text", type=int, default=128, help="text tokens")
    parser.add_argument("--batch", type=int, default=1, help="rows of a forward pass")
    parser.add_argument("--steps", type=int, default=10, help="timed, after three that warm up")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds for all sections")
    parser.add_argument("--against", type=Path, help="output of a run with one process")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep activations")
    parser.add_argument("--tiny", action="store_true", help="a small network, anywhere")
    return parser


def planned(options: argparse.Namespace, device: torch.device, replicas: Replicas) -> Sections:
    """The sections as functions, in order."""
    found: Sections = []
    alone = replicas.count == 1
    for way in options.ways:
        end = "" if way == "eager" else f"-{way}"
        if "lora" in options.sections and alone:
            found += [
                (f"lora-{base}{end}", lambda b=base, w=way: tune_adapter(options, device, b, w))
                for base in options.base
            ]
        if "lora-peer" in options.sections and alone:
            found.append((f"lora-peer{end}", lambda w=way: tune_peer(options, device, w)))
        if "full" in options.sections and way != "graphs":
            found += [
                (f"full-{name}{end}", lambda n=name, w=way: tune_all(options, device, replicas, n, w))
                for name in ("adamw", "adamw8bit")
            ]
    return found


def tune_adapter(options: argparse.Namespace, device: torch.device, base: str, way: str) -> dict[str, Any]:
    """Ours: LoRA on a base of these bits."""
    network = filled(build(OurNetwork, torch.bfloat16, tiny=options.tiny), device)
    pack_base(network, base, device)
    network.to(device)
    tuning = TuningSettings(rank=options.rank, alpha=float(options.rank))
    learning = learning_parameters(network, tuning, torch.bfloat16, seed=0)
    if way == "compiled":
        network.compile_repeated_blocks()
    else:
        network.use_stretches(stretches_for(device))
    return measure(network, ReplicatedWeights(learning, Replicas()), options, device, "adamw", way)


def tune_peer(options: argparse.Namespace, device: torch.device, way: str) -> dict[str, Any]:
    """The same loop, data and optimiser over diffusers' network."""
    network = filled(build(PeerNetwork, torch.bfloat16, tiny=options.tiny), device)
    restore_tables(network, device)
    tuning = TuningSettings(rank=options.rank, alpha=float(options.rank))
    learning = learning_parameters(network, tuning, torch.bfloat16, seed=0)
    if way == "compiled":
        network.compile_repeated_blocks()
    peer = PeerCall(network)
    return measure(peer, ReplicatedWeights(learning, Replicas()), options, device, "adamw", way)


def tune_all(
    options: argparse.Namespace, device: torch.device, replicas: Replicas, optimiser: str, way: str
) -> dict[str, Any]:
    """Ours: every weight, cut up over the processes; one process is a line of one."""
    network = build(OurNetwork, torch.float32, tiny=options.tiny)
    if way == "compiled":
        network.compile_repeated_blocks()
    else:
        network.use_stretches(stretches_for(device))
    shard(network, make_mesh(device, 1), torch.bfloat16)
    filled(network, device)
    weights = ShardedWeights(
        network, learning_parameters(network, TuningSettings(kind="full"), torch.bfloat16, 0)
    )
    row = measure(network, weights, options, device, optimiser, way)
    row["images_per_second"] = round(row["images_per_second"] * replicas.count, 3)
    return row


def make_rows(options: argparse.Namespace, config: Any) -> Rows:
    """A micro-batch of random latents and text, as it comes from the cache."""
    side, generator = options.side // 8, torch.Generator().manual_seed(1)
    latents = (options.batch, 1, side, side, config.out_visual_dim)
    text = (options.batch, options.text, config.in_text_dim)
    return Rows(
        mean=torch.randn(latents, generator=generator).half(),
        deviation=torch.full(latents, 0.01, dtype=torch.float16),
        source_mean=None,
        source_deviation=None,
        conditioning=Conditioning(
            text=torch.randn(text, generator=generator).bfloat16(),
            mask=torch.ones(text[:2], dtype=torch.bool),
            pooled=torch.randn(options.batch, config.in_text_dim2, generator=generator).bfloat16(),
        ),
        seeds=tuple(range(options.batch)),
    )


def measure(
    network: Any,
    weights: Weights,
    options: argparse.Namespace,
    device: torch.device,
    optimiser: str,
    way: str,
) -> dict[str, Any]:
    """Images a second of this process, and its peak memory, over whole steps."""
    network.train()
    if not options.no_checkpointing:
        ours = isinstance(network, OurNetwork) or way == "graphs"
        network.enable_gradient_checkpointing(recomputed if ours else None)
    steps = WARM + options.steps
    stepper = Stepper(weights, OptimiserSettings(name=optimiser, warmup=1), steps=steps, ema=0.0)
    rows, objective = make_rows(options, network.config), ObjectiveSettings()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    forward_backward = Passes(network, weights, replayed=way == "graphs")
    passes, updates, loss = 0.0, 0.0, torch.zeros(())
    for step in range(steps):
        wait(device)
        began = time.perf_counter()
        loss = forward_backward(points_of(rows, objective, device, torch.bfloat16), 1.0).mean()
        wait(device)
        between = time.perf_counter()
        stepper()
        wait(device)
        if step >= WARM:
            passes += between - began
            updates += time.perf_counter() - between
    row = {
        "images_per_second": round(options.steps * options.batch / (passes + updates), 3),
        "seconds_per_step": round((passes + updates) / options.steps, 4),
        "forward_backward_seconds": round(passes / options.steps, 4),
        "optimiser_seconds": round(updates / options.steps, 4),
        "last_loss": round(float(loss), 4),
    }
    if device.type == "cuda":
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return row


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def times_of_peer(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Our images a second in bfloat16 over the peer's: both in the same way, and the better of each."""
    rates = {row["section"]: row.get("images_per_second", 0.0) for row in rows}
    ours, theirs = (
        {way: rates.get(name if way == "eager" else f"{name}-{way}", 0.0) for way in WAYS}
        for name in ("lora-bf16", "lora-peer")
    )
    for found in (ours, theirs):
        found["better"] = max(found.values())
    return {way: round(ours[way] / theirs[way], 3) for way in ours if ours[way] and theirs[way]}


if __name__ == "__main__":
    main()
