"""Units brought to a few slots on the device, each before it is needed, and dropped after.

Comes in: units in the order of their use, where their bytes stay, and how many slots there are. Goes out: modules whose
tensors are on the device while they run. Hooks on a module's forward call it; whoever runs a module's layers without
its forward says so with `in_turn`. It holds at most its slots: no copy is begun that would need another.

On CUDA copies run on a stream of their own; a slot is written when the computation that read it is through, and read
when its copy is. The host waits for nothing but files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from kandinsky5.errors import RequestError
from kandinsky5.streaming.sources import FileBytes, HostBytes, exact_memory
from kandinsky5.streaming.unit import Unit

LEAST_SLOTS: Final = 2
"""One that is computed with and one that is filled; with one unit, one."""

ATTRIBUTE: Final = "_conveyor"
"""Of a module that is a unit."""


@dataclass(kw_only=True, eq=False)
class _Slot:
    """Memory for a unit. `arrived` and `used` are CUDA's events: its copy is through, its last reader is through."""

    buffer: Tensor
    staging: Tensor | None = None
    unit: Unit | None = None
    loading: Future[None] | None = None
    arrived: Any = None
    used: Any = None
    busy: bool = False


class Conveyor:
    """See the module.

    Args:
        units: in the order in which they are used, over and over.
        source: where their bytes stay.
        device: where they are computed with.
        slots: how many units are there at once; one is used, the others are filled ahead.

    Attributes:
        moved: bytes brought to the device so far.
    """

    def __init__(
        self, units: Sequence[Unit], source: HostBytes | FileBytes, *, device: torch.device, slots: int
    ):
        self.units = tuple(units)
        self.device = device
        self.moved = 0
        self.slot_bytes = max(unit.nbytes for unit in units)
        self.count = min(max(slots, LEAST_SLOTS), len(units))
        self._source = source
        self._slots: list[_Slot] = []
        self._stream: Any = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="conveyor")
        self._order = {id(unit): i for i, unit in enumerate(self.units)}
        self._hooks = [
            handle
            for unit in self.units
            for handle in (
                unit.module.register_forward_pre_hook(self._before),
                unit.module.register_forward_hook(self._after, always_call=True),
            )
        ]
        for unit in self.units:
            setattr(unit.module, ATTRIBUTE, (self, unit))
            unit.settle_scales(device)

    def arrive(self, unit: Unit) -> None:
        """The unit's tensors are on the device when this returns, or will be when the current stream comes to it."""
        slot = self._holding(unit) or self._load(unit, wanted=[unit])
        if slot.loading is not None:
            loading, slot.loading = slot.loading, None
            try:
                loading.result()
            except BaseException:
                slot.unit = None
                raise
        if slot.arrived is not None:
            torch.cuda.current_stream(self.device).wait_event(slot.arrived)
        slot.busy = True
        unit.put_in(slot.buffer)
        unit.bring_strays(self.device)
        ahead = self._following(unit)
        for following in ahead:
            if self._holding(following) is None and self._free([unit, *ahead]) is not None:
                self._load(following, wanted=[unit, *ahead])

    def depart(self, unit: Unit) -> None:
        """The unit has been used."""
        slot = self._holding(unit)
        unit.rest()
        if slot is not None and slot.busy:
            slot.busy = False
            if self.device.type == "cuda":
                slot.used = torch.cuda.current_stream(self.device).record_event()

    def release(self) -> None:
        """Give the slots back; the next arrival makes new ones."""
        for slot in self._slots:
            if slot.loading is not None:
                slot.loading.exception()  # wait for it; what went wrong is of no interest now
        if self._slots and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        for unit in self.units:
            unit.rest()
            unit.forget()
        self._slots.clear()

    def __reduce__(self) -> Any:
        """Refuse a copy or a pickle of a module that is a unit: slots and threads are this one's."""
        raise RequestError(
            "Weights that stream are neither copied nor pickled: load the pipeline again, or save it with "
            "save_pretrained."
        )

    def close(self) -> None:
        """Let the modules go: their tensors are at rest, and nobody brings them any more."""
        self.release()
        for handle in self._hooks:
            handle.remove()
        for unit in self.units:
            delattr(unit.module, ATTRIBUTE)
        self._worker.shutdown()

    # -- Slots ------------------------------------------------------------------------------------------------------

    def _holding(self, unit: Unit) -> _Slot | None:
        return next((slot for slot in self._slots if slot.unit is unit), None)

    def _following(self, unit: Unit) -> list[Unit]:
        """What comes next, as much of it as there are slots for."""
        at = self._order[id(unit)]
        return [self.units[(at + 1 + i) % len(self.units)] for i in range(self.count - 1)]

    def _free(self, wanted: Sequence[Unit]) -> _Slot | None:
        """A slot that nobody reads and that holds nothing that is wanted."""
        if len(self._slots) < self.count:
            self._slots.append(self._new_slot())
        return next(
            (
                slot
                for slot in self._slots
                if not slot.busy and (slot.unit is None or slot.unit not in wanted)
            ),
            None,
        )

    def _new_slot(self) -> _Slot:
        slot = _Slot(buffer=torch.empty(self.slot_bytes, dtype=torch.uint8, device=self.device))
        if self.device.type == "cuda":
            # What this memory was before may still be read by work that the current stream has before it.
            slot.used = torch.cuda.current_stream(self.device).record_event()
            self._stream = self._stream or torch.cuda.Stream(self.device)
            if isinstance(self._source, FileBytes):
                slot.staging = exact_memory(self.slot_bytes, lock=True)
        return slot

    def _load(self, unit: Unit, *, wanted: Sequence[Unit]) -> _Slot:
        """Begin to bring a unit into a slot."""
        slot = self._free(wanted)
        if slot is None:  # a forward was cut off, and nobody said that its unit is free
            for held in self._slots:
                if held.unit is not None:
                    self.depart(held.unit)
            slot = self._free(wanted)
            assert slot is not None
        if slot.loading is not None:
            slot.loading.exception()
        slot.unit, slot.loading = unit, None
        self.moved += unit.nbytes
        if isinstance(self._source, FileBytes):
            slot.loading = self._worker.submit(self._from_file, unit, slot)
        else:
            self._copy(self._source.run(unit), slot)
        return slot

    def _from_file(self, unit: Unit, slot: _Slot) -> None:
        assert isinstance(self._source, FileBytes)
        if slot.staging is None:
            self._source.read(unit, slot.buffer)
            return
        if slot.arrived is not None:
            slot.arrived.synchronize()  # the last copy out of the staging memory
        self._source.read(unit, slot.staging)
        self._copy(slot.staging[: unit.nbytes], slot)

    def _copy(self, run: Tensor, slot: _Slot) -> None:
        target = slot.buffer[: len(run)]
        if self.device.type != "cuda":
            target.copy_(run)
            return
        with torch.cuda.stream(self._stream):
            if slot.used is not None:
                self._stream.wait_event(slot.used)
            target.copy_(run, non_blocking=True)
            slot.arrived = self._stream.record_event()

    # -- Hooks ------------------------------------------------------------------------------------------------------

    def _before(self, module: nn.Module, _: Any) -> None:
        self.arrive(getattr(module, ATTRIBUTE)[1])

    def _after(self, module: nn.Module, *_: Any) -> None:
        self.depart(getattr(module, ATTRIBUTE)[1])


def in_turn(modules: Iterable[Any]) -> Iterator[Any]:
    """The modules, each on the device while it is the loop's; for whoever calls their layers and not them."""
    for module in modules:
        with _present(module):
            yield module


@contextmanager
def _present(module: nn.Module) -> Iterator[None]:
    conveyor, unit = getattr(module, ATTRIBUTE, (None, None))
    if conveyor is None:
        yield
        return
    conveyor.arrive(unit)
    try:
        yield
    finally:
        conveyor.depart(unit)


def is_arrival(hook: Callable[..., Any]) -> bool:
    """Whether a hook is a conveyor's."""
    return isinstance(getattr(hook, "__self__", None), Conveyor)


def is_streamed(module: nn.Module) -> bool:
    """Whether any part of a module is a unit."""
    return any(hasattr(part, ATTRIBUTE) for part in module.modules())


def streamed_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters of a module that come and go; what a unit leaves out is not among them."""
    units = [entry[1] for part in module.modules() if (entry := getattr(part, ATTRIBUTE, None))]
    return [parameter for unit in units for parameter in unit.parameters]


def release(module: nn.Module) -> None:
    """Give back the slots of all conveyors of a module's parts."""
    found = {id(entry[0]): entry[0] for part in module.modules() if (entry := getattr(part, ATTRIBUTE, None))}
    for conveyor in found.values():
        conveyor.release()
