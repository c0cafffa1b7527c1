"""A plan carried out: a folder loaded in the plan's formats, each piece put where the plan says.

Comes in: a folder, a budget. Goes out: a pipeline that knows its plan. Refuses to know: how plans are compared.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLForConditionalGeneration

from kandinsky5.budget import Budget
from kandinsky5.checkpoint.finite import check_finite, postponed
from kandinsky5.checkpoint.packing import PLAIN
from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.checkpoint.turn import TURN
from kandinsky5.errors import RequestError
from kandinsky5.latents import use_tiles
from kandinsky5.memory.activations import CONVOLUTIONS, FUSED_CONVOLUTIONS, Needs, Sizes, needs_of
from kandinsky5.memory.formats import FORMATS, pack, why_not
from kandinsky5.memory.groups import Place, groups_of, table_of
from kandinsky5.memory.machine import Machine, this_machine
from kandinsky5.memory.overlap import which_stay
from kandinsky5.memory.parts import COMPONENTS, Model, model_of, narrow
from kandinsky5.memory.plan import SMALL_SLOTS, Origin, Plan
from kandinsky5.memory.planner import Choice, choose
from kandinsky5.model.fast import prepare_for_speed
from kandinsky5.model.kernels import why_no_triton
from kandinsky5.model.loading import checkpoint_errors
from kandinsky5.model.scaled import why_no_float8_products
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.pipelines.encoder_parts import (
    TEXT_ENCODER_PARTS,
    TextEncoderPart,
    leaving_out,
    remember,
    stored_packed,
)
from kandinsky5.pipelines.folder import KINDS, LIGHT, check_folder, stored_tensors, stored_weights
from kandinsky5.pipelines.room import planned
from kandinsky5.placement import AUTO, use_fast_autoencoder, use_mode
from kandinsky5.streaming import (
    Conveyor,
    FileBytes,
    HostBytes,
    Unit,
    give_back,
    look_up_on_host,
    settle,
    streamed_parameters,
)

logger = logging.getLogger(__name__)

TEXT_TOKENS = 512
EDIT_TOKENS = 1024
"""Text tokens of a row that are planned for: the limits of the engine's own requests."""

Pipeline = type[Kandinsky5T2IPipeline] | type[Kandinsky5I2IPipeline]


def plan_for(
    folder: Path,
    budget: Budget,
    *,
    device: torch.device,
    dtype: torch.dtype,
    edits: bool = False,
    variant: str | None = None,
    machine: Machine | None = None,
) -> Plan:
    """The plan for a folder on this machine.

    Args:
        folder: in the published layout.
        budget: memory, and the largest request.
        device, dtype: where it runs, and in what.
        edits: source pictures come with the requests.
        variant: of the weight files.
        machine: what there is; measured by default.

    Raises:
        CapacityError: no plan fits.
        CheckpointError: configs that are missing or cannot be built.
        RequestError: a device that is planned for nowhere, or weights in a packing that is not known here.
    """
    model = model_of(folder, dtype, variant, sees=edits)
    return plan_for_model(model, budget, device=device, dtype=dtype, edits=edits, machine=machine)


def plan_for_model(
    model: Model,
    budget: Budget,
    *,
    device: torch.device,
    dtype: torch.dtype,
    edits: bool = False,
    machine: Machine | None = None,
) -> Plan:
    """As `plan_for`, for a model whose sizes are known."""
    machine = machine or this_machine(device, dtype, budget)
    choice = choice_of(model, device)
    sizes = _sizes(model, budget, edits)
    fast = device.type == "cuda"

    def needs(of: Sizes) -> Needs:
        network, encoder, vae = (model.components[name] for name in ("transformer", "text_encoder", "vae"))
        return needs_of(
            network, encoder, vae, of, dtype, fast=fast, convolutions=_convolutions(device, dtype)
        )

    return choose(choice, machine, sizes, needs)


def _convolutions(device: torch.device, dtype: torch.dtype) -> float:
    """What an autoencoder that is placed on a device takes over what its tensors do; of float32 it is not measured."""
    if device.type == "cpu":
        return 1.0
    is_fused = dtype.itemsize == 2 and why_no_triton(device, float8=False) is None
    return FUSED_CONVOLUTIONS if is_fused else CONVOLUTIONS


def load_planned(
    pipeline_class: Pipeline,
    folder: Path,
    plan: Plan,
    *,
    dtype: torch.dtype,
    variant: str | None = None,
    **components: Any,
) -> Any:
    """The pipeline of a folder, placed.

    Raises:
        As `from_pretrained`, and CapacityError where the device or the host has less room than was planned with.
    """
    with planned(plan):
        return _load_planned(pipeline_class, folder, plan, dtype, variant, components)


def _load_planned(
    pipeline_class: Pipeline,
    folder: Path,
    plan: Plan,
    dtype: torch.dtype,
    variant: str | None,
    components: Mapping[str, Any],
) -> Any:
    model = model_of(folder, dtype, variant, sees=plan.edits)
    arguments: dict[str, Any] = dict(components)
    if model.stored["text_encoder"] == "nf4" and "text_encoder" not in components:
        arguments["text_encoder"] = _four_bit_encoder(folder, dtype, pipeline_class.text_encoder_parts)
    # The network without a dtype keeps what it is stored in; with one, modulation would be widened to float32.
    as_stored = model.stored["transformer"] != PLAIN or "transformer" in model.mapped
    arguments["dtype"] = {"transformer": None if as_stored else dtype, "default": dtype}
    loaded = [name for name in COMPONENTS if name not in components]
    late = [
        name for name in ("transformer", "text_encoder") if name in loaded and _origin(plan, name) == "disk"
    ]
    with postponed() if late else ExitStack():
        pipeline = pipeline_class.from_pretrained(str(folder), variant=variant, **arguments)
    for name in loaded if late else ():
        if name not in late:
            check_finite(getattr(pipeline, name), folder / name)
    for name, form in (("transformer", plan.network), ("text_encoder", plan.encoder)):
        if form != PLAIN and model.stored[name] == PLAIN:
            pack(getattr(pipeline, name), name, form, torch.device(plan.device))
    if model.is_narrow:
        narrow(pipeline.transformer, dtype)
    place(pipeline, plan, folder=folder, variant=variant)
    for name in late:
        component = getattr(pipeline, name)
        check_finite(component, folder / name, without=streamed_parameters(component))
    return pipeline


def _four_bit_encoder(folder: Path, dtype: torch.dtype, parts: Collection[TextEncoderPart]) -> Any:
    """Qwen of a folder that holds it in four bits, on the host: its library would put it on the GPU whole."""
    others = [name for name in (*KINDS, *LIGHT, "transformer") if name != "text_encoder"]
    stored = check_folder(folder, brought=others).models["text_encoder"].tensors
    with (
        TURN,
        leaving_out(TEXT_ENCODER_PARTS.keys() - {*parts, *stored_packed(stored)}),
        checkpoint_errors(folder),
    ):
        encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder / "text_encoder", dtype=dtype, device_map={"": "cpu"}, local_files_only=True
        )
    check_finite(encoder, folder / "text_encoder")
    remember(encoder, stored, is_packed=True)
    return encoder


def place(pipeline: Any, plan: Plan, *, folder: Path | None = None, variant: str | None = None) -> None:
    """Put a loaded pipeline's pieces where a plan says. A placed pipeline is not placed again.

    Args:
        pipeline: its components on the host, in the plan's formats.
        plan: what to do.
        folder: whose files are read; needed where something streams from disk.
        variant: of the files.

    Raises:
        RequestError: something streams from disk, and there is no folder; or the pipeline is placed already.
    """
    if pipeline.plan is not None:
        raise RequestError("This pipeline is placed by a plan already; load it again for another.")
    if folder is None and "disk" in (plan.network_origin, plan.encoder_origin):
        raise RequestError("This plan streams from disk, and there is no folder to read.")
    device = torch.device(plan.device)
    if plan.network == "fp8" and why_no_float8_products(device, pipeline.transformer.dtype) is None:
        use_mode(pipeline.transformer, "fp8", graphs=False, device=device)
    for name in COMPONENTS:
        module = getattr(pipeline, name)
        if module is not None:
            _place_one(name, module, plan, device, lambda name=name: _stored(name, folder, variant))
    if pipeline.transformer.fast_path is None:
        use_mode(pipeline.transformer, AUTO, graphs=False, device=device)
    else:
        prepare_for_speed(pipeline.transformer)  # placing has moved each tensor by itself
    use_fast_autoencoder(pipeline.vae, device)
    if plan.tile is not None:
        use_tiles(pipeline.vae, plan.tile)
    pipeline.batched_guidance = plan.batched_guidance
    pipeline.plan = plan
    logger.info("plan: %s", plan)


def choice_of(model: Model, device: torch.device) -> Choice:
    """What a planner can choose from, for a model on a device."""
    formats: dict[str, Sequence[str]] = {}
    parts = {(name, PLAIN): model.part(name, PLAIN) for name in COMPONENTS}
    for name in ("transformer", "text_encoder"):
        stored = model.stored[name]
        if stored is None:
            raise RequestError(
                f"The {name} is packed in a way that no plan knows; load it without memory=, or in one of "
                f"{', '.join(FORMATS)}."
            )
        possible = [form for form in FORMATS if _can_be_had(form, name, device, model.dtypes[name])]
        formats[name] = [stored] if stored != PLAIN else possible
        parts |= {(name, form): model.part(name, form) for form in formats[name]}
    return Choice(
        parts=parts,
        formats=formats,
        mapped=model.mapped,
    )


def _can_be_had(form: str, component: str, device: torch.device, dtype: torch.dtype) -> bool:
    """On the CPU nothing is packed on the way: it is no faster there, and files need no memory."""
    if form == PLAIN:
        return True
    if device.type == "cpu" or dtype != torch.bfloat16 or why_not(form, component) is not None:
        return False
    return form != "fp8" or (component == "transformer" and why_no_float8_products(device, dtype) is None)


def _sizes(model: Model, budget: Budget, edits: bool) -> Sizes:
    side = model.components["vae"].config.sample_size
    width, height = (side, side) if isinstance(side, int) else (side[1], side[0])
    return Sizes(
        width=budget.width or width,
        height=budget.height or height,
        pictures=budget.pictures,
        text_tokens=EDIT_TOKENS if edits else TEXT_TOKENS,
        edits=edits,
    )


def _origin(plan: Plan, component: str) -> Origin:
    return plan.network_origin if component == "transformer" else plan.encoder_origin


def _place_one(name: str, module: nn.Module, plan: Plan, device: torch.device, stored: Any) -> None:
    """One component: the device for what stays, conveyors for the groups that stream."""
    groups = groups_of(name, module)
    streams: list[tuple[Sequence[Place], Origin, int]] = []
    if name == "transformer":
        streams.append((_coming(groups["blocks"], plan.resident_blocks), plan.network_origin, plan.slots))
        if plan.small_stream:
            streams += [(groups[group], plan.network_origin, SMALL_SLOTS) for group in ("modulation", "text")]
    elif name == "text_encoder" and plan.encoder_origin != "device":
        streams.append((_coming(groups["layers"], plan.resident_layers), plan.encoder_origin, plan.slots))
        streams.append((groups.get("vision", ()), plan.encoder_origin, SMALL_SLOTS))
    elif name == "text_encoder_2" and plan.small_stream:
        streams.append((groups["whole"], "host", 1))
    table = table_of(name, module) if device.type != "cpu" else None
    if table is not None:
        look_up_on_host(table, device)
    streamed = [place for places, _, _ in streams for place in places]
    stays = [place.module for places in groups.values() for place in places if place not in streamed]
    elsewhere = [place.module for place in streamed] + ([table] if table is not None else [])
    settle(module, device, without=elsewhere)
    for part in stays:  # a unit of its own inside one that streams
        settle(part, device)
    give_back()  # before there is locked memory for the rest
    for places, origin, slots in streams:
        if places:
            _convey(name, places, origin, slots, device, stored)


def _coming(places: Sequence[Place], resident: int) -> list[Place]:
    """Those that do not stay on the device."""
    return [place for place, stay in zip(places, which_stay(len(places), resident), strict=True) if not stay]


def _convey(
    name: str, places: Sequence[Place], origin: Origin, slots: int, device: torch.device, stored: Any
) -> None:
    units = [Unit(f"{name}.{place.path}", place.module, without=place.without) for place in places]
    source: HostBytes | FileBytes
    if origin == "host":
        source = HostBytes(units, lock=device.type == "cuda")
    else:
        tensors: Mapping[str, StoredTensor] = stored()
        source = FileBytes(
            {
                unit: {
                    leaf.name: tensors[name]
                    for leaf in unit.leaves
                    if (name := f"{place.path}.{leaf.name}") in tensors
                }
                for unit, place in zip(units, places, strict=True)
            }
        )
    Conveyor(units, source, device=device, slots=slots)


def _stored(name: str, folder: Path | None, variant: str | None) -> Mapping[str, StoredTensor]:
    assert folder is not None
    if name == "transformer":
        return stored_weights(folder / name, "diffusers", variant)
    return stored_tensors(name, folder, variant)
