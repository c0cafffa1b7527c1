"""What a model takes and how long it draws in each tier of memory, on the CPU, and what packing does to it.

    python benchmarks/memory.py [--tiny] [--folder DIR] [--only ROW ...] [--budget SECONDS] [--file rows.jsonl]
    python benchmarks/memory.py --cpu [--tiny]
    python benchmarks/memory.py --quality [--count N]

Without a flag: a random checkpoint of the published size (`full_size_checkpoint`, an editing one, which draws too), and
a new process for each row: all of it resident in mode exact, then within 24, 16, 12, 8, 6 and 4 GB, with torch's
allocator held to the tier less 0.7 GB; prompt to PNG at 1024 x 1024; the driver's peak, the host's anonymous and locked
peak, bytes moved a step; then editing in each tier, and 2048 x 2048 in 16 GB. A row is skipped, and listed, when the
time left does not allow it. `--cpu`: 512 x 512 in 2 steps without a GPU. `--quality`: distances and scores by format.
The last line is JSON.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from remembering import quality, tiers

TIERS = {24: 40, 16: 32, 12: 24, 8: 24, 6: 16, 4: 16}
"""Gigabytes of the device, and of the host beside it."""

TARGETS = {24: 1.05, 16: 1.10, 12: 1.10, 8: 1.25, 6: 1.5, 4: 2.1}
"""Seconds over those of the resident exact mode."""


def rows(given: argparse.Namespace, folder: str, device: str) -> dict[str, tiers.Tier]:
    """All rows by name, in order of importance."""
    size, steps = (64, 3) if given.tiny else (1024, given.steps)
    common: dict[str, Any] = {"folder": folder, "device": device}
    made = {
        "resident": tiers.Tier(
            **common, gigabytes=None, host_gigabytes=None, task="drawing", size=size, steps=steps
        )
    }
    for task in ("drawing", "editing"):
        if task == "editing":
            made["resident, editing"] = tiers.Tier(
                **common, gigabytes=None, host_gigabytes=None, task=task, size=size, steps=steps
            )
        for gigabytes, host in TIERS.items():
            name = f"{gigabytes} GB" + ("" if task == "drawing" else ", editing")
            made[name] = tiers.Tier(
                **common,
                gigabytes=gigabytes,
                host_gigabytes=host,
                task=task,
                size=size,
                steps=steps,
                forced=given.tiny and gigabytes <= 8,
            )
    made["16 GB, 2048x2048"] = tiers.Tier(
        **common,
        gigabytes=16,
        host_gigabytes=TIERS[16],
        task="drawing",
        size=2 * size,
        steps=given.large_steps,
    )
    return made


def in_new_process(tier: tiers.Tier, seconds: float) -> dict[str, Any]:
    """What the row's process says; an error as text."""
    command = [sys.executable, __file__, "--measure", json.dumps(asdict(tier))]
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip().splitlines()[-1][:600]}
    return json.loads(done.stdout.splitlines()[-1])


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Write the checkpoint and measure all rows within the time."""
    from full_size_checkpoint import write_checkpoint

    start = time.perf_counter()
    device = given.device or default_device()
    folder = Path(given.folder or tempfile.mkdtemp(prefix="full-size-"))
    result: dict[str, Any] = {**about("memory", given, device), "rows": {}}
    try:
        if not (folder / "model_index.json").exists():
            write_checkpoint(folder, tiny=given.tiny, editing=True)
        result["written_seconds"] = round(time.perf_counter() - start, 1)
        made = rows(given, str(folder), device)
        for name in given.only or made:
            left = given.budget - (time.perf_counter() - start)
            longest = max((row["wall"] for row in result["rows"].values() if "wall" in row), default=0)
            if left < 1.2 * longest:
                result["rows"][name] = {"skipped": f"{left:.0f} s left"}
                continue
            begun = time.perf_counter()
            row = {**in_new_process(made[name], left), "wall": round(time.perf_counter() - begun, 1)}
            result["rows"][name] = row
            note(given.file, name, row)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    compare(result["rows"])
    return result | {"wall_seconds": round(time.perf_counter() - start, 1)}


def compare(found: dict[str, dict[str, Any]]) -> None:
    """Seconds of each row over those of the resident row of its task, beside the target."""
    for name, row in found.items():
        resident = found.get("resident, editing" if name.endswith("editing") else "resident", {})
        if "seconds" not in row or "seconds" not in resident or row["size"] != resident["size"]:
            continue
        row["times_resident"] = round(row["seconds"] / resident["seconds"], 3)
        if row["gigabytes"] is not None:
            row["target_times"], row["target_host_gb"] = TARGETS[row["gigabytes"]], TIERS[row["gigabytes"]]


def on_the_cpu(given: argparse.Namespace) -> dict[str, Any]:
    """512 x 512 in 2 steps from a folder on disk, with `memory="auto"`, in a new process."""
    from full_size_checkpoint import write_checkpoint

    folder = Path(given.folder or tempfile.mkdtemp(prefix="full-size-"))
    result: dict[str, Any] = about("memory on the CPU", given, "cpu")
    try:
        if not (folder / "model_index.json").exists():
            write_checkpoint(folder, tiny=given.tiny)
        tier = tiers.Tier(
            folder=str(folder),
            device="cpu",
            gigabytes=given.cpu_gigabytes,
            host_gigabytes=None,
            task="drawing",
            size=64 if given.tiny else 512,
            steps=2,
        )
        row = in_new_process(tier, given.budget)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    return result | {"target_rss_gb": 18, "row": row}


def about(name: str, given: argparse.Namespace, device: str) -> dict[str, Any]:
    """What the figures are of."""
    import diffusers
    import torch
    import transformers

    hardware = torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu"
    return {
        "benchmark": name,
        "command": " ".join(["python", *sys.argv]),
        "size": "tiny" if given.tiny else "published",
        "device": hardware,
        "cores": os.cpu_count(),
        "memory_gb": tiers.gb(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
    }


def default_device() -> str:
    """CUDA if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def note(file: Path | None, name: str, row: dict[str, Any]) -> None:
    """Keep a row at once, should the time end before the others."""
    print(f"{name}: {json.dumps(row)}", file=sys.stderr)
    if file is not None:
        with file.open("a") as opened:
            opened.write(json.dumps({"row": name, **row}) + "\n")


def main() -> None:
    """Measure everything, or, in a new process, one row."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--tiny", action="store_true", help="the same layout with small models")
    arguments.add_argument("--cpu", action="store_true", help="a picture without a GPU, and what it took")
    arguments.add_argument("--quality", action="store_true", help="distances on the CPU and scores by format")
    arguments.add_argument("--folder", help="the checkpoint; written if it is not there, and kept")
    arguments.add_argument("--device", help="default: cuda if there is one")
    arguments.add_argument("--only", nargs="+", metavar="ROW", help="rows by name, such as resident '8 GB'")
    arguments.add_argument("--steps", type=int, default=50)
    arguments.add_argument("--large-steps", type=int, default=10, help="of 2048 x 2048")
    arguments.add_argument("--budget", type=float, default=540, help="seconds for everything")
    arguments.add_argument("--file", type=Path, help="rows are appended here as they come")
    arguments.add_argument("--cpu-gigabytes", type=float, default=24, help="what --cpu may use")
    arguments.add_argument(
        "--count", type=int, default=8, help="questions of each set, with --quality; 0: no scores"
    )
    arguments.add_argument("--model", default="embedded", help="that --quality packs")
    arguments.add_argument("--measure", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.measure:
        tiers.main(given.measure)
    elif given.quality:
        device = given.device or default_device()
        facts = about("quality by format", given, device)
        del facts["size"]
        found = quality.measure(given.model, given.count, device)
        print(json.dumps({**facts, "model": given.model, **found}))
    else:
        print(json.dumps(on_the_cpu(given) if given.cpu else run(given)))


if __name__ == "__main__":
    main()
