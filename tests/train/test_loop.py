"""The loop on its own: it pauses, goes on bit for bit, says each step once, and refuses what it did not begin."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.train.settings import OptimiserSettings, RunSettings

from .small_lesson import MUON, OPTIMISER, RUN, SmallLesson, Told, learn, newest


def assert_same(a: Path, b: Path) -> None:
    """Their newest checkpoints, bit for bit."""
    (tensors, values), (others, other_values) = newest(a), newest(b)
    assert tensors.keys() == others.keys()
    assert [name for name, tensor in tensors.items() if not torch.equal(tensor, others[name])] == []
    assert values == other_values


@pytest.mark.parametrize("settings", [OPTIMISER, MUON], ids=["adamw", "muon"])
def test_a_continued_run_is_the_unbroken_one_bit_for_bit(tmp_path: Path, settings: OptimiserSettings) -> None:
    learn(tmp_path / "whole", settings)
    broken, told = tmp_path / "broken", Told()
    assert learn(broken, settings, replace(RUN, stop_at=2), told=told).stepper.step == 2
    assert told.said == ["paused after step 2; the same command goes on"]
    assert learn(broken, settings, replace(RUN, stop_at=4)).stepper.step == 4
    assert learn(broken, settings, replace(RUN, stop_at=3)).stepper.step == 4, "that is behind it"
    assert learn(broken, settings).stepper.step == 6
    assert_same(tmp_path / "whole", broken)
    assert any(name.endswith(".momentum") for name in newest(broken)[0]) == (settings is MUON)
    lines = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line["gradient_norm"] > 0 and line["of_rows"] == [pytest.approx(line["loss"])]


def test_a_run_with_no_time_left_still_saves_a_whole_step(tmp_path: Path) -> None:
    assert learn(tmp_path, run=replace(RUN, max_seconds=1e-9)).stepper.step == 1
    assert newest(tmp_path)[1]["step"] == 1


def test_parts_of_a_batch_add_up(tmp_path: Path) -> None:
    """Six rows at once, and the same in two parts: the mean of the loss, of its gradient and of what is told."""

    class Halves(SmallLesson):
        """Both halves of a batch of six, where it comes as one."""

        def batches(self, numbers: range) -> list[torch.Tensor]:  # type: ignore[override]
            from .small_lesson import rows

            return [torch.cat([rows(2 * number, 3), rows(2 * number + 1, 3)]) for number in numbers]

        def loss(self, batch: torch.Tensor, number: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            loss = self.net(batch).square().mean()
            return loss, {"loss": loss}

    six = RunSettings(steps=3, batch=6, micro_batch=6)
    net = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
    start = {name: value.clone() for name, value in net.state_dict().items()}
    learn(tmp_path / "one", run=six, lesson=Halves(net=net))
    net.load_state_dict(start)
    learn(tmp_path / "two", run=replace(six, micro_batch=3), lesson=SmallLesson(net=net, count=3))
    for name, tensor in newest(tmp_path / "one")[0].items():
        torch.testing.assert_close(newest(tmp_path / "two")[0][name], tensor, rtol=1e-5, atol=1e-7)
    told = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert told[0] == pytest.approx(told[1], rel=1e-6)


def test_other_settings_rows_and_parameters_are_refused(tmp_path: Path) -> None:
    learn(tmp_path, run=replace(RUN, stop_at=2))
    for optimiser, run, name in (
        (OPTIMISER, replace(RUN, batch=8), "run.batch"),
        (replace(OPTIMISER, rate=1.0), RUN, "optimiser.rate"),
        (MUON, RUN, "optimiser.name"),
    ):
        with pytest.raises(RequestError, match=rf"begun with other settings \({name}\)"):
            learn(tmp_path, optimiser, run)
    with pytest.raises(RequestError, match="what is learnt from"):
        learn(tmp_path, lesson=SmallLesson(learns_from="music"))
    with pytest.raises(CheckpointError, match="other parameters"):
        learn(tmp_path, lesson=SmallLesson(net=nn.Linear(5, 2)))


def test_a_run_may_change_its_length_until_its_decay_begins(tmp_path: Path) -> None:
    longer = replace(RUN, steps=12)
    learn(tmp_path / "whole", run=longer)
    begun = tmp_path / "begun"
    assert learn(begun, run=replace(RUN, stop_at=4)).stepper.step == 4
    learn(begun, run=longer)
    assert_same(tmp_path / "whole", begun)
    decaying = tmp_path / "decaying"
    assert learn(decaying, run=replace(RUN, stop_at=5)).stepper.step == 5
    with pytest.raises(RequestError, match=r"run\.steps"):
        learn(decaying, run=longer)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    learn(tmp_path, run=replace(RUN, stop_at=1))
    (piece,) = tmp_path.rglob("*.safetensors")
    piece.write_bytes(piece.read_bytes()[:-3])
    with pytest.raises(CheckpointError, match=r"step-0000001.pieces-00000\.safetensors cannot be read"):
        learn(tmp_path)
