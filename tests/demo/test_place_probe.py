"""The probe reads places, and a network of relative positions learns to tell them from noise once it is asked."""

import torch

from kandinsky5.demo.place_probe import PlaceProbe, places
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel


def test_places_are_rows_and_columns_of_unit_deviation() -> None:
    table = places(4)
    assert table.shape == (16, 2)
    torch.testing.assert_close(table.mean(0), torch.zeros(2))
    torch.testing.assert_close(table.std(0, correction=0), torch.ones(2))
    grid = table.reshape(4, 4, 2)
    assert (grid[1:, :, 0] > grid[:-1, :, 0]).all() and (grid[:, 1:, 1] > grid[:, :-1, 1]).all()


def test_a_probe_pays_one_for_knowing_nothing_and_nothing_for_the_truth() -> None:
    probe = PlaceProbe(2)
    with torch.no_grad():
        probe.reading.bias.zero_()
        probe.reading.weight.zero_()
        states = places(8).expand(3, -1, -1)
        torch.testing.assert_close(probe(states), torch.tensor(1.0))
        probe.reading.weight.copy_(torch.eye(2))
        assert float(probe(states)) == 0.0


def test_the_network_finds_places_in_noise_once_asked() -> None:
    torch.manual_seed(0)
    network = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=8,
        in_text_dim2=8,
        time_dim=16,
        model_dim=64,
        ff_dim=128,
        num_text_blocks=1,
        num_visual_blocks=3,
        axes_dims=(8, 12, 12),
    )
    probe = PlaceProbe(64)
    states: list[torch.Tensor] = []
    network.visual_transformer_blocks[-1].register_forward_hook(lambda _m, _i, out: states.append(out))
    optimiser = torch.optim.AdamW([*network.parameters(), *probe.parameters()], lr=3e-3)
    losses = []
    for _ in range(120):
        network(
            torch.randn(8, 1, 12, 12, 4),
            torch.zeros(8, 2, 8),
            1000.0,
            torch.zeros(8, 8),
            [torch.arange(1), torch.arange(6), torch.arange(6)],
            torch.arange(2),
        )
        loss = probe(states.pop())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss.detach()))
    assert min(losses[:5]) > 0.8
    assert sum(losses[-5:]) / 5 < 0.3
