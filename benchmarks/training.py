"""How fast the trainer learns and what it takes: `python benchmarks/training.py`, one large GPU, random weights.

Sections, each a line of JSON as it is done; the last line is one JSON object with all of them:
  lora        adapters of rank 16 on a frozen base, by --base (bf16, int8, fp8): images a second, peak memory
  lora-peer   the same loop over diffusers' network, its weights ours
  full        every weight, with AdamW and with the 8-bit one: images a second, peak memory
Under torchrun (2 or 4 processes) only `full` is run, cut up by FSDP2; its images a second are those of all processes:
  torchrun --nproc-per-node 2 benchmarks/training.py --sections full
`--tiny` runs everything with a small network on any machine, to show that it runs; its figures say nothing.
"""

import argparse
import gc
import json
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import Kandinsky5Transformer3DModel as PeerNetwork
from torch import nn

from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.records import Conditioning
from kandinsky5.train.data.rows import Rows
from kandinsky5.train.rectified_flow import losses
from kandinsky5.train.replicas import Replicas, join_replicas, leave_replicas
from kandinsky5.train.settings import ObjectiveSettings, OptimiserSettings, TuningSettings
from kandinsky5.train.tuning.holders import ReplicatedWeights, ShardedWeights, Weights
from kandinsky5.train.tuning.learning import learning_parameters, pack_base
from kandinsky5.train.tuning.sharding import make_mesh, shard
from kandinsky5.train.tuning.stepper import Stepper

PUBLISHED = {
    "in_visual_dim": 16,
    "out_visual_dim": 16,
    "in_text_dim": 3584,
    "in_text_dim2": 768,
    "time_dim": 512,
    "model_dim": 2560,
    "ff_dim": 10240,
    "num_text_blocks": 2,
    "num_visual_blocks": 50,
    "axes_dims": (32, 48, 48),
}
TINY = {
    **PUBLISHED,
    "in_text_dim": 64,
    "in_text_dim2": 48,
    "time_dim": 32,
    "model_dim": 64,
    "ff_dim": 128,
    "num_visual_blocks": 2,
    "axes_dims": (8, 12, 12),
}
TARGETS = TuningSettings().targets
SECTIONS = ("lora", "lora-peer", "full")
WARM = 3


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
    for name, action in planned(options, device, replicas):
        try:
            row = {"section": name, **action()}
        except (RuntimeError, ValueError) as error:  # out of memory, or a packing this device does not have
            row = {"section": name, "failed": " ".join(str(error).split())[:200]}
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        done.append(row)
        if replicas.leads:
            print(json.dumps(row), flush=True)
    if replicas.leads:
        print(json.dumps({**facts, "sections": done, "times_of_peer": times_of_peer(done)}))
    leave_replicas()


def command_line() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument(
        "--base", nargs="+", choices=("bf16", "int8", "fp8", "int4"), default=["bf16", "int8", "fp8"]
    )
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--text", type=int, default=128, help="text tokens")
    parser.add_argument("--batch", type=int, default=1, help="rows of a forward pass")
    parser.add_argument("--steps", type=int, default=10, help="timed, after three that warm up")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--compile", action="store_true", help="compile each block, ours and the peer's")
    parser.add_argument("--no-checkpointing", action="store_true", help="keep activations")
    parser.add_argument("--tiny", action="store_true", help="a small network, anywhere")
    return parser


def planned(
    options: argparse.Namespace, device: torch.device, replicas: Replicas
) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """The sections as functions, in order."""
    found: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    alone = replicas.count == 1
    if "lora" in options.sections and alone:
        found += [(f"lora-{base}", lambda b=base: tune_adapter(options, device, b)) for base in options.base]
    if "lora-peer" in options.sections and alone:
        found.append(("lora-peer", lambda: tune_peer(options, device)))
    if "full" in options.sections:
        found += [
            (f"full-{name}", lambda n=name: tune_all(options, device, replicas, n))
            for name in ("adamw", "adamw8bit")
        ]
    return found


def tune_adapter(options: argparse.Namespace, device: torch.device, base: str) -> dict[str, Any]:
    """Ours: LoRA on a base of these bits."""
    network = build(Kandinsky5Transformer3DModel, options, torch.bfloat16)
    pack_base(network, base, device)
    network.to(device)
    tuning = TuningSettings(rank=options.rank, alpha=float(options.rank))
    learning = learning_parameters(network, tuning, torch.bfloat16, seed=0)
    return measure(network, ReplicatedWeights(learning, Replicas()), options, device, "adamw")


def tune_peer(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The same loop, data and optimiser over diffusers' network."""
    network = build(PeerNetwork, options, torch.bfloat16).to(device)
    tuning = TuningSettings(rank=options.rank, alpha=float(options.rank))
    learning = learning_parameters(network, tuning, torch.bfloat16, seed=0)
    return measure(PeerCall(network), ReplicatedWeights(learning, Replicas()), options, device, "adamw")


def tune_all(
    options: argparse.Namespace, device: torch.device, replicas: Replicas, optimiser: str
) -> dict[str, Any]:
    """Ours: every weight, cut up over the processes; one process is a line of one."""
    network = build(Kandinsky5Transformer3DModel, options, torch.float32)
    shard(network, make_mesh(device, 1), torch.bfloat16)
    weights = ShardedWeights(
        network, learning_parameters(network, TuningSettings(kind="full"), torch.bfloat16, 0)
    )
    row = measure(network, weights, options, device, optimiser)
    row["images_per_second"] = round(row["images_per_second"] * replicas.count, 3)
    return row


class PeerCall(nn.Module):
    """Diffusers' network under our call, which it takes but for the mask of padding."""

    def __init__(self, network: Any):
        super().__init__()
        self.network = network
        self.config = network.config

    def forward(self, encoder_attention_mask: None = None, **arguments: Any) -> Any:
        """See `Kandinsky5Transformer3DModel.forward`; latents in the dtype of its layers, which it does not cast."""
        arguments["hidden_states"] = arguments["hidden_states"].to(torch.bfloat16)
        arguments["timestep"] = arguments["timestep"].to(torch.bfloat16)
        return self.network(**arguments)

    def enable_gradient_checkpointing(self) -> None:
        """As the network's."""
        self.network.enable_gradient_checkpointing()

    def compile_repeated_blocks(self) -> None:
        """As the network's."""
        self.network.compile_repeated_blocks()


def build(kind: Any, options: argparse.Namespace, dtype: torch.dtype) -> Any:
    """A network with weights N(0, 0.02), also where it would start from zero."""
    torch.manual_seed(0)
    network = kind(**(TINY if options.tiny else PUBLISHED))
    precise = set(Kandinsky5Transformer3DModel._keep_in_fp32_modules)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.normal_(std=0.02)
            if not precise & set(name.split(".")):  # as a checkpoint is loaded
                parameter.data = parameter.data.to(dtype)
    return network


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
    network: Any, weights: Weights, options: argparse.Namespace, device: torch.device, optimiser: str
) -> dict[str, Any]:
    """Images a second of this process, and its peak memory, over whole steps."""
    network.train()
    if not options.no_checkpointing:
        network.enable_gradient_checkpointing()
    if options.compile:
        network.compile_repeated_blocks()
    steps = WARM + options.steps
    stepper = Stepper(weights, OptimiserSettings(name=optimiser, warmup=1), steps=steps, ema=0.0)
    rows, objective = make_rows(options, network.config), ObjectiveSettings()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began, loss = 0.0, torch.zeros(())
    for step in range(steps):
        if step == WARM:
            wait(device)
            began = time.perf_counter()
        weights.before_backward(True)
        loss = losses(network, rows, objective, device, torch.bfloat16)[0].mean()
        loss.backward()
        weights.take_gradients()
        stepper()
    wait(device)
    seconds = time.perf_counter() - began
    row = {
        "images_per_second": round(options.steps * options.batch / seconds, 3),
        "seconds_per_step": round(seconds / options.steps, 4),
        "last_loss": round(float(loss), 4),
    }
    if device.type == "cuda":
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return row


def wait(device: torch.device) -> None:
    """Until the device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def times_of_peer(rows: list[dict[str, Any]]) -> float | None:
    """Our images a second in bfloat16 over the peer's."""
    rates = {row["section"]: row.get("images_per_second") for row in rows}
    ours, theirs = rates.get("lora-bf16"), rates.get("lora-peer")
    return round(ours / theirs, 3) if ours and theirs else None


if __name__ == "__main__":
    main()
