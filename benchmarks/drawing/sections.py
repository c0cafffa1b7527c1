"""Whole networks measured: loops, errors, sizes, batches, editing, the stages around them, and a new process.

Comes in: a `Bench`. Goes out: rows. Refuses to know: in which order, and in how much time.
"""

import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drawing.bench import FEW, FEW_LIGHT, LIGHT_TOKENS, TIMES, Bench, distance, full_size_pipeline, work
from drawing.ledger import Row, median_seconds, peak_gib, pooled_bytes, reset_peak, seconds_of
from drawing.ways import copied, editing_network, in_float32, ours
from kandinsky5.autoencoder import prepare_for_speed, undo
from kandinsky5.geometry import NATIVE_SIZES
from kandinsky5.latents import decode
from kandinsky5.model.quantising import float8_layers
from kandinsky5.model.scaled import ScaledLinear

PROGRAM = Path(__file__).parents[1] / "generate.py"


def truth(bench: Bench) -> Iterator[Row]:
    """Of a float32 copy, which is gone afterwards."""
    network = copied(bench.network).float()
    way, scene = ours("float32", network, None), in_float32(bench.scene())
    seconds = seconds_of(
        lambda: bench.true_velocities.extend(bench.velocities(way, in_float32)), bench.device
    )
    bench.true_latents = way.loop(scene, bench.truth_steps)
    yield {
        "dtype": "float32",
        "ms_a_row": 1000 * seconds / len(bench.true_velocities),
        "steps": bench.truth_steps,
    }


def loop(bench: Bench, name: str) -> Iterator[Row]:
    """The whole loop by one way, with what it costs the first time, its memory and its error."""
    way, scene = bench.way(name), bench.scene()
    counted = [0]
    handle = way.network.register_forward_pre_hook(
        lambda _m, _a, kwargs: counted.__setitem__(0, counted[0] + len(kwargs["hidden_states"])),
        with_kwargs=True,
    )
    first = seconds_of(lambda: way.loop(scene, FEW), bench.device)
    handle.remove()
    apart = [
        distance(found, truth)
        for truth, found in zip(bench.true_velocities, bench.velocities(way), strict=False)
    ]
    errors = {
        "velocity_error": sum(apart) / len(apart) if apart else None,
        "velocity_errors": [round(error, 4) for error in apart],
        "run_error": None
        if bench.true_latents is None
        else distance(way.loop(scene, bench.truth_steps), bench.true_latents),
    }
    again = seconds_of(lambda: way.loop(scene, FEW), bench.device)
    own = _bytes_of(way.network)
    reset_peak(bench.device)
    held = torch.cuda.memory_allocated(bench.device) if bench.device.type == "cuda" else 0
    graphs = len(getattr(getattr(way.network, "fast_path", None), "replays", None) or ())
    own += pooled_bytes(bench.device) if graphs else 0
    repeats = 1 if again / FEW * bench.steps > 15 else bench.repeats
    times = [seconds_of(lambda: way.loop(scene, bench.steps), bench.device) for _ in range(repeats)]
    peak = peak_gib(bench.device)
    seconds = sorted(times)[len(times) // 2]
    yield {
        "way": name,
        "seconds": seconds,
        "all_seconds": [round(t, 3) for t in times],
        "ms_an_evaluation": 1000 * seconds / (2 * bench.steps),
        "teraflops": work(bench, scene) * 2 * bench.steps / seconds,
        "rows": counted[0] * bench.steps // FEW,
        "first_extra_seconds": first - again,
        "peak_gib": None if peak is None else round(peak - held / 2**30 + own / 2**30, 2),
        "graphs": graphs,
        **errors,
    }


def layers(bench: Bench) -> Iterator[Row]:
    """Error of each float8 layer's result on what it is given in an exact forward; a row a kind of layer."""
    errors: dict[str, list[float]] = {}

    def compare(name: str, module: Any, args: tuple, result: Tensor) -> None:
        kind = name.split(".", 2)[2]
        errors.setdefault(kind, []).append(distance(ScaledLinear.of(module)(args[0]), result))

    handles = [
        getattr(parent, leaf).register_forward_hook(partial(compare, name))
        for name, parent, leaf in float8_layers(bench.network)
    ]
    try:
        ours("layers", bench.network, None).velocity(bench.scene(), TIMES[1])
    finally:
        for handle in handles:
            handle.remove()
    for kind, found in errors.items():
        yield {
            "layer": kind,
            "mean": sum(found) / len(found),
            "worst": max(found),
            "each": [round(error, 5) for error in found],
        }


def profile(bench: Bench, name: str) -> Iterator[Row]:
    """The kernels of a loop of `FEW` steps, and how the time is shared."""
    way, scene = bench.way(name), bench.scene()
    found = _kernels(partial(way.loop, scene, FEW), bench)
    whole = sum(entry[0] for entry in found) or 1
    shares = {"products": 0.0, "attention": 0.0, "fused kernels": 0.0, "rest": 0.0}
    for microseconds, _, key in found:
        shares[_sort_of(key)] += microseconds / whole
    yield {"way": name, "shares": {sort: round(share, 4) for sort, share in shares.items()}}
    yield from _longest(found, 14)


def sizes(bench: Bench, names: tuple[str, ...]) -> Iterator[Row]:
    """Native sizes, a quarter of them, and other prompts: seconds more the first time, speed after.

    The last prompt is guided by a short one, as an empty negative prompt is, so that a mask is needed.
    """
    smaller = (bench.size // 2, bench.size // 2)
    shapes = [(bench.size, bench.size // 2), smaller] if bench.tiny else [*NATIVE_SIZES, smaller]
    wanted: list[dict[str, int]] = [{"width": width, "height": height} for width, height in shapes]
    wanted += [{"tokens": bench.tokens // 2 + 1}, {"negative_tokens": 3}]
    for name in names:
        way = bench.way(name)
        for changes in wanted:
            scene = bench.scene(**changes)
            steps = FEW if scene.tokens > LIGHT_TOKENS else FEW_LIGHT
            first = seconds_of(lambda: way.loop(scene, steps), bench.device)  # noqa: B023
            seconds = median_seconds(lambda: way.loop(scene, steps), bench.device, 3, warm_ups=0)  # noqa: B023
            yield {
                "way": name,
                **changes,
                "ms_a_step": 1000 * seconds / steps,
                "teraflops": work(bench, scene) * 2 * steps / seconds,
                "first_extra_seconds": first - seconds,
            }


def batches(bench: Bench, names: tuple[str, ...]) -> Iterator[Row]:
    """Several pictures in one run, and one whose guidance branches are evaluated in turn."""
    for name in names:
        for images, apart in ((1, True), (1, False), (2, False), (4, False)):
            scene = bench.scene(images=images, apart=apart)
            seconds = median_seconds(lambda: bench.way(name).loop(scene, FEW), bench.device, 3)  # noqa: B023
            yield {
                "way": name,
                "pictures": images,
                "branches": "in turn" if apart else "together",
                "ms_a_step_and_picture": 1000 * seconds / FEW / images,
            }


def editing(bench: Bench) -> Iterator[Row]:
    """An editing checkpoint beside a text-to-image one, with as many more tokens as a source picture has."""
    network = editing_network(bench.network)
    more = 8 if bench.tiny else 324
    for label, edited, tokens in (
        ("text to image", bench.network, bench.tokens),
        ("editing", network, bench.tokens),
        ("editing, with the picture's text tokens", network, bench.tokens + more),
    ):
        way = ours(label, edited, "exact")
        scene = bench.scene(edited, tokens=tokens)
        seconds = median_seconds(lambda: way.loop(scene, FEW), bench.device, 3)  # noqa: B023
        yield {"what": label, "ms_a_step": 1000 * seconds / FEW}


def stages(bench: Bench) -> Iterator[Row]:
    """Two prompts to embeddings; latents to a picture, as diffusers does and fast, with errors against float32."""
    pipeline = bench.pipeline or full_size_pipeline(bench)
    words = "a quiet harbour at dawn, fishing boats and gulls over still water, " * 4
    with torch.no_grad():
        seconds = median_seconds(lambda: pipeline.encode_prompt([words, ""]), bench.device, 5, warm_ups=2)
        lengths = pipeline.encode_prompt([words, ""])[2].diff().tolist()
        yield {"stage": "text encoding", "tokens": lengths, "seconds": seconds}
        latents = bench.scene().latents
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            truth = decode(latents, copy.deepcopy(pipeline.vae).float())
        for name, choose in (("ordinary", undo), ("fast", prepare_for_speed)):
            choose(pipeline.vae)
            decoded = partial(pipeline.finish, latents, "pt")
            reset_peak(bench.device)
            seconds = median_seconds(decoded, bench.device, 5, warm_ups=2)
            peak, error = peak_gib(bench.device), distance(decode(latents, pipeline.vae), truth)
            yield {"stage": f"decoding, {name}", "seconds": seconds, "peak_gib": peak, "error": error}
            yield from _longest(_kernels(decoded, bench), 10)


def warm_up(bench: Bench) -> Iterator[Row]:
    """In new processes, one after another; Triton's cache is empty for the first."""
    for mode in ("exact", "fp8"):
        with tempfile.TemporaryDirectory() as cache:
            for kept in (False, True):
                command = [sys.executable, str(PROGRAM), "--child", mode, "--size", str(bench.size)]
                command += ["--tokens", str(bench.tokens), "--device", str(bench.device)]
                done = subprocess.run(
                    command + (["--tiny"] if bench.tiny else []),
                    env={**os.environ, "TRITON_CACHE_DIR": cache},
                    capture_output=True,
                    text=True,
                    timeout=max(10, bench.ledger.left),
                )
                if done.returncode:
                    raise RuntimeError(done.stderr[-500:])
                yield {"mode": mode, "kept_cache": kept, **json.loads(done.stdout.splitlines()[-1])}


def child(bench: Bench, mode: str) -> Row:
    """Weights there, nothing run yet: seconds of the first step and of one after it."""
    bench.build()
    scene = bench.scene()
    torch.zeros(1, device=bench.device).item()
    start = time.perf_counter()
    way = ours(mode, bench.network, mode)
    made = time.perf_counter() - start
    first, after = (seconds_of(lambda: way.loop(scene, 1), bench.device) for _ in range(2))
    return {"into_the_mode_seconds": made, "first_step_seconds": first, "step_seconds": after}


def _kernels(function: Callable[[], Any], bench: Bench) -> list[tuple[float, int, str]]:
    """Microseconds, calls and name of each kernel that a call launches the second time, the longest first."""
    function()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        function()
        if bench.device.type == "cuda":
            torch.cuda.synchronize()
    kind = "device" if bench.device.type == "cuda" else "cpu"
    events = profiler.key_averages()
    return sorted(
        ((getattr(event, f"self_{kind}_time_total"), event.count, event.key) for event in events),
        reverse=True,
    )


def _longest(found: list[tuple[float, int, str]], count: int) -> Iterator[Row]:
    whole = sum(entry[0] for entry in found) or 1
    for microseconds, calls, key in found[:count]:
        share = round(microseconds / whole, 4)
        yield {"kernel": key[:90], "share": share, "calls": calls, "us_a_call": microseconds / calls}


def _bytes_of(network: torch.nn.Module) -> int:
    """Of its weights, each storage once."""
    tensors = [*network.parameters(), *network.buffers()]
    try:
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors
        }
        return sum(storages.values())
    except (RuntimeError, NotImplementedError):  # packed weights of torchao have no storage of their own
        return sum(tensor.nbytes for tensor in tensors)


def _sort_of(kernel: str) -> str:
    key = kernel.lower()
    if any(word in key for word in ("fmha", "flash", "sdpa", "attention", "_attend", "cudnn_generated")):
        return "attention"
    if any(word in key for word in ("_residual_norm", "_heads", "_row")) and "rowwise" not in key:
        return "fused kernels"
    if any(
        word in key for word in ("gemm", "nvjet", "cutlass", "cublas", "addmm", "::mm", "linear", "matmul")
    ):
        return "products"
    return "rest"
