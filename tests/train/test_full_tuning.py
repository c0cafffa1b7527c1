"""Every weight learns: looking at a run does not change it, and it goes on where it stopped, whatever steps it."""

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kandinsky5.errors import RequestError
from kandinsky5.train.settings import OptimiserSettings
from kandinsky5.train.tuning.holders import ShardedWeights
from kandinsky5.train.tuning.sharding import make_mesh, shard
from kandinsky5.train.tuning.stepper import Stepper

from .conftest import Told

Run = Callable[..., Told]
FULL: dict[str, Any] = {"tuning__kind": "full", "optimiser__rate": 0.003, "run__micro_batch": 2}


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """The compilation of torchao's optimisers and of blocks takes a processor long and changes no value."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / "step-0000006" / "pieces-00000.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize(
    "changes", [{"run__ema": 0.9}, {"optimiser__name": "schedule-free"}], ids=["average", "schedule-free"]
)
def test_looking_changes_nothing_and_a_stopped_run_continues_bit_for_bit(
    trained: Run, tmp_path: Path, changes: dict[str, object]
) -> None:
    changes = FULL | {"data__validation_share": 0.3} | changes
    seen = {"watch__validation_every": 1, "watch__prompts": ["a star"], "watch__steps": 1}
    seen["watch__pictures_every"] = 2
    trained(output="unseen", **changes)
    trained(output="seen", **changes, **seen)
    assert_same(state(tmp_path / "unseen"), state(tmp_path / "seen"))
    trained(output="parts", stop_at=4, **changes, **seen)
    trained(output="parts", **changes, **seen)
    assert_same(state(tmp_path / "unseen"), state(tmp_path / "parts"))


@pytest.mark.parametrize("name", ["prodigy", "adamw8bit", "muon"])
def test_other_optimisers_continue(name: str, trained: Run, tmp_path: Path) -> None:
    changes = FULL | {"optimiser__name": name, "run__batch": 2}
    if name == "prodigy":
        changes["optimiser__rate"] = 1.0
    whole = trained(output="whole", **changes)
    trained(output="parts", stop_at=4, **changes)
    continued = trained(output="parts", **changes)
    assert continued.losses == {step: whole.losses[step] for step in (4, 5, 6)}
    assert_same(state(tmp_path / "whole"), state(tmp_path / "parts"))


def test_blocks_are_compiled_before_they_are_cut_up(
    trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []
    original = torch.nn.Module.compile

    def compile(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        compiled.append(type(module).__name__)
        original(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, "compile", compile)
    expected = trained(output="eager", **FULL, run__steps=2).losses
    assert trained(output="compiled", **FULL, run__steps=2, run__compile=True).losses == expected
    assert set(compiled) == {"TextBlock", "VisualBlock"}


@pytest.mark.slow
def test_compiled_blocks_learn_the_same(trained: Run, tmp_path: Path) -> None:
    """By the real compiler, which takes a processor about a minute."""
    torch.compiler.set_stance("default")
    expected = trained(output="eager", **FULL, run__steps=2).losses
    found = trained(output="compiled", **FULL, run__steps=2, run__compile=True).losses
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["prodigy", "muon"])
def test_what_looks_at_more_than_pieces_is_refused_where_weights_are_cut_up(
    name: str, monkeypatch: pytest.MonkeyPatch, trained: Run
) -> None:
    from kandinsky5.train import training
    from kandinsky5.train.replicas import Replicas

    monkeypatch.setattr(training, "join_replicas", lambda: Replicas(count=2, rank=0))
    with pytest.raises(RequestError, match=rf"{name}.*schedule-free.*one process"):
        trained(**FULL | {"optimiser__name": name, "run__batch": 4})


class Two(torch.nn.Module):
    """What `shard` wants of a network."""

    def __init__(self) -> None:
        super().__init__()
        self.text_transformer_blocks = torch.nn.ModuleList([torch.nn.Linear(5, 5)])
        self.visual_transformer_blocks = torch.nn.ModuleList([torch.nn.Linear(5, 5)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in (*self.text_transformer_blocks, *self.visual_transformer_blocks):
            x = block(x)
        return x


def test_masters_are_plain_tensors_that_share_the_network_s_memory() -> None:
    """What steps them is torch's one-pass AdamW, and the clipped norm is that of all gradients."""
    try:
        torch.manual_seed(0)
        network = Two()
        shard(network, make_mesh(torch.device("cpu"), 1), torch.float32)
        weights = ShardedWeights(network, dict(network.named_parameters()))
        stepper = Stepper(weights, OptimiserSettings(warmup=1), steps=3, ema=0.5)
        assert stepper._optimiser.defaults["fused"]
        for _ in range(2):
            for _ in range(2):
                network(torch.ones(3, 5)).sum().backward()
            gradients = [p.grad.full_tensor() for p in network.parameters()]
            expected = torch.linalg.vector_norm(torch.cat([g.reshape(-1) for g in gradients]))
            torch.testing.assert_close(stepper(), expected)
        for name, parameter in network.named_parameters():
            assert type(weights.masters[name].data) is torch.Tensor
            assert parameter.to_local().data_ptr() == weights.masters[name].data_ptr(), name
    finally:
        torch.distributed.destroy_process_group()


def test_a_run_warns_of_nothing_that_its_user_can_mend(trained: Run) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        trained(tuning__kind="full", run__steps=2)
    assert not [warning for warning in told if "FSDP2" in str(warning.message)]
