"""What a run shows of itself: validation over every row, rates of steps alone, each step once, and other writers."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kandinsky5.errors import RequestError
from kandinsky5.train import training, watching
from kandinsky5.train.data.cache import TensorCache
from kandinsky5.train.packages import check_packages
from kandinsky5.train.preparing import Data
from kandinsky5.train.replicas import Replicas
from kandinsky5.train.settings import ObjectiveSettings, TrainingSettings, TuningSettings
from kandinsky5.train.settings_file import read_settings
from kandinsky5.train.tuning import lesson

from .conftest import Told
from .test_order import learnable

Run = Callable[..., Told]


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_validation_takes_every_row_once_whoever_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of other weights and tasks too; three processes make two passes each for five rows."""
    rows = [learnable(i, share=3.0 if i else 0.0, edit=i % 2 == 1) for i in range(5)]
    read: list[int] = []

    def reads(self: object, picks: Any, first: int) -> int:
        read.append(first)
        assert picks[0].row == first % 5
        return picks[0].row

    def loss_of(network: object, row: int) -> torch.Tensor:
        return torch.tensor([10.0**row])

    monkeypatch.setattr(watching.RowReader, "read", reads)
    monkeypatch.setattr(watching, "points_of", lambda row, *_: row)
    monkeypatch.setattr(watching, "losses", loss_of)
    monkeypatch.setattr(Replicas, "add_up", lambda self, tensors: None)
    network = SimpleNamespace(eval=lambda: None, train=lambda: None)
    model: Any = SimpleNamespace(network=network, device=torch.device("cpu"), dtype=torch.float32)
    data = Data(rows=[], held_back=rows, prompts=[], flaws=[], cache=TensorCache(tmp_path))
    found = []
    for rank in range(3):
        replicas = Replicas(count=3, rank=rank)
        found.append(5 * watching.validation_loss(model, data, ObjectiveSettings(), replicas))
    assert sum(found) == pytest.approx(11111)
    assert sorted(read) == [0, 1, 2, 3, 4, 5]


def test_rates_are_those_of_steps_alone(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*arguments: object) -> float:
        time.sleep(1)
        return 1.0

    monkeypatch.setattr(lesson, "validation_loss", slow)
    trained(
        run__steps=2, watch__log_every=2, watch__validation_every=1, data__validation_share=0.3,
        run__batch=4, objective__unconditional=0.0,
    )  # fmt: skip
    (line,) = [line for line in lines(tmp_path / "training") if "loss" in line]
    assert line["steps_per_second"] > 2 / 1.5  # two steps, between two looks of a second each
    tokens = line["tokens_per_second"] / line["rows_per_second"]
    assert 4 * 4 < tokens < 4 * 4 + 40  # of a picture of 64 x 64, and its words


def test_each_step_stands_in_the_log_once(trained: Run, tmp_path: Path) -> None:
    """Killed after step 5, continued from step 3, and begun anew where there is no checkpoint."""
    output = tmp_path / "training"
    trained(stop_at=2, data__validation_share=0.3, watch__validation_every=1)
    trained(stop_at=5, data__validation_share=0.3, watch__validation_every=1)
    with (output / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "validation_l')
    trained(data__validation_share=0.3, watch__validation_every=1)
    found = lines(output)
    assert [line["step"] for line in found if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in found if "validation_loss" in line] == [0, 1, 2, 3, 4, 5, 6]


def test_the_card_of_a_finished_run_keeps_its_figures(trained: Run, tmp_path: Path) -> None:
    trained(run__steps=2, data__validation_share=0.3)
    card = (tmp_path / "training" / "README.md").read_text()
    assert "| validation loss before |" in card and "| validation loss |" in card
    trained(run__steps=2, data__validation_share=0.3)
    assert (tmp_path / "training" / "README.md").read_text() == card


def test_weights_and_biases(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's few functions that are used, as a module of its name."""
    told: list[Any] = []
    account = SimpleNamespace(
        log=lambda values, step: told.append((step, values)), finish=lambda: told.append("finished")
    )

    def init(*, project: str, name: str, dir: str, config: dict[str, Any]) -> SimpleNamespace:
        told.append((project, name, config["tuning"]["rank"]))
        assert Path(dir).is_dir()
        return account

    fake = SimpleNamespace(init=init, __spec__=SimpleNamespace())
    monkeypatch.setitem(sys.modules, "wandb", fake)
    trained(run__steps=2, watch__wandb="shapes", data__validation_share=0.3)
    assert told[0] == ("shapes", "training", 4) and told[-1] == "finished"
    steps = [entry[0] for entry in told[1:-1]]
    assert steps == [0, 1, 2, 2]
    assert told[1][1].keys() == {"validation_loss"}
    (line, _) = [line for line in lines(tmp_path / "training") if "loss" in line]
    assert told[2][1] == {key: value for key, value in line.items() if key not in ("step", "loss_by_time")}


def test_tensorboard(trained: Run, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trained(stop_at=5, watch__tensorboard=True)
    trained(watch__tensorboard=True)
    events = EventAccumulator(str(tmp_path / "training" / "events"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "package"),
    [
        ("watch.tensorboard=true", "tensorboard"),
        ("watch.wandb=shapes", "wandb"),
        ("tuning.kind=dora", "peft"),
        ("model.base=fp8", "torchao"),
        ("model.base=nf4", "bitsandbytes"),
        ("optimiser.name=adamw8bit", "torchao"),
        ("optimiser.name=prodigy", "prodigyopt"),
        ("optimiser.name=schedule-free", "schedulefree"),
        ("data.sources.kind=webdataset", "webdataset"),
    ],
)
def test_missing_packages_are_said_before_anything_is_loaded(
    change: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("")
    settings = read_settings(file, [change, "model.name=none/there"])
    monkeypatch.setattr("kandinsky5.train.packages.find_spec", lambda name: None if name == package else True)
    with pytest.raises(RequestError, match=rf"{change.split('=')[0]} = .*needs the package {package}: pip"):
        training.train(settings, tmp_path, Told())
    check_packages(TrainingSettings(tuning=TuningSettings(kind="full")))
