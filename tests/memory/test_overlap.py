"""Blocks that stay are spread evenly, and the seconds of a pass are those of a conveyor's own order."""

from types import SimpleNamespace

import pytest
import torch

from kandinsky5.memory import overlap
from kandinsky5.memory.overlap import pass_seconds, which_stay
from kandinsky5.memory.placing import _place_one
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.streaming import Conveyor, is_streamed
from kandinsky5.streaming.conveyor import ATTRIBUTE
from kandinsky5.streaming.unit import Unit
from tests.model.tiny import config_of, drawn, inputs_for

CPU = torch.device("cpu")
MILLISECOND = 1e-3


@pytest.mark.parametrize("blocks", [1, 2, 50])
def test_as_many_stay_as_are_said_evenly_over_the_end_of_a_pass_too(blocks):
    for resident in range(blocks + 1):
        stays = which_stay(blocks, resident)
        assert len(stays) == blocks and sum(stays) == resident
        for kind in (True, False):
            places = [i for i, stay in enumerate(stays) if stay is kind]
            following = [*places[1:], *(place + blocks for place in places[:1])]
            gaps = {after - before for before, after in zip(places, following, strict=True)}
            assert not gaps or max(gaps) - min(gaps) <= 1


def in_one_run(blocks: int, resident: int) -> tuple[bool, ...]:
    return tuple(i < resident for i in range(blocks))


def test_copies_hide_behind_computing_where_blocks_are_spread():
    """41 of 50 blocks, each of which comes a little slower than it is computed, as 8 GB of an H200 have it."""
    times = {"computing": 3.4 * MILLISECOND, "copying": 3.9 * MILLISECOND, "slots": 3}
    assert pass_seconds(which_stay(50, 9), **times) == pytest.approx(50 * 3.4 * MILLISECOND)
    # In one run three copies are there when the first streamed block is computed; its slot takes the first of the 38
    # others, which are waited for, and the last block follows.
    in_run = (9 * 3.4 + 3.4 + 38 * 3.9 + 3.4) * MILLISECOND
    assert pass_seconds(in_one_run(50, 9), **times) == pytest.approx(in_run)


@pytest.mark.parametrize("slots", [2, 3])
def test_a_pass_takes_at_least_its_computing_and_its_copies(slots):
    for resident in range(50 - slots):
        for copying in (0.5, 1.0, 1.1, 2.0, 5.0):
            took = pass_seconds(which_stay(50, resident), computing=1.0, copying=copying, slots=slots)
            least = max(50, (50 - resident) * copying)
            assert least - 1e-9 <= took <= 50 + (50 - resident) * copying
            in_run = pass_seconds(in_one_run(50, resident), computing=1.0, copying=copying, slots=slots)
            assert took <= in_run + 1e-9, "spreading is never slower"
            more = pass_seconds(which_stay(50, resident + 1), computing=1.0, copying=copying, slots=slots)
            assert more <= took + 1e-9, "nor is one more that stays"


def test_the_pass_that_is_timed_is_like_those_after_it(monkeypatch):
    cases = [
        {"stays": which_stay(50, resident), "computing": 1.0, "copying": copying, "slots": slots}
        for resident in range(0, 47, 5)
        for copying in (0.9, 1.02, 50 / (50 - resident), 3.0)
        for slots in (2, 3)
    ]
    timed = [pass_seconds(**case) for case in cases]
    monkeypatch.setattr(overlap, "PASSES", 20)
    assert [pass_seconds(**case) for case in cases] == pytest.approx(timed)


@pytest.mark.parametrize("slots", [2, 3])
def test_blocks_are_placed_and_brought_in_that_order(monkeypatch, slots):
    """The conveyor begins a copy when the block `slots` before it is computed, over the end of a pass too."""
    network = drawn(Kandinsky5Transformer3DModel(**config_of("t2i", num_visual_blocks=8)))
    given = inputs_for(network.config).arguments()
    with torch.no_grad():
        expected = network(**given).sample
    plan = SimpleNamespace(resident_blocks=3, network_origin="host", slots=slots, small_stream=False)
    _place_one("transformer", network, plan, CPU, None)  # type: ignore[arg-type]
    blocks = network.visual_transformer_blocks
    assert tuple(not is_streamed(block) for block in blocks) == which_stay(8, 3)

    events: list[tuple[str, str]] = []
    load, depart = Conveyor._load, Conveyor.depart

    def loading(conveyor: Conveyor, unit: Unit, **wanted: object) -> object:
        events.append(("copy", unit.name))
        return load(conveyor, unit, **wanted)  # type: ignore[arg-type]

    def departing(conveyor: Conveyor, unit: Unit) -> None:
        events.append(("computed", unit.name))
        depart(conveyor, unit)

    monkeypatch.setattr(Conveyor, "_load", loading)
    monkeypatch.setattr(Conveyor, "depart", departing)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(network(**given).sample, expected)
    names = [getattr(block, ATTRIBUTE)[1].name for block in blocks if is_streamed(block)]
    computed = [i for i, (what, _) in enumerate(events) if what == "computed"]
    copied = [i for i, (what, _) in enumerate(events) if what == "copy"]
    assert [events[i][1] for i in computed] == 3 * names
    assert [events[i][1] for i in copied] == (4 * names)[: len(copied)]
    assert len(copied) == 3 * len(names) + slots - 1, "the next pass finds its first ones there"
    for i in range(slots, 3 * len(names)):
        assert computed[i - slots] < copied[i] < computed[i - slots + 1]
