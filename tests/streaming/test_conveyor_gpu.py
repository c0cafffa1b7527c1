"""On CUDA: streamed weights give the resident network's velocity bit for bit, from locked memory and from files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

from kandinsky5.checkpoint.weights import read_weights
from kandinsky5.model import four_bits
from kandinsky5.model.fast import FastPath, prepare_for_speed
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.streaming import Conveyor, FileBytes, HostBytes, release, settle
from kandinsky5.streaming.sources import exact_memory
from tests.model.tiny import config_of, drawn, inputs_for

from .test_conveyor import units_of

pytestmark = pytest.mark.gpu

WIDE: dict[str, Any] = {"model_dim": 1024, "ff_dim": 4096, "axes_dims": (16, 24, 24), "num_visual_blocks": 6}
"""Blocks of 40 MB, whose copies take long enough to be overtaken by a computation that does not wait."""


@pytest.fixture
def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def build() -> Kandinsky5Transformer3DModel:
    network = drawn(Kandinsky5Transformer3DModel(**config_of("t2i", **WIDE)))
    for parameter in network.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return network  # type: ignore[return-value]


def velocity(network: nn.Module, device: torch.device) -> torch.Tensor:
    inputs = inputs_for(network.config, height=32, width=32).to(torch.bfloat16)  # type: ignore[arg-type]
    moved = {
        name: tuple(x.to(device) for x in value)
        if isinstance(value, tuple) and isinstance(value[0], torch.Tensor)
        else value.to(device)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in inputs.arguments().items()
    }
    with torch.no_grad():
        return network(**moved).sample


def streamed(
    network: nn.Module, device: torch.device, slots: int, folder: Path | None = None, *, every: int = 1
) -> Conveyor:
    units = units_of(network)[::every]
    settle(network, device, without=[unit.module for unit in units])
    for block in network.visual_transformer_blocks:  # type: ignore[union-attr]
        settle(block.visual_modulation, device)
    if folder is None:
        return Conveyor(units, HostBytes(units, lock=True), device=device, slots=slots)
    stored = read_weights(folder, "diffusers")
    by_unit = {u: {leaf.name: stored[f"{u.name}.{leaf.name}"] for leaf in u.leaves} for u in units}
    return Conveyor(units, FileBytes(by_unit), device=device, slots=slots)


@pytest.mark.parametrize("slots", [2, 3, 6])
@pytest.mark.parametrize("fast", [False, True], ids=["ordinary", "fast"])
@pytest.mark.parametrize("origin", ["host", "files"])
def test_the_resident_velocity(cuda, tmp_path, slots, fast, origin):
    network = build()
    network.save_pretrained(tmp_path)
    if fast:
        prepare_for_speed(network)
        network.fast_path = FastPath()
    resident = build().to(cuda)
    if fast:
        prepare_for_speed(resident)
        resident.fast_path = FastPath()
    expected = velocity(resident, cuda)
    conveyor = streamed(network, cuda, slots, tmp_path if origin == "files" else None)
    for _ in range(4):
        assert torch.equal(velocity(network, cuda), expected)
    release(network)
    assert torch.equal(velocity(network, cuda), expected)
    conveyor.close()


@pytest.mark.parametrize("fast", [False, True], ids=["ordinary", "fast"])
def test_blocks_stay_between_those_that_come(cuda, fast):
    network, resident = build(), build().to(cuda)
    streamed(network, cuda, 2, every=2)
    for one in (network, resident) if fast else ():
        prepare_for_speed(one)
        one.fast_path = FastPath()
    expected = velocity(resident, cuda)
    for _ in range(4):
        assert torch.equal(velocity(network, cuda), expected)


def test_the_device_holds_no_more_than_the_slots(cuda):
    network = build()
    conveyor = streamed(network, cuda, 2)
    ends = torch.cuda.memory_allocated(cuda)
    conveyor.arrive(conveyor.units[0])
    assert torch.cuda.memory_allocated(cuda) - ends <= 2 * conveyor.slot_bytes + 2**20
    conveyor.depart(conveyor.units[0])
    release(network)
    assert torch.cuda.memory_allocated(cuda) - ends <= 2**20


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig(), Float8WeightOnlyConfig()], ids=["int8", "float8"])
def test_packed_weights(cuda, config):
    network, resident = build(), build()
    for one in (network, resident):
        for block in one.visual_transformer_blocks:
            for part in (block.self_attention, block.cross_attention, block.feed_forward):
                quantize_(part, config)
    settle(resident, cuda)
    expected = velocity(resident, cuda)
    streamed(network, cuda, 2)
    for _ in range(3):
        assert torch.equal(velocity(network, cuda), expected)


def test_four_bits(cuda):
    network, resident = build(), build()
    names = [
        f"visual_transformer_blocks.{i}.{layer}"
        for i in range(WIDE["num_visual_blocks"])
        for layer in ("self_attention.to_query", "feed_forward.in_layer", "feed_forward.out_layer")
    ]
    for one in (network, resident):
        four_bits.pack(one, names, (), cuda)
    settle(resident, cuda)
    expected = velocity(resident, cuda)
    streamed(network, cuda, 2)
    for _ in range(3):
        assert torch.equal(velocity(network, cuda), expected)


def test_after_running_out_of_memory_the_next_run_works(cuda):
    network = build()
    streamed(network, cuda, 2)
    expected = velocity(network, cuda)
    attention = network.visual_transformer_blocks[3].cross_attention
    processor = attention.processor

    def fail(*_: object) -> None:
        torch.empty(2**50, dtype=torch.uint8, device=cuda)

    attention.processor = fail
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            velocity(network, cuda)
    attention.processor = processor
    assert torch.equal(velocity(network, cuda), expected)


def test_locked_memory_is_of_the_size_it_was_asked_for(cuda):
    before = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0)
    memory = exact_memory(5 * 2**20 + 7, lock=True)
    memory[:] = 3
    there = memory.to(cuda, non_blocking=True)
    torch.cuda.synchronize()
    assert int(there.sum(dtype=torch.int64)) == 3 * len(memory)
    assert torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) == before
    del memory
    again = exact_memory(5 * 2**20 + 7, lock=True)  # and it can be locked anew after it was let go
    assert len(again) == 5 * 2**20 + 7
