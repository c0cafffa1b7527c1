"""Weights that come and go: the same velocity bit for bit, never more than the slots, and nothing lost on the way."""

import copy
import pickle
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import nn
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.checkpoint.weights import read_weights
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.model import four_bits
from kandinsky5.model.fast import FastPath, prepare_for_speed
from kandinsky5.model.products import joined
from kandinsky5.model.quantising import quantise
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.streaming import Conveyor, FileBytes, HostBytes, Unit, in_turn, is_streamed, release, sources
from kandinsky5.streaming.sources import exact_memory
from tests.model.tiny import config_of, drawn, inputs_for

CPU = torch.device("cpu")
BLOCKS = 5


def build(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> Kandinsky5Transformer3DModel:
    network = drawn(Kandinsky5Transformer3DModel(**config_of("t2i", num_visual_blocks=BLOCKS)), seed)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
    return network  # type: ignore[return-value]


def velocity(network: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return network(**inputs_for(network.config).to(torch.bfloat16).arguments()).sample  # type: ignore[operator, arg-type]


def units_of(network: nn.Module, first: int = 0) -> list[Unit]:
    blocks = list(network.visual_transformer_blocks)[first:]  # type: ignore[arg-type]
    return [
        Unit(f"visual_transformer_blocks.{first + i}", block, without=[block.visual_modulation])
        for i, block in enumerate(blocks)
    ]


def from_host(network: nn.Module, *, first: int = 0, slots: int = 2) -> Conveyor:
    units = units_of(network, first)
    return Conveyor(units, HostBytes(units, lock=False), device=CPU, slots=slots)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    build().save_pretrained(tmp_path / "network")
    return tmp_path / "network"


def from_files(network: nn.Module, folder: Path, *, slots: int = 2) -> Conveyor:
    units = units_of(network)
    stored = read_weights(folder, "diffusers")
    by_unit = {
        unit: {leaf.name: stored[f"{unit.name}.{leaf.name}"] for leaf in unit.leaves} for unit in units
    }
    return Conveyor(units, FileBytes(by_unit), device=CPU, slots=slots)


@pytest.mark.parametrize("slots", [1, 2, 3, 9])
@pytest.mark.parametrize("fast", [False, True], ids=["ordinary", "fast"])
def test_the_same_velocity_from_host_memory(slots, fast):
    network, expected = build(), velocity(build())
    if fast:
        prepare_for_speed(network)
        network.fast_path = FastPath()
        expected = velocity(network)
    conveyor = from_host(network, slots=slots)
    for _ in range(3):
        assert torch.equal(velocity(network), expected)
    assert len(conveyor._slots) == min(max(slots, 2), BLOCKS)
    with torch.no_grad():
        assert network.fast_path is None or network.fast_path.obstacle(network) is None


def test_some_blocks_stay(folder):
    network, expected = build(), velocity(build())
    conveyor = from_host(network, first=3)
    assert torch.equal(velocity(network), expected)
    assert not hasattr(network.visual_transformer_blocks[0], "_conveyor") and is_streamed(network)
    assert {unit.name[-1] for unit in conveyor.units} == {"3", "4"}


def replaced(network: nn.Module) -> None:
    """Other tensors in place of some weights, as `fuse_lora(safe_fusing=True)` leaves them."""
    for block in network.visual_transformer_blocks:  # type: ignore[union-attr]
        block.feed_forward.in_layer.weight.data = block.feed_forward.in_layer.weight.data * 2


@pytest.mark.parametrize("already_used", [False, True])
def test_weights_that_were_replaced_in_memory_come_along(already_used):
    network, reference = build(), build()
    replaced(reference)
    conveyor = from_host(network)
    if already_used:
        velocity(network)
        conveyor.release()
    replaced(network)
    conveyor.release()  # a call that ended before its first step
    assert torch.equal(velocity(network), velocity(reference))
    assert torch.equal(velocity(network), velocity(reference)), "and once more, from where they rest now"


def test_weights_that_were_replaced_in_memory_are_not_read_from_files(folder):
    network = Kandinsky5Transformer3DModel.from_pretrained(folder)
    conveyor = from_files(network, folder)
    velocity(network)
    conveyor.release()
    replaced(network)
    for _ in range(2):
        with pytest.raises(RequestError, match=r"feed_forward\.in_layer\.weight.* was changed in memory"):
            velocity(network)
        conveyor.release()


@pytest.mark.parametrize("fast", [False, True], ids=["ordinary", "fast"])
def test_the_same_velocity_from_files(folder, fast):
    network = Kandinsky5Transformer3DModel.from_pretrained(folder)
    if fast:
        network.fast_path = FastPath()
    expected = velocity(network)
    conveyor = from_files(network, folder)
    for _ in range(3):
        assert torch.equal(velocity(network), expected)
    conveyor.close()
    assert torch.equal(velocity(network), expected) and not is_streamed(network)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_what_streams_is_not_copied(copied):
    network = build()
    from_host(network)
    with pytest.raises(RequestError, match="neither copied nor pickled: load the pipeline again"):
        copied(network)


def test_nobody_writes_to_a_slot_after_a_read_that_failed(folder, monkeypatch):
    """What came late would be there in place of what is read next."""
    real, running = sources._read, []

    def read(opened: int, target: memoryview, start: int, place: StoredTensor) -> None:
        running.append(place)
        if len(running) == 1:
            raise CheckpointError("no more")
        time.sleep(0.02)
        real(opened, target, start, place)
        running.remove(place)

    monkeypatch.setattr(sources, "_read", read)
    network = Kandinsky5Transformer3DModel.from_pretrained(folder)
    conveyor = from_files(network, folder)
    unit = conveyor.units[0]
    with pytest.raises(CheckpointError, match="no more"):
        conveyor._source.read(unit, torch.empty(unit.nbytes, dtype=torch.uint8))
    assert len(running) == 1


def test_bytes_are_counted_and_each_unit_comes_once_a_pass():
    network = build()
    conveyor = from_host(network)
    size = sum(unit.nbytes for unit in conveyor.units)
    velocity(network)
    first = conveyor.moved
    velocity(network)
    assert conveyor.moved - first == size, "the next pass finds its first unit there"
    assert size - 256 * 40 * BLOCKS < sum(
        tensor.nbytes for unit in conveyor.units for tensor in (leaf.tensor for leaf in unit.leaves)
    )


def test_slots_are_given_back_and_made_again():
    network, expected = build(), velocity(build())
    conveyor = from_host(network)
    velocity(network)
    release(network)
    assert conveyor._slots == []
    assert torch.equal(velocity(network), expected)


def test_at_rest_the_module_is_whole():
    network, plain = build(), build()
    from_host(network)
    velocity(network)
    assert {p.device.type for p in network.parameters()} == {"cpu"}
    for name, tensor in plain.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_what_is_written_into_host_memory_counts():
    network, plain = build(), build()
    from_host(network)
    for one in (network, plain):
        one.visual_transformer_blocks[2].feed_forward.in_layer.weight.data += 0.25
    assert torch.equal(velocity(network), velocity(plain))


def test_what_is_written_beside_the_files_is_refused(folder):
    network = Kandinsky5Transformer3DModel.from_pretrained(folder)
    from_files(network, folder)
    network.visual_transformer_blocks[2].feed_forward.in_layer.weight.data += 0.25
    with pytest.raises(RequestError, match=r"feed_forward.in_layer.weight.*changed in memory"):
        velocity(network)


def test_values_that_are_no_numbers_are_found_when_they_are_read(folder):
    network = Kandinsky5Transformer3DModel.from_pretrained(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors["visual_transformer_blocks.1.cross_attention.to_key.weight"][3, 3] = float("nan")
    save_file(tensors, folder / "changed.safetensors", metadata={"format": "pt"})
    (folder / "changed.safetensors").replace(file)
    from_files(network, folder)
    with pytest.raises(CheckpointError, match=r"1.cross_attention.to_key.weight.*not finite"):
        velocity(network)


def test_a_file_that_is_cut_off_later(folder):
    network = Kandinsky5Transformer3DModel.from_pretrained(folder)
    expected = velocity(network)
    from_files(network, folder)
    network = build()
    conveyor = from_files(network, folder)
    with (folder / "diffusion_pytorch_model.safetensors").open("r+b") as opened:
        opened.truncate(2000)
    with pytest.raises(CheckpointError, match="cut off while it was in use"):
        velocity(network)
    conveyor.close()
    assert torch.equal(velocity(network), expected), "and the module is what it was"


@pytest.mark.parametrize("fast", [False, True], ids=["ordinary", "fast"])
def test_after_a_failure_in_the_middle_the_next_run_works(fast):
    network, expected = build(), velocity(build())
    if fast:
        network.fast_path = FastPath()
        expected = velocity(network)
    from_host(network)
    attention = network.visual_transformer_blocks[2].cross_attention
    processor = attention.processor

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("no room in the middle")

    attention.processor = fail
    held = []
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError) as raised:
            velocity(network)
        held.append(raised)  # tracebacks that somebody keeps hold the generators that were cut off
    attention.processor = processor
    assert torch.equal(velocity(network), expected)


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig(), Float8WeightOnlyConfig()], ids=["int8", "float8"])
def test_packed_weights_come_in_parts(config):
    network, plain = build(), build()
    for one in (network, plain):
        for block in one.visual_transformer_blocks:
            for part in (block.self_attention, block.cross_attention, block.feed_forward):
                quantize_(part, config)
    from_host(network)
    assert torch.equal(velocity(network), velocity(plain))
    assert torch.equal(velocity(network), velocity(plain))


def test_four_bits_are_not_streamed_to_the_cpu():
    network = build()
    four_bits.pack(network, ["visual_transformer_blocks.1.self_attention.to_query"], (), CPU)
    with pytest.raises(RequestError, match=r"blocks.1 is in four bits, which are not streamed to the CPU"):
        from_host(network)


def test_our_float8_layers():
    network, plain = build(), build()
    for one in (network, plain):
        quantise(one)
        one.fast_path = FastPath(float8=True)
    from_host(network)
    assert torch.equal(velocity(network), velocity(plain))


def test_an_adapter_that_joins_a_streamed_network():
    network, plain = build(), build()
    from_host(network)
    for one in (network, plain):
        torch.manual_seed(4)
        one.add_adapter(LoraConfig(r=2, target_modules=["to_query", "in_layer"], init_lora_weights=False))
    assert torch.equal(velocity(network), velocity(plain))
    assert not torch.equal(velocity(network), velocity(build()))


def test_layers_that_were_laid_together_stay_so():
    network = build()
    prepare_for_speed(network)
    from_host(network)
    for block in in_turn(network.visual_transformer_blocks):
        attention = block.self_attention
        together = joined([attention.to_query.weight, attention.to_key.weight, attention.to_value.weight])
        assert together is not None and together.shape == (3 * 64, 64)


def test_memory_of_exactly_the_size():
    memory = exact_memory(3 * 4096 + 5, lock=False)
    assert memory.shape == (3 * 4096 + 5,) and memory.data_ptr() % 4096 == 0
    memory[:] = 7
    assert int(memory.sum()) == 7 * len(memory)
