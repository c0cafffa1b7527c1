"""Replayed passes give the gradients of plain ones, and a capture that fails leaves nothing behind."""

import pytest
import torch
from torch import Tensor

from kandinsky5.model import graph
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.records import Conditioning
from kandinsky5.train.data.rows import Rows
from kandinsky5.train.rectified_flow import points_of
from kandinsky5.train.replicas import Replicas
from kandinsky5.train.settings import ObjectiveSettings, TuningSettings
from kandinsky5.train.tuning.holders import ReplicatedWeights
from kandinsky5.train.tuning.learning import learning_parameters
from kandinsky5.train.tuning.passes import TEXT_MULTIPLE, Passes, recomputed, why_not_replayed
from tests.model.tiny import config_of, drawn, relative_rms

SHARE = 0.25


def make_rows(seed: int, tokens: int = 5, edits: bool = True) -> Rows:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    latents = (2, 1, 4, 6, 16)
    return Rows(
        mean=draw(*latents),
        deviation=0.1 * draw(*latents).abs(),
        source_mean=draw(*latents) if edits else None,
        source_deviation=0.1 * draw(*latents).abs() if edits else None,
        conditioning=Conditioning(
            text=draw(2, tokens, 24), mask=torch.ones(2, tokens, dtype=torch.bool), pooled=draw(2, 20)
        ),
        seeds=(seed, seed + 1000),
    )


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    return torch.device(request.param)


@pytest.fixture
def made(device, monkeypatch):
    """`made(replayed, capture)`: passes of an adapter on the same network, and where its gradients are."""
    monkeypatch.setattr(graph, "_plenty", lambda inputs: True)

    def make(replayed, capture=graph.CapturedCall if device.type == "cuda" else again):
        network = drawn(Kandinsky5Transformer3DModel(**config_of("i2i"))).to(device).train()
        network.requires_grad_(False)
        learning = learning_parameters(network, TuningSettings(rank=3, alpha=3.0), torch.float32, seed=0)
        generator = torch.Generator().manual_seed(2)
        for parameter in learning.values():
            parameter.data = (0.2 * torch.randn(parameter.shape, generator=generator)).to(device)
        network.enable_gradient_checkpointing(recomputed)
        weights = ReplicatedWeights(learning, Replicas())
        return Passes(network, weights, replayed=replayed, capture=capture), weights

    return make


def again(function, inputs, pool):
    """A captured call on a machine that has no graphs: the places of its inputs, and the function over them."""
    places = [None if x is None else torch.empty_like(x) for x in inputs]

    def replay(*given):
        for place, x in zip(places, given, strict=True):
            if place is not None:
                place.copy_(x)
        return function(*places)

    return replay


def learnt(passes, weights, device, rows):
    """Losses of micro-batches one after another, and the sum of their gradients."""
    settings = ObjectiveSettings()
    found = [
        passes(points_of(one, settings, device, torch.float32, text_multiple=passes.text_multiple), SHARE)
        for one in rows
    ]
    sums = [master.grad.clone() for master in weights.masters.values()]
    weights.forget_gradients()
    return torch.stack(found), sums


def test_replays_are_plain_passes(made, device):
    """Of shapes that come more than twice, between others; texts are padded, which changes nothing."""
    rows = [make_rows(seed, tokens=3 + seed % 4, edits=seed % 5 != 0) for seed in range(12)]
    plain, replayed = made(False), made(True)
    expected, gradients = learnt(*plain, device, rows)
    found, same = learnt(*replayed, device, rows)
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
    for one, other in zip(same, gradients, strict=True):
        assert relative_rms(one, other) < 2e-5
    assert 1 <= len(replayed[0]._replays) <= 2, "sources or none: lengths are one"
    assert plain[0].text_multiple == 1 and replayed[0].text_multiple == TEXT_MULTIPLE


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError])
def test_a_capture_that_fails_leaves_nothing(made, device, error):
    def fails(function, inputs, pool):
        function(*inputs)  # as far as it came
        for parameter in passes._network.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        weights.forget_gradients()
        raise error("no capture")

    rows = [make_rows(seed) for seed in range(4)]
    expected, gradients = learnt(*made(False), device, rows[2:])
    passes, weights = made(True, fails)
    learnt(passes, weights, device, rows[:2])
    found, same = learnt(passes, weights, device, rows[2:])
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=1e-6)
    for one, other in zip(same, gradients, strict=True):
        assert relative_rms(one, other) < 2e-5


def test_who_is_not_replayed(made):
    weights = made(False)[1]
    cuda = torch.device("cuda")
    assert why_not_replayed(weights, cuda, dropout=0.0, compiled=False) is None
    assert "cpu" in why_not_replayed(weights, torch.device("cpu"), dropout=0.0, compiled=False)
    assert "dropout" in why_not_replayed(weights, cuda, dropout=0.1, compiled=False)
    assert "compiled" in why_not_replayed(weights, cuda, dropout=0.0, compiled=True)
    assert "move" in why_not_replayed(object(), cuda, dropout=0.0, compiled=False)
