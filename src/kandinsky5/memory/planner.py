"""Which plan: all that can be told apart are costed, those that do not fit fall out, the fastest is taken.

Comes in: sizes of parts, needs of a request, a machine. Goes out: plans, the best first, or a CapacityError that says
what is missing and what would fit. Pure arithmetic; nothing is allocated. Refuses to know: folders, pipelines.

A format or tiles change the picture, so they must pay for it: a plan's time is multiplied by their `PRICE`. So weights
are packed where streaming them as they are would be slower by more than that, and where nothing else fits.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Final

from kandinsky5.checkpoint.packing import PLAIN
from kandinsky5.errors import CapacityError
from kandinsky5.latents import TILE
from kandinsky5.memory.activations import CONVOLUTIONS, LIBRARIES, Needs, Sizes
from kandinsky5.memory.machine import Machine
from kandinsky5.memory.parts import Part
from kandinsky5.memory.plan import Origin, Plan, in_words

PRICE: Final[Mapping[str, float]] = MappingProxyType({"bf16": 1.0, "int8": 1.2, "fp8": 1.4, "nf4": 1.8})
"""What a network in a format must be faster by, to be taken where another fits too."""

ENCODER_PRICE: Final[Mapping[str, float]] = MappingProxyType(
    {"bf16": 1.0, "int8": 1.1, "fp8": 1.3, "nf4": 1.5}
)

TILES_PRICE: Final = 1.03

IN_TURN: Final = 1.05
"""Time of two passes of one row over that of one pass of two."""

UNPACKING: Final[Mapping[str, float]] = MappingProxyType({"bf16": 1.0, "int8": 1.15, "fp8": 1.0, "nf4": 1.3})
"""Time of a product with packed weights over one with plain ones; estimates until they are measured on GPUs."""

OVERLAP: Final = 0.05
"""Of the time of a copy, what it delays the computation that it overlaps with."""

STEPS: Final = 50
SLOTS: Final = (3, 2)
SMALLER: Final = ((1024, 1024), (768, 768), (512, 512))
"""Sizes that are tried for what would fit."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What can be chosen from.

    parts: sizes by component and format.
    formats: that can be had, by component.
    mapped: components that are in files in the dtype they run in: they take no memory of the process's own, and can be
        read from the files each time.
    itemsize: bytes of a weight that is not packed.
    """

    parts: Mapping[tuple[str, str], Part]
    formats: Mapping[str, Sequence[str]]
    mapped: frozenset[str]
    itemsize: int

    def is_mapped(self, component: str, form: str) -> bool:
        """Whether a component in a format is what its files hold."""
        return form == PLAIN and component in self.mapped


@dataclass(frozen=True, kw_only=True)
class _Draft:
    """A combination, before it is known how many blocks can stay."""

    network: str
    encoder: str
    network_origin: Origin
    encoder_origin: Origin
    small_stream: bool
    slots: int
    tiled: bool
    batched: bool


def choose(choice: Choice, machine: Machine, sizes: Sizes, needs: Callable[[Sizes], Needs]) -> Plan:
    """The best plan.

    Raises:
        CapacityError: none fits; the message says what the smallest one takes, and what would fit.
    """
    found = plans(choice, machine, sizes, needs(sizes))
    if found:
        return found[0]
    least = smallest(choice, machine, sizes, needs(sizes))
    ways = [
        f"{w}x{h}"
        for w, h in SMALLER
        if w * h < sizes.width * sizes.height
        and plans(choice, machine, smaller := replace(sizes, width=w, height=h, pictures=1), needs(smaller))
    ]
    host = "" if least.device == "cpu" else f" and {in_words(least.host_bytes)} of host memory"
    there = "" if least.device == "cpu" else f" and {in_words(machine.host_bytes)}"
    raise CapacityError(
        f"No plan fits: {sizes.pictures} of {sizes.width}x{sizes.height} take at least {in_words(least.device_bytes)} "
        f"on {least.device}{host} (besides context and libraries), and there are "
        f"{in_words(machine.device_bytes)}{there}; "
        + (f"{ways[0]} would fit." if ways else "end other programs, or use another machine.")
    )


def plans(choice: Choice, machine: Machine, sizes: Sizes, needs: Needs) -> list[Plan]:
    """All plans that fit, the best first, no two the same."""
    drafts = (_filled(draft, choice, machine, sizes, needs) for draft in _drafts(choice, machine))
    fitting = {
        tuple(value for name, value in vars(plan).items() if name != "stages"): plan
        for plan in drafts
        if plan.device_bytes <= machine.device_bytes
        and (machine.device.type == "cpu" or plan.host_bytes <= machine.host_bytes)
    }
    return sorted(
        fitting.values(), key=lambda plan: (_cost(plan, machine), plan.device_bytes, plan.host_bytes)
    )


def smallest(choice: Choice, machine: Machine, sizes: Sizes, needs: Needs) -> Plan:
    """The plan that takes least of the device, whether that is there or not."""
    nothing = replace(machine, device_bytes=0)
    drafts = [_filled(draft, choice, nothing, sizes, needs) for draft in _drafts(choice, machine)]
    return min(drafts, key=lambda plan: (plan.device_bytes, plan.host_bytes))


def _drafts(choice: Choice, machine: Machine) -> Iterator[_Draft]:
    on_cpu = machine.device.type == "cpu"
    for network, encoder in product(choice.formats["transformer"], choice.formats["text_encoder"]):
        waits: list[Origin] = [] if on_cpu else ["host"]
        network_waits = waits + (["disk"] if choice.is_mapped("transformer", network) else [])
        encoder_waits = waits + (["disk"] if choice.is_mapped("text_encoder", encoder) else [])
        for combination in product(
            network_waits or ["device"],
            ["device", *encoder_waits],
            (False,) if on_cpu else (False, True),
            SLOTS,
            (False, True),
            (True, False),
        ):
            origin, encoder_origin, small, slots, tiled, batched = combination
            yield _Draft(
                network=network,
                encoder=encoder,
                network_origin=origin,
                encoder_origin=encoder_origin,
                small_stream=small,
                slots=slots,
                tiled=tiled,
                batched=batched,
            )


def _filled(draft: _Draft, choice: Choice, machine: Machine, sizes: Sizes, needs: Needs) -> Plan:
    """The plan of a draft, with as many blocks on the device as there is room for."""
    network = choice.parts["transformer", draft.network]
    blocks = network.groups["blocks"]
    slots = min(draft.slots, len(blocks))
    without = _stages(draft, choice, machine, needs, slots=0)
    can_stream = draft.network_origin != "device"
    if max(without.values()) + sum(blocks) <= machine.device_bytes or not can_stream:
        resident, stages = len(blocks), without
    else:
        stages = _stages(draft, choice, machine, needs, slots=slots)
        resident = _fitting(blocks[: len(blocks) - slots], machine.device_bytes - max(stages.values()))
    stages = {name: size + sum(blocks[:resident]) for name, size in stages.items()}
    moved = sum(blocks[resident:])
    small = network.group("modulation") + network.group("text") if draft.small_stream else 0
    passes = 1 if draft.batched else 2
    encoder = choice.parts["text_encoder", draft.encoder]
    streams = moved or draft.small_stream
    return Plan(
        device=str(machine.device),
        network=draft.network,
        encoder=draft.encoder,
        network_origin=draft.network_origin if streams else "device",
        encoder_origin=draft.encoder_origin,
        blocks=len(blocks),
        resident_blocks=resident,
        small_stream=draft.small_stream,
        slots=slots if streams or draft.encoder_origin != "device" else 0,
        tile=TILE if draft.tiled else None,
        batched_guidance=draft.batched,
        width=sizes.width,
        height=sizes.height,
        pictures=sizes.pictures,
        edits=sizes.edits,
        device_bytes=max(stages.values()),
        host_bytes=_host_bytes(draft, choice, machine, slots, moved, small),
        bytes_per_step=(moved + small) * passes,
        bytes_per_prompt=0 if draft.encoder_origin == "device" else encoder.group("layers"),
        seconds_per_step=_step_seconds(draft, choice, machine, sizes, (moved + small) * passes),
        stages=stages,
    )


def _fitting(blocks: Sequence[int], room: int) -> int:
    """How many of the first blocks fit into a room."""
    count = 0
    for size in blocks:
        room -= size
        if room < 0:
            break
        count += 1
    return count


def _stages(draft: _Draft, choice: Choice, machine: Machine, needs: Needs, *, slots: int) -> dict[str, int]:
    """Bytes of the device in each stage, without the blocks that stay there."""
    network, encoder = choice.parts["transformer", draft.network], choice.parts["text_encoder", draft.encoder]
    clip, vae = choice.parts["text_encoder_2", PLAIN], choice.parts["vae", PLAIN]
    small = network.group("modulation") + network.group("text") + clip.group("whole")
    on_cpu = machine.device.type == "cpu"
    fixed = network.ends + encoder.ends + clip.ends + vae.total + (0 if on_cpu else LIBRARIES)
    fixed += 0 if draft.small_stream else small
    if draft.encoder_origin == "device":
        fixed += encoder.group("layers") + encoder.group("vision") + (encoder.table if on_cpu else 0)
        brought = 0
    else:
        brought = draft.slots * encoder.largest("layers") + 2 * encoder.largest("vision")
    brought += clip.group("whole") if draft.small_stream else 0
    passing = slots * network.largest("blocks")
    if draft.small_stream:
        passing += 2 * network.largest("modulation") + 2 * network.largest("text")
    convolutions = 1.0 if on_cpu else CONVOLUTIONS
    decode, source = (needs.decode_tiled, needs.source_tiled) if draft.tiled else (needs.decode, needs.source)
    return {
        "encode": fixed + brought + needs.encode,
        "source": fixed + int(source * convolutions),
        "denoise": fixed + passing + (needs.denoise if draft.batched else needs.denoise_in_turn),
        "decode": fixed + int(decode * convolutions),
    }


def _host_bytes(draft: _Draft, choice: Choice, machine: Machine, slots: int, moved: int, small: int) -> int:
    """The larger of what loading takes and of what waits there afterwards."""
    used = {
        "transformer": draft.network,
        "text_encoder": draft.encoder,
        "text_encoder_2": PLAIN,
        "vae": PLAIN,
    }
    own = {name: choice.parts[name, form] for name, form in used.items() if not choice.is_mapped(name, form)}
    if machine.device.type == "cpu":
        return sum(part.total for part in own.values())
    network, encoder = choice.parts["transformer", draft.network], choice.parts["text_encoder", draft.encoder]
    waiting = own["text_encoder"].table if "text_encoder" in own else 0
    waiting += choice.parts["text_encoder_2", PLAIN].group("whole") if draft.small_stream else 0
    if draft.network_origin == "host":
        waiting += moved + small
    elif moved or small:
        waiting += slots * network.largest("blocks") if moved else 0
        waiting += 2 * (network.largest("modulation") + network.largest("text")) if small else 0
    if draft.encoder_origin == "host":
        waiting += encoder.group("layers") + encoder.group("vision")
    elif draft.encoder_origin == "disk":
        waiting += draft.slots * encoder.largest("layers") + 2 * encoder.largest("vision")
    return max(waiting, sum(part.total for part in own.values()))


def _step_seconds(draft: _Draft, choice: Choice, machine: Machine, sizes: Sizes, moved: int) -> float:
    """Computing and moving at the same time."""
    plain = choice.parts["transformer", PLAIN].groups["blocks"]
    tokens = sizes.width * sizes.height // 256
    rows = 2 * sizes.pictures
    products = 2 * (sum(plain) // choice.itemsize) * tokens * rows
    computing = products / machine.products * UNPACKING[draft.network] * (1 if draft.batched else IN_TURN)
    speed = machine.link if draft.network_origin == "host" else min(machine.disk, machine.link)
    moving = moved / speed
    return max(computing, moving) + OVERLAP * moving


def _cost(plan: Plan, machine: Machine) -> float:
    """Seconds of a picture, times the price of what changes it."""
    speed = {"device": float("inf"), "host": machine.link, "disk": min(machine.disk, machine.link)}
    seconds = STEPS * plan.seconds_per_step + plan.bytes_per_prompt / speed[plan.encoder_origin]
    price = PRICE[plan.network] * ENCODER_PRICE[plan.encoder]
    return seconds * price * (1 if plan.tile is None else TILES_PRICE)
