"""Seconds from `from_pretrained` to all weights on the device, from the page cache, and host memory on the way.

    python benchmarks/loading.py [--tiny] [--folder DIR] [--device cuda] [--only WAY ...]

Writes a random checkpoint of the published size (`full_size_checkpoint`), reads it once so that it is in the page
cache, and loads it in a new process for each way below, ours and diffusers'. Counted: the load and the move, with the
device synchronised. Not counted: imports, and the device's own start. Anonymous host memory is looked at every 5 ms;
mapped files are page cache and not counted. A way is skipped, and listed, when the time left does not allow it. The
target is judged on the way that loads all of the checkpoint; the others are beside it. The last line is JSON.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
TARGET_SECONDS = 15
TARGET_WAY = "ours, all parts"
"""The only one of ours that brings all 29 GB to the device; the others leave 2.4 GB on disk."""

BUDGET_SECONDS = 540
"""So that writing, reading and all ways fit one command of ten minutes."""

WAYS = {
    TARGET_WAY: "from_pretrained(dtype=bfloat16, text_encoder_parts=[vision, head]).to(device)",
    "ours": "as documented: from_pretrained(dtype=bfloat16).to(device)",
    "diffusers": "its class, the same call",
    "ours, stored dtypes": "from_pretrained().to(device)",
    "ours, device_map": "from_pretrained(device_map=device)",
    "diffusers, device_map": "its class, with dtype=bfloat16",
}
"""In order of importance, for a run that is short of time."""


def load(way: str, folder: str, device: str) -> Any:
    """The pipeline of one way, on its device."""
    import torch

    arguments: dict[str, Any] = {"dtype": torch.bfloat16}
    if way.startswith("diffusers"):
        from diffusers import Kandinsky5T2IPipeline as Pipeline
    else:
        from kandinsky5 import Kandinsky5T2IPipeline as Pipeline
    if way == "ours, stored dtypes" or way == "ours, device_map":
        arguments = {}
    if way == TARGET_WAY:
        arguments["text_encoder_parts"] = ["vision", "head"]
    if way.endswith("device_map"):
        return Pipeline.from_pretrained(folder, device_map=device, **arguments)
    return Pipeline.from_pretrained(folder, **arguments).to(device)


def measure(way: str, folder: str, device: str) -> dict[str, Any]:
    """In this process: load, and tell seconds, gigabytes, and how long our checks took."""
    import torch
    from diffusers import Kandinsky5T2IPipeline as Peer

    import kandinsky5.model.loading
    import kandinsky5.pipelines.base
    from kandinsky5 import Kandinsky5T2IPipeline

    assert Peer is not Kandinsky5T2IPipeline
    torch.zeros(1, device=device)
    checks: dict[str, float] = {}
    for module, name in (
        (kandinsky5.pipelines.base, "check_folder"),
        (kandinsky5.pipelines.base, "check_finite"),
        (kandinsky5.model.loading, "check_finite"),
        (kandinsky5.model.loading, "check_arrived"),
        (kandinsky5.pipelines.base, "check_arrived"),
    ):
        setattr(module, name, timed(getattr(module, name), checks))
    before, seen, done = anonymous_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            seen.append(anonymous_bytes() - before)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    pipeline = load(way, folder, device)
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    weights = [parameter for name in MODELS for parameter in getattr(pipeline, name).parameters()]
    assert {parameter.device.type for parameter in weights} == {torch.device(device).type}
    return {
        "seconds": round(seconds, 2),
        "weights_gb": round(sum(p.numel() * p.element_size() for p in weights) / 1e9, 3),
        "peak_anonymous_gb": round(max(seen) / 1e9, 3),
        "device_gb": round(torch.cuda.max_memory_allocated() / 1e9, 3) if device.startswith("cuda") else None,
        "check_seconds": {name: round(value, 3) for name, value in checks.items()},
    }


def timed(function: Callable[..., Any], into: dict[str, float]) -> Callable[..., Any]:
    """The function, whose seconds are added up."""

    def call(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            name = function.__name__
            into[name] = into.get(name, 0.0) + time.perf_counter() - start

    return call


def anonymous_bytes() -> int:
    """Memory of this process that is no file's."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon")))


def into_page_cache(folder: Path) -> float:
    """Read all weights once; seconds."""

    def read(file: Path) -> None:
        buffer = bytearray(2**24)
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass

    start = time.perf_counter()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, folder.rglob("*.safetensors")))
    return round(time.perf_counter() - start, 1)


def in_new_process(way: str, folder: Path, device: str, seconds: float) -> dict[str, Any]:
    """What `measure` says there; an error as text."""
    command = [sys.executable, __file__, "--measure", way, "--folder", str(folder), "--device", device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {seconds:.0f} s"}
    said = (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:400]
    if done.returncode:
        return {"error": f"ended with {done.returncode}: {said}"}
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        return {"error": f"no result: {said}"}


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Write, warm and measure all ways within the time."""
    import diffusers
    import torch
    import transformers
    from full_size_checkpoint import write_checkpoint

    start = time.perf_counter()
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    folder = Path(given.folder or tempfile.mkdtemp(prefix="full-size-"))
    result: dict[str, Any] = {
        "benchmark": "loading",
        "size": "tiny" if given.tiny else "published",
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "versions": {m.__name__: m.__version__ for m in (torch, diffusers, transformers)},
        "cores": os.cpu_count(),
    }
    try:
        if not (folder / "model_index.json").exists():
            write_checkpoint(folder, tiny=given.tiny)
            os.sync()  # or the disk is still written to while loads are measured
        files = list(folder.rglob("*.safetensors"))
        result |= {
            "written_seconds": round(time.perf_counter() - start, 1),
            "stored_gb": round(sum(file.stat().st_size for file in files) / 1e9, 3),
            "files": len(files),
            "read_seconds": into_page_cache(folder),
            "ways": {},
        }
        for way in given.only or WAYS:
            begun = time.perf_counter()
            left = given.budget - (begun - start)
            if left < 1.3 * max((w["wall"] for w in result["ways"].values() if "wall" in w), default=0):
                result["ways"][way] = {"skipped": f"{left:.0f} s left"}
                continue
            measured = in_new_process(way, folder, device, left)
            result["ways"][way] = {**measured, "wall": round(time.perf_counter() - begun, 1)}
            print(f"{way}: {json.dumps(measured)}", file=sys.stderr)
    finally:
        if given.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    seconds = {way: found["seconds"] for way, found in result["ways"].items() if "seconds" in found}
    if {"ours", "diffusers"} <= seconds.keys():
        result["times_faster_than_diffusers"] = round(seconds["diffusers"] / seconds["ours"], 2)
    result |= judged(seconds)
    return result | {"wall_seconds": round(time.perf_counter() - start, 1)}


def judged(seconds: dict[str, float]) -> dict[str, Any]:
    """What the seconds of each way say of the target; None where the way that counts was not measured."""
    whole = seconds.get(TARGET_WAY)
    return {
        "target_seconds": TARGET_SECONDS,
        "target_way": TARGET_WAY,
        "ours_within_target": None if whole is None else whole <= TARGET_SECONDS,
    }


def main() -> None:
    """Measure everything, or, in the new process, one way."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--tiny", action="store_true", help="the same layout with small models")
    arguments.add_argument("--folder", help="written if it is not there, and kept")
    arguments.add_argument("--device", help="default: cuda if there is one")
    arguments.add_argument(
        "--only", nargs="+", choices=WAYS, help="\n".join(f"{w}: {t}" for w, t in WAYS.items())
    )
    arguments.add_argument("--budget", type=float, default=BUDGET_SECONDS, help="seconds for everything")
    arguments.add_argument("--measure", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.folder, given.device)))
    else:
        print(json.dumps(run(given)))


if __name__ == "__main__":
    main()
