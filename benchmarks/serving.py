"""A server under load: nothing lost, nothing swapped, memory, latency, throughput, and the death of its worker.

    python benchmarks/serving.py [--model MODEL] [--requests 200] [--clients 32]
    python benchmarks/serving.py --full-size [FOLDER] --only batches [--sizes 1024x1024 512x512] [--steps 50]

Starts `kandinsky5 serve` in a process of its own and asks over HTTP, as clients do. Sections:

    mixed      sizes, steps and guidance mixed, edits where the model edits, a tenth cancelled, a tenth hung up on:
               twice, then every picture alone. Holds: every answer there, each picture its own, memory the same
               after both rounds
    batching   one client beside several, at three sizes, in turns
    killed     the worker killed under load. Holds: every request answered, by a picture or by worker_lost
    batches    so many clients as pictures fit into a pass, at full size: throughput and latency

Latencies are of the client, over HTTP, PNG encoding included. `--full-size` writes a folder of random values in the
published size if it is not there (29 GB). Needs the extras `serve` and `dev`. The last line is JSON; the program ends
with 1 where something does not hold.
"""

import argparse
import json
import os
import platform
import sys
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from drawing.ledger import Ledger
from full_size_checkpoint import write_checkpoint
from load.sections import batches, batching, killed, lost, mixed_load
from load.server import Server

SECTIONS = ("mixed", "batching", "killed", "batches")
SECONDS_A_PICTURE = 8.0
"""A guess for 50 steps at 1024x1024 on an H200, by which a section is left out when the time is short."""

ROOM = 1.05
"""Times what a process held after the first round of the mixed load, that it may hold after the second."""


def measure(given: argparse.Namespace, ledger: Ledger) -> dict[str, Any]:
    """All sections that are wanted: those of the CPU on one server, batches on one that takes the largest."""
    options = [f"--model={given.model}", f"--device={given.device}", f"--precision={given.precision}"]
    result: dict[str, Any] = {}
    if set(given.only) & set(SECTIONS[:3]):
        with Server(*options, "--max-queue=256", "--max-batch=4") as server:
            result["start_seconds"] = round(server.wait_ready(), 2)
            ledger.section("mixed", 60, lambda: mixed_load(server, given.requests, given.clients))
            ledger.section("batching", 60, lambda: batching(server, 24, 8))
            ledger.section("killed", 60, lambda: killed(server, 64, given.clients))
    if "batches" in given.only:
        with Server(*options, "--max-queue=256", f"--max-batch={max(given.batches)}") as server:
            result["start_seconds_batches"] = round(server.wait_ready(), 2)
            for size, batch in product(given.sizes, given.batches):
                guess = SECONDS_A_PICTURE * batch * (given.rounds + 1) if torch.cuda.is_available() else 1.0
                ledger.section(
                    "batches", guess, partial(batches, server, size, batch, given.steps, given.rounds)
                )
    return result


def conclusions(ledger: Ledger) -> dict[str, Any]:
    """What the rows show to hold, and the ratios that the issue asks for."""
    rows = [row for section in ledger.rows.values() for row in section]
    rounds = [row for row in ledger.rows.get("mixed", []) if "round" in row]
    told: dict[str, Any] = {
        "lost": lost(rows),
        "every_row_holds": all(row.get("holds", True) for row in rows),
    }
    if len(rounds) == 2:
        first, second = rounds
        told["memory_is_flat"] = all(
            second[name] <= ROOM * first[name] for name in first if name.endswith("_mb")
        )
    by_size: dict[str, dict[int, float]] = {}
    for row in ledger.rows.get("batches", []):
        by_size.setdefault(row["size"], {})[row["batch"]] = row["pictures_a_minute"]
    told["times_serial"] = {
        size: {batch: round(speed / speeds[1], 3) for batch, speed in speeds.items()}
        for size, speeds in by_size.items()
        if 1 in speeds
    }
    sound = not told["lost"] and told["every_row_holds"] and told.get("memory_is_flat", True)
    return {**told, "holds": bool(sound and not ledger.errors)}


def parse() -> argparse.Namespace:
    """The command line."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--model", default="embedded", help="what kandinsky5 serve takes")
    arguments.add_argument(
        "--full-size", nargs="?", const="full-size", metavar="FOLDER", help="instead of --model"
    )
    arguments.add_argument("--device", default="auto")
    arguments.add_argument("--precision", help="default: fp32; with --full-size bf16")
    arguments.add_argument("--requests", type=int, default=200)
    arguments.add_argument("--clients", type=int, default=32)
    arguments.add_argument("--sizes", nargs="+", default=["1024x1024", "512x512"])
    arguments.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8])
    arguments.add_argument("--steps", type=int, default=50)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--only", nargs="+", choices=SECTIONS)
    arguments.add_argument("--budget", type=float, default=540, help="seconds for all sections")
    arguments.add_argument("--file", type=Path, help="each row goes here too, as a line of JSON")
    given = arguments.parse_args()
    if given.full_size:
        given.model = given.full_size
    given.precision = given.precision or ("bf16" if given.full_size else "fp32")
    given.only = given.only or (["batches"] if given.full_size else list(SECTIONS[:3]))
    return given


def main() -> None:
    """Measure, and say what holds."""
    given = parse()
    if given.full_size and not Path(given.full_size, "model_index.json").exists():
        write_checkpoint(Path(given.full_size))
    ledger = Ledger(given.budget, given.file, given.only)
    result = measure(given, ledger)
    told = {
        "command": " ".join(sys.argv),
        "machine": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} cores {platform.machine()}",
        "load_average_after": os.getloadavg(),
        "versions": {
            name: version(name) for name in ("torch", "diffusers", "transformers", "starlette", "uvicorn")
        },
        **result,
        **conclusions(ledger),
        **ledger.summary(),
    }
    print(json.dumps(told))
    sys.exit(0 if told["holds"] else 1)


if __name__ == "__main__":
    main()
