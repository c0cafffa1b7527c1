"""Of a packed network that is placed, host memory holds what waits there and nothing of what was before.

Counted page by page, by the kernel, at the addresses where the packed weights were.
"""

import ctypes
import gc
import mmap
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from kandinsky5.memory.formats import pack
from kandinsky5.memory.overlap import which_stay
from kandinsky5.memory.parts import Model
from kandinsky5.memory.placing import _place_one
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.streaming import HostBytes, Unit
from kandinsky5.streaming.conveyor import ATTRIBUTE
from tests.model.tiny import config_of, drawn

from .conftest import DTYPE

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="glibc's own memory"
)

CPU = torch.device("cpu")
WIDTH = 256
"""A weight of 64 KB: many pages, and below every threshold from which the C library maps memory by itself."""


def parts_of(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors of one, packed or not."""
    if not is_traceable_wrapper_subclass(tensor):
        return [tensor]
    return [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]  # type: ignore[attr-defined]


def places_of(tensors: list[torch.Tensor]) -> list[tuple[int, int]]:
    """(first byte, bytes) of each that is more than a few pages."""
    found = [(t.data_ptr(), t.numel() * t.element_size()) for tensor in tensors for t in parts_of(tensor)]
    return [(start, size) for start, size in found if size >= 4 * mmap.PAGESIZE]


def there(places: list[tuple[int, int]]) -> int:
    """Bytes of whole pages of these places that are in memory, whoever holds them."""
    libc = ctypes.CDLL(None)
    count = 0
    for start, size in places:
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        pages = (start + size - first) // mmap.PAGESIZE
        flags = (ctypes.c_ubyte * pages)()
        mapped = libc.mincore(ctypes.c_void_p(first), ctypes.c_size_t(pages * mmap.PAGESIZE), flags) == 0
        count += sum(flag & 1 for flag in flags) if mapped else 0
    return count * mmap.PAGESIZE


def packed_network() -> Kandinsky5Transformer3DModel:
    """In int8."""
    config = config_of("t2i", num_visual_blocks=6, model_dim=WIDTH, ff_dim=WIDTH)
    network = drawn(Kandinsky5Transformer3DModel(**config), 0)
    for parameter in network.parameters():
        parameter.data = parameter.data.to(DTYPE)
    pack(network, "transformer", "int8", CPU)
    return network  # type: ignore[return-value]


@pytest.mark.parametrize("resident", [0, 2])
def test_nothing_is_there_twice_after_placing(resident):
    network = packed_network()
    stays = which_stay(len(network.visual_transformer_blocks), resident)
    blocks = [block for block, stay in zip(network.visual_transformer_blocks, stays, strict=True) if not stay]
    weights = [p for block in blocks for p in block.parameters() if is_traceable_wrapper_subclass(p)]
    before = places_of(weights)
    del weights
    size = sum(size for _, size in before)
    assert len(before) == 10 * len(blocks) and there(before) > 0.8 * size
    plan = SimpleNamespace(resident_blocks=resident, network_origin="host", slots=2, small_stream=True)
    _place_one("transformer", network, plan, CPU, None)  # type: ignore[arg-type]
    gc.collect()
    assert there(before) < 0.1 * size
    units = [
        unit for module in network.modules() for _, unit in [getattr(module, ATTRIBUTE, (None, None))] if unit
    ]
    waiting = {
        storage.data_ptr(): storage.nbytes()
        for unit in units
        for storage in (leaf.tensor.untyped_storage() for leaf in unit.leaves)
    }
    assert len(waiting) == len(units)
    assert sum(waiting.values()) == pytest.approx(predicted(network, resident), rel=0.02)


def predicted(network: Kandinsky5Transformer3DModel, resident: int) -> int:
    """What a plan says of such a network: its streamed blocks, modulation and text blocks."""
    with torch.device("meta"):
        empty = Kandinsky5Transformer3DModel.from_config(network.config)
    model = Model(
        components={"transformer": empty}, dtypes={"transformer": DTYPE}, stored={"transformer": "bf16"},
        mapped=frozenset({"transformer"}), is_narrow=True,
    )  # fmt: skip
    part = model.part("transformer", "int8")
    return sum(part.groups["blocks"][resident:]) + part.group("modulation") + part.group("text")


def test_never_more_than_one_unit_is_there_twice():
    layers = nn.ModuleList(
        nn.Sequential(*(nn.Linear(WIDTH, WIDTH // 2, dtype=DTYPE) for _ in range(4))) for _ in range(8)
    )
    before = places_of(list(layers.parameters()))
    left: list[int] = []

    class Watched(Unit):
        def rest_in(self, run: torch.Tensor) -> None:
            left.append(there(before))
            super().rest_in(run)

    units = [Watched(str(i), layer) for i, layer in enumerate(layers)]
    HostBytes(units, lock=False)
    whole = left[0]
    for done, still in enumerate(left):
        assert still < whole * (1 - done / len(units)) + 0.5 * whole / len(units)
