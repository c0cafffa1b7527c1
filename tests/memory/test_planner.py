"""Plans for the published sizes on machines that need not be here: they fit, and more memory is never worse."""

import dataclasses
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.memory import Machine, plan_for_model
from kandinsky5.memory.activations import (
    FUSED_CONVOLUTIONS,
    STEPS,
    Needs,
    Sizes,
    needs_of,
    operations_a_row,
    peak_bytes,
)
from kandinsky5.memory.machine import ASKED_SLACK, CONTEXT, HOST_LIBRARIES
from kandinsky5.memory.overlap import which_stay
from kandinsky5.memory.placing import choice_of
from kandinsky5.memory.planner import (
    PRICE,
    Choice,
    _brought,
    _cost,
    _Draft,
    _stages,
    _step_seconds,
    choose,
    plans,
    smallest,
)
from kandinsky5.memory.published import published_model

DTYPE = torch.bfloat16
CUDA = torch.device("cuda")
TIERS = {24: 40, 16: 32, 12: 24, 8: 24, 6: 16, 4: 16}


@pytest.fixture(scope="module")
def model():
    return published_model(DTYPE, edits=True)


@pytest.fixture(scope="module")
def choice(model) -> Choice:
    return with_every_format(model)


def with_every_format(model) -> Choice:
    """That some GPU has."""
    found = choice_of(model, torch.device("cpu"))
    forms = {"transformer": ["bf16", "int8", "fp8", "nf4"], "text_encoder": ["bf16", "int8", "nf4"]}
    parts = {(name, form): model.part(name, form) for name in forms for form in forms[name]}
    return dataclasses.replace(found, parts={**found.parts, **parts}, formats=forms)


@pytest.fixture(scope="module")
def needs(model):
    components = (model.components[name] for name in ("transformer", "text_encoder", "vae"))
    network, encoder, vae = components

    def of(sizes: Sizes) -> Needs:
        return needs_of(network, encoder, vae, sizes, DTYPE, fast=True, convolutions=FUSED_CONVOLUTIONS)

    return lru_cache(of)


def sizes(side: int = 1024, *, edits: bool = False, pictures: int = 1) -> Sizes:
    return Sizes(width=side, height=side, pictures=pictures, text_tokens=1024 if edits else 512, edits=edits)


def tier(machine, gigabytes: float, host: float = 500):
    return machine("cuda", device_bytes=int(gigabytes * 1e9 - 7e8), host_bytes=int(host * 1e9 - 2e9))


@pytest.mark.parametrize("edits", [False, True], ids=["drawing", "editing"])
@pytest.mark.parametrize(("gigabytes", "host"), TIERS.items())
def test_every_tier_has_a_plan_within_its_bounds(choice, needs, machine, gigabytes, host, edits):
    there = tier(machine, gigabytes, host)
    plan = choose(choice, there, sizes(edits=edits), needs)
    assert plan.device_bytes <= there.device_bytes and plan.host_bytes <= there.host_bytes
    assert plan.device_bytes == max(plan.stages.values())
    assert plan.blocks == 50 and 0 <= plan.resident_blocks <= 50
    assert (plan.bytes_per_step == 0) == (plan.resident_blocks == 50 and not plan.small_stream)


def test_nothing_moves_where_all_of_it_fits(choice, needs, machine):
    plan = choose(choice, tier(machine, 80), sizes(), needs)
    assert plan.is_resident and (plan.network, plan.encoder, plan.tile) == ("bf16", "bf16", None)
    assert plan.bytes_per_step == plan.bytes_per_prompt == 0


def test_room_that_blocks_leave_is_for_layers(choice, needs, machine):
    """An encoder that streams keeps what fits beside a network that stays, and says so."""
    there = dataclasses.replace(tier(machine, 24, 40), link=50e9)
    plan = choose(choice, there, sizes(), needs)
    assert (plan.resident_blocks, plan.encoder_origin, plan.layers) == (50, "host", 28)
    layers = choice.parts["text_encoder", "bf16"].groups["layers"]
    arriving = plan.layers - plan.resident_layers
    assert 3 <= arriving < 14 and plan.bytes_per_prompt == arriving * layers[0]
    assert there.device_bytes - plan.device_bytes < layers[0], "and no more would fit"
    assert f"{plan.resident_layers} of 28 layers on cuda, the others streamed from host memory" in str(plan)
    whole = dataclasses.replace(there, device_bytes=plan.device_bytes - plan.resident_layers * layers[0])
    without = choose(choice, whole, sizes(), needs)
    assert without.resident_layers == 0 and without.bytes_per_prompt == 28 * layers[0]
    assert without.host_bytes - plan.host_bytes == plan.resident_layers * layers[0]


def test_weights_stay_as_they_are_where_streaming_them_costs_nothing(choice, needs, machine):
    """A fast link and much host memory: no format is worth its loss."""
    for gigabytes in (24, 16, 12, 8, 6):
        fast = dataclasses.replace(tier(machine, gigabytes), link=50e9)
        assert choose(choice, fast, sizes(), needs).network == "bf16"


def test_weights_are_packed_where_the_link_is_slow(choice, needs, machine):
    slow = dataclasses.replace(tier(machine, 8), link=3e9)
    assert choose(choice, slow, sizes(), needs).network != "bf16"


def test_more_memory_is_never_worse(choice, needs, machine):
    costs = []
    for gigabytes in (4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48):
        there = tier(machine, gigabytes)
        costs.append(_cost(choose(choice, there, sizes(), needs), there))
    assert costs == sorted(costs, reverse=True)


def test_the_next_plans_are_ordered_and_none_is_there_twice(choice, needs, machine):
    there = tier(machine, 8, 24)
    found = plans(choice, there, sizes(), needs(sizes()))
    costs = [_cost(plan, there) for plan in found]
    assert costs == sorted(costs) and len(found) > 20
    assert len({str(sorted((k, str(v)) for k, v in vars(plan).items())) for plan in found}) == len(found)


def test_larger_pictures_take_more(choice, needs, machine):
    assert choose(choice, tier(machine, 16, 32), sizes(2048), needs).device_bytes <= 15.3e9
    peaks = [
        smallest(choice, tier(machine, 1), sizes(side), needs(sizes(side))).device_bytes
        for side in (512, 1024, 2048)
    ]
    assert peaks == sorted(peaks) and peaks[0] < peaks[2]


def test_seldom_parts_count_once_a_window(choice, needs, machine):
    """Nine steps of two rows fit into the fast path's table with 512 text tokens, 18 of one row; text blocks stay."""
    needed = needs(sizes())
    assert (needed.window, needed.window_in_turn) == (9, 18)
    network = choice.parts["transformer", "bf16"]
    for plan in plans(choice, tier(machine, 8), sizes(), needed):
        if plan.network == "bf16" and plan.small_stream:
            blocks = sum(network.groups["blocks"][plan.resident_blocks :])
            passes, windows = (1, 6) if plan.batched_guidance else (2, 2 * 3)
            seldom = windows * network.group("modulation") + network.group("text")
            assert plan.bytes_per_step == passes * blocks + seldom // STEPS


def test_a_window_of_long_prompts_is_counted(needs):
    """All of its steps go through the text blocks at once: as many rows as a step has of the picture, or more."""
    short, long = (needs(dataclasses.replace(sizes(), text_tokens=tokens)) for tokens in (32, 1024))
    assert long.denoise > short.denoise + 100e6 and long.window < short.window


def test_without_the_fast_path_they_count_in_each_step(model):
    components = (model.components[name] for name in ("transformer", "text_encoder", "vae"))
    needed = needs_of(*components, sizes(512), DTYPE, fast=False, convolutions=1.0)
    assert (needed.window, needed.window_in_turn) == (1, 1)


def test_operations_are_those_of_the_blocks(model):
    from torch.utils.flop_counter import FlopCounterMode

    config = {**model.components["transformer"].config, "num_text_blocks": 1}
    counted = []
    for blocks in (1, 2):
        with torch.device("meta"):
            network = type(model.components["transformer"])(**{**config, "num_visual_blocks": blocks})
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                network(
                    hidden_states=torch.empty(1, 1, 64, 32, network.input_channels),
                    encoder_hidden_states=torch.empty(1, 20, config["in_text_dim"]),
                    timestep=torch.full((1,), 500.0),
                    pooled_projections=torch.empty(1, config["in_text_dim2"]),
                    visual_rope_pos=[torch.arange(n) for n in (1, 32, 16)],
                    text_rope_pos=torch.arange(20),
                )
        counted.append(counter.get_total_flops())
    # A block's shifts, scales and gates are computed from the time alone, once for all tokens.
    modulation = 2 * config["time_dim"] * 9 * config["model_dim"]
    assert counted[1] - counted[0] - modulation == operations_a_row(network.config, 32 * 16, 20) // 2


MEASURED = Path(__file__).parents[2] / "benchmarks/results/2026-11-28-memory-h100.json"


def test_seconds_and_bytes_are_those_that_were_measured(choice, machine):
    """Each tier's bytes a step within 2 %; its seconds within a tenth, with what the resident ones took outside steps.

    Link and rate of a product are what that machine's plans were made with, on the mean; files were in the page cache.
    """
    there = machine("cuda", link=54e9, products=635e12, disk=12e9)
    rows = {row["row"]: row for row in json.loads(MEASURED.read_text())["rows"]}
    streamed = [row for row in rows.values() if row["plan"] is not None]
    assert len(streamed) == 12
    for row in streamed:
        plan = row["plan"]
        step, moved = _step_of(plan, choice, there)
        assert moved / 1e9 == pytest.approx(row["moved_per_step_gb"], rel=0.02, abs=0.001), row["row"]
        whole = rows["resident, editing" if plan["edits"] else "resident"]
        everything = {"network": "bf16", "resident_blocks": 50, "small_stream": False, "width": whole["size"]}
        outside = whole["seconds"] - whole["steps"] * _step_of({**plan, **everything}, choice, there)[0]
        speed = there.link if plan["encoder_origin"] == "host" else there.disk
        seconds = row["steps"] * step + plan["bytes_per_prompt"] / speed + outside
        assert seconds == pytest.approx(row["seconds"], rel=0.1), row["row"]


PAGE = Path(__file__).parents[2] / "docs/memory.md"


@pytest.mark.parametrize("edits", [False, True], ids=["drawing", "editing"])
def test_the_page_tells_what_slower_links_come_to(machine, edits):
    """Milliseconds of a step, each task with its own model, in the bounds that `this_machine` leaves of a tier."""
    model = published_model(DTYPE, edits=edits)
    choice = with_every_format(model)
    components = [model.components[name] for name in ("transformer", "text_encoder", "vae")]
    needs = lru_cache(lambda of: needs_of(*components, of, DTYPE, fast=True, convolutions=FUSED_CONVOLUTIONS))
    told = PAGE.read_text(encoding="utf-8").split("### Slower links, predicted")[1].split("###")[0]
    rows = re.findall(r"^\| (\d+) GB \|(.*)\|$", told, flags=re.MULTILINE)
    assert len(rows) == 5
    for gigabytes, cells in rows:
        device, host = int(gigabytes) * 1e9, TIERS[int(gigabytes)] * 1e9
        for link, cell in zip((54e9, 45e9, 25e9, 12e9), cells.split("|"), strict=True):
            there = machine(
                "cuda",
                device_bytes=int((device - CONTEXT) * ASKED_SLACK),
                host_bytes=int(host - HOST_LIBRARIES - 0.6e9),  # what the process has by then
                link=link,
                products=635e12,
            )
            plan = choose(choice, there, sizes(edits=edits), needs)
            expected = int(re.findall(r"\d{3}", cell)[edits])
            assert round(plan.seconds_per_step * 1e3) == expected, (gigabytes, link)


@pytest.mark.parametrize("day", ["spread", "filled"])
def test_peaks_are_those_that_were_measured(choice, needs, machine, day):
    """Of the longest prompts, within a tenth; never more than 2 % above, which the planner leaves free."""
    file = MEASURED.with_name(f"2026-11-28-memory-h200-{day}.json")
    rows = [row for row in json.loads(file.read_text())["rows"] if row["plan"] is not None]
    assert len(rows) == 11
    for row in rows:
        plan = row["plan"]
        blocks = choice.parts["transformer", plan["network"]].groups["blocks"]
        stay = sum(
            size for size, stays in zip(blocks, which_stay(50, plan["resident_blocks"]), strict=True) if stays
        )
        moves = plan["resident_blocks"] < plan["blocks"]
        stages = _stages(
            _draft_of(plan),
            choice,
            machine("cuda"),
            needs(sizes(edits=plan["edits"])),
            slots=plan["slots"] * moves,
        )
        reserved = max(row[part]["device_reserved_gb"] for part in ("longest_prompt", "drawing"))
        assert 0.98 < (max(stages.values()) + stay) / 1e9 / reserved < 1.1, row["row"]


def _draft_of(plan: Mapping[str, Any]) -> _Draft:
    kept = ("network", "encoder", "network_origin", "encoder_origin", "small_stream", "slots")
    return _Draft(
        **{name: plan[name] for name in kept},
        tiled=plan["tile"] is not None,
        batched=plan["batched_guidance"],
    )


def _step_of(plan: Mapping[str, Any], choice: Choice, there: Machine) -> tuple[float, int]:
    """Seconds and bytes of a step of the plan that a row was drawn with."""
    needed = _short_prompt(plan["edits"], plan["width"])
    part = choice.parts["transformer", plan["network"]]
    draft = _draft_of(plan)
    slots, streamed = plan["slots"], part.groups["blocks"][plan["resident_blocks"] :]
    often, seldom = _brought(draft, part, needed, streamed, slots)
    first = [i < plan["resident_blocks"] for i in range(plan["blocks"])]  # those stayed then
    seconds = _step_seconds(draft, there, needed, first, slots, often, seldom)
    return seconds, often + seldom


@lru_cache
def _short_prompt(edits: bool, side: int) -> Needs:
    """What those pictures needed: a prompt of some 30 tokens, and of an edit some 330 of its source."""
    model = published_model(DTYPE, edits=edits)
    components = (model.components[name] for name in ("transformer", "text_encoder", "vae"))
    return needs_of(
        *components,
        dataclasses.replace(sizes(side, edits=edits), text_tokens=360 if edits else 32),
        DTYPE,
        fast=True,
        convolutions=1.0,
    )


def test_too_little(choice, needs, machine):
    with pytest.raises(CapacityError) as raised:
        choose(choice, tier(machine, 2.7), sizes(2048), needs)
    assert "1 of 2048x2048 take at least" in str(raised.value) and "would fit" in str(raised.value)
    with pytest.raises(CapacityError, match=r"end other programs, or use another machine"):
        choose(choice, tier(machine, 1.0), sizes(), needs)


def test_what_is_not_as_in_the_files_is_not_read_from_them(choice, needs, machine):
    unmapped = dataclasses.replace(choice, mapped=frozenset())
    found = plans(unmapped, tier(machine, 8, 64), sizes(), needs(sizes()))
    assert found and not any("disk" in (plan.network_origin, plan.encoder_origin) for plan in found)
    assert min(plan.host_bytes for plan in found) > 8e9, "packed components are the process's own memory"


def test_the_cpu_reads_files_and_packs_nothing(model, machine):
    from kandinsky5.budget import Budget

    there = machine("cpu", device_bytes=int(16e9), products=3e11, link=8e9)
    plan = plan_for_model(
        model, Budget(width=512, height=512), device=torch.device("cpu"), dtype=DTYPE, machine=there
    )
    assert plan.encoder_origin == "disk" and plan.network == plan.encoder == "bf16"
    assert plan.device_bytes <= 16e9


def test_formats_are_for_bfloat16_on_a_gpu():
    for dtype, count in ((DTYPE, 3), (torch.float16, 1), (torch.float32, 1)):
        found = choice_of(
            published_model(dtype), torch.device("meta")
        ).formats  # stands for a GPU without float8
        assert {name: len(forms) for name, forms in found.items()} == {
            "transformer": count,
            "text_encoder": count,
        }


def test_a_packing_that_nobody_knows(model, machine):
    from kandinsky5.budget import Budget

    strange = dataclasses.replace(model, stored={**model.stored, "transformer": None})
    with pytest.raises(RequestError, match="packed in a way that no plan knows"):
        plan_for_model(strange, Budget(), device=CUDA, dtype=DTYPE, machine=machine("cuda"))


def test_every_format_has_a_price(choice):
    assert set(PRICE) == set(choice.formats["transformer"])


def test_tensors_are_counted_while_they_live():
    def work() -> torch.Tensor:
        x = torch.empty(1000, dtype=torch.uint8, device="meta")
        y = torch.cat([x, x])  # 3000
        del x
        y = torch.cat([y, y])  # 6000
        return y.view(2, -1).t()

    assert peak_bytes(work) == 6000
    there = torch.empty(5000, dtype=torch.uint8, device="meta")
    assert peak_bytes(lambda: there.view(50, 100).t().clone()) == 5000


def test_an_address_that_was_another_tensor_s_counts_anew():
    """Tensors of other devices come and go between those that are counted, at the same addresses."""

    def work() -> list[torch.Tensor]:
        kept = []
        for _ in range(200):
            fleeting = torch.zeros(1)
            fleeting + 1
            del fleeting
            kept.append(torch.empty(10, dtype=torch.uint8, device="meta"))
        return kept

    assert peak_bytes(work) == 2000


def test_activations_grow_as_they_must(needs):
    one, two = needs(sizes(512)), needs(sizes(1024))
    assert two.decode == pytest.approx(4 * one.decode, rel=0.05)
    assert one.denoise < two.denoise and needs(sizes(2048)).denoise_in_turn < needs(sizes(2048)).denoise
    assert one.window == two.window <= STEPS and one.operations < two.operations
    assert two.decode_tiled < two.decode and needs(sizes(2048)).decode_tiled > two.decode_tiled
    assert needs(sizes(512, edits=True)).source > 0 == one.source
