"""Which plan: all that can be told apart are costed, those that do not fit fall out, the fastest is taken.

Comes in: sizes of parts, needs of a request, a machine. Goes out: plans, the best first, or a CapacityError that says
what is missing and what would fit. Pure arithmetic; nothing is allocated. Refuses to know: folders, pipelines.

A format or tiles change the picture, so they must pay for it: a plan's time is multiplied by their `PRICE`. So weights
are packed where streaming them as they are would be slower by more than that, and where nothing else fits.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from types import MappingProxyType
from typing import Final

from kandinsky5.checkpoint.packing import PLAIN
from kandinsky5.errors import CapacityError
from kandinsky5.latents import TILE
from kandinsky5.memory.activations import LIBRARIES, STEPS, Needs, Sizes
from kandinsky5.memory.machine import Machine
from kandinsky5.memory.overlap import pass_seconds, which_stay
from kandinsky5.memory.parts import Part
from kandinsky5.memory.plan import SMALL_SLOTS, Origin, Plan, in_words

PRICE: Final[Mapping[str, float]] = MappingProxyType({"bf16": 1.0, "int8": 1.2, "fp8": 1.4, "nf4": 1.8})
"""What a network in a format must be faster by, to be taken where another fits too."""

ENCODER_PRICE: Final[Mapping[str, float]] = MappingProxyType(
    {"bf16": 1.0, "int8": 1.1, "fp8": 1.3, "nf4": 1.5}
)

TILES_PRICE: Final = 1.03

NETWORK_RATE: Final = 0.89
"""Operations a second of the whole network over those of one product: 567 of 640 TFLOP/s on an H100 at 1024 x 1024
(benchmarks/results/2026-11-28-drawing-h100.json, "ours exact", and 2026-11-28-drawing-h100-first.json, "product
8192x2560x10240"). At 512 x 512 the host, which launches the kernels, is slower than that there."""

IN_TURN: Final = 1.08
"""Time of two passes of one row over that of one pass of two: 180 ms over 167 ("batches" of the first of these)."""

UNPACKING: Final[Mapping[str, float]] = MappingProxyType({"bf16": 1.0, "int8": 1.35, "fp8": 1.0, "nf4": 1.5})
"""Time of a step with packed weights over one with plain ones. int8: "4 GB" and "4 GB, editing" of
benchmarks/results/2026-11-28-memory-h100.json, where blocks come faster than they are multiplied. nf4 is an
estimate: more work than int8. fp8 is quicker than 1 where the GPU multiplies it, but a format is picked here for
memory's sake and not for speed's."""

OVERLAP: Final = 0.05
"""Of the time of a copy, what it delays the computation that it overlaps with. The seconds of that file at
1024 x 1024 are met within 5 % with it and without; it keeps what could stay from being streamed for nothing."""

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
    """

    parts: Mapping[tuple[str, str], Part]
    formats: Mapping[str, Sequence[str]]
    mapped: frozenset[str]

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
    """The plan of a draft, with as many blocks on the device as there is room for, then as many of Qwen's layers."""
    network = choice.parts["transformer", draft.network]
    blocks = network.groups["blocks"]
    slots = min(draft.slots, len(blocks))
    without = _stages(draft, choice, machine, needs, slots=0)
    can_stream = draft.network_origin != "device"
    if max(without.values()) + sum(blocks) <= machine.device_bytes or not can_stream:
        resident, stages = len(blocks), without
    else:
        stages = _stages(draft, choice, machine, needs, slots=slots)
        room = max(0, machine.device_bytes - max(stages.values()))
        resident = min(len(blocks) - slots, room // network.largest("blocks"))
    stays = which_stay(len(blocks), resident)
    streamed = [size for size, stay in zip(blocks, stays, strict=True) if not stay]
    stages = {name: size + sum(blocks) - sum(streamed) for name, size in stages.items()}
    small = network.group("modulation") + network.group("text") if draft.small_stream else 0
    often, seldom = _brought(draft, network, needs, streamed, slots)
    encoder = choice.parts["text_encoder", draft.encoder]
    keeps, arriving = _layers(draft, encoder, room=machine.device_bytes - max(stages.values()))
    if draft.encoder_origin != "device":
        stages = {name: size + encoder.group("layers") - arriving for name, size in stages.items()}
    streams = streamed or draft.small_stream
    return Plan(
        device=str(machine.device),
        network=draft.network,
        encoder=draft.encoder,
        network_origin=draft.network_origin if streams else "device",
        encoder_origin=draft.encoder_origin,
        blocks=len(blocks),
        resident_blocks=resident,
        layers=len(encoder.groups["layers"]),
        resident_layers=keeps,
        small_stream=draft.small_stream,
        slots=slots if streams or draft.encoder_origin != "device" else 0,
        tile=TILE if draft.tiled else None,
        batched_guidance=draft.batched,
        width=sizes.width,
        height=sizes.height,
        pictures=sizes.pictures,
        edits=sizes.edits,
        text_tokens=sizes.text_tokens,
        device_bytes=max(stages.values()),
        host_bytes=_host_bytes(draft, choice, machine, slots, sum(streamed), small, arriving),
        bytes_per_step=often + seldom,
        bytes_per_prompt=arriving,
        seconds_per_step=_step_seconds(draft, machine, needs, stays, slots, often, seldom),
        stages=stages,
    )


def _layers(draft: _Draft, encoder: Part, *, room: int) -> tuple[int, int]:
    """How many of Qwen's layers stay on the device, where there is room for some, and the bytes of the others."""
    layers = encoder.groups["layers"]
    if draft.encoder_origin == "device":
        return len(layers), 0
    keeps = min(max(0, len(layers) - draft.slots), max(0, room) // encoder.largest("layers"))
    stays = which_stay(len(layers), keeps)
    return keeps, sum(size for size, stay in zip(layers, stays, strict=True) if not stay)


def _stages(draft: _Draft, choice: Choice, machine: Machine, needs: Needs, *, slots: int) -> dict[str, int]:
    """Bytes of the device in each stage, without what stays there of blocks and layers where the others come."""
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
        brought = draft.slots * encoder.largest("layers") + SMALL_SLOTS * encoder.largest("vision")
    brought += clip.group("whole") if draft.small_stream else 0
    passing = slots * network.largest("blocks")
    if draft.small_stream:
        passing += SMALL_SLOTS * (network.largest("modulation") + network.largest("text"))
    decode, source = (needs.decode_tiled, needs.source_tiled) if draft.tiled else (needs.decode, needs.source)
    return {
        "encode": fixed + brought + needs.encode,
        "source": fixed + source,
        "denoise": fixed + passing + (needs.denoise if draft.batched else needs.denoise_in_turn),
        "decode": fixed + decode,
    }


def _host_bytes(
    draft: _Draft, choice: Choice, machine: Machine, slots: int, moved: int, small: int, arriving: int
) -> int:
    """The larger of what loading takes and of what waits there afterwards: blocks, small parts, Qwen's layers."""
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
        waiting += SMALL_SLOTS * (network.largest("modulation") + network.largest("text")) if small else 0
    if draft.encoder_origin == "host":
        waiting += arriving + encoder.group("vision")
    elif draft.encoder_origin == "disk":
        waiting += draft.slots * encoder.largest("layers") + SMALL_SLOTS * encoder.largest("vision")
    return max(waiting, sum(part.total for part in own.values()))


def _brought(
    draft: _Draft, network: Part, needs: Needs, streamed: Sequence[int], slots: int
) -> tuple[int, int]:
    """Bytes that come to the device in a step, on the mean of a run: (blocks in each step, what comes more seldom).

    The fast path asks for modulation and text blocks once a window of steps. Units that all fit into their slots stay
    there from the first step to the last.
    """
    passes, window = (1, needs.window) if draft.batched else (2, needs.window_in_turn)
    windows = passes * math.ceil(STEPS / window)
    often = passes * sum(streamed) if len(streamed) > slots else 0
    seldom = 0 if often else sum(streamed)
    for name in ("modulation", "text") if draft.small_stream else ():
        seldom += network.group(name) * (windows if len(network.groups[name]) > SMALL_SLOTS else 1)
    return often, seldom // STEPS


def _step_seconds(
    draft: _Draft,
    machine: Machine,
    needs: Needs,
    stays: Sequence[bool],
    slots: int,
    often: int,
    seldom: int,
) -> float:
    """Of a step, for each block whether it stays: the blocks as they are computed and copied beside each other.

    What comes more seldom comes with nothing to compute meanwhile.
    """
    passes, in_turn = (1, 1.0) if draft.batched else (2, IN_TURN)
    speed = machine.link if draft.network_origin == "host" else min(machine.disk, machine.link)
    computing = (
        needs.operations / (machine.products * NETWORK_RATE) * UNPACKING[draft.network] * in_turn / passes
    )
    if often:
        moving, streamed = often / passes / speed, len(stays) - sum(stays)
        computing = OVERLAP * moving + pass_seconds(
            stays, computing=computing / len(stays), copying=moving / streamed, slots=slots
        )
    return passes * computing + seldom / speed


def _cost(plan: Plan, machine: Machine) -> float:
    """Seconds of a picture, times the price of what changes it."""
    speed = {"device": float("inf"), "host": machine.link, "disk": min(machine.disk, machine.link)}
    seconds = STEPS * plan.seconds_per_step + plan.bytes_per_prompt / speed[plan.encoder_origin]
    price = PRICE[plan.network] * ENCODER_PRICE[plan.encoder]
    return seconds * price * (1 if plan.tile is None else TILES_PRICE)
