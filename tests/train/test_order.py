"""In which order rows are learnt, which are held back, and whose words are left out."""

import hashlib
from collections import Counter
from pathlib import Path

import pytest
import torch

from kandinsky5.errors import CheckpointError
from kandinsky5.train.data.cache import TensorCache
from kandinsky5.train.data.encoding import Learnable, held_back
from kandinsky5.train.data.order import Order
from kandinsky5.train.data.rows import RowReader


def learnable(
    number: int, size: tuple[int, int] = (64, 64), share: float = 1.0, edit: bool = False
) -> Learnable:
    return Learnable(
        name=str(number),
        size=size,
        picture=f"p{number}",
        texts=("a", "b"),
        empty="e",
        source="s" if edit else None,
        share=share,
        digest=hashlib.sha256(str(number).encode()).hexdigest(),
    )


def test_an_epoch_shows_each_row_as_often_as_its_share_says() -> None:
    rows = [learnable(0), learnable(1, share=3.0), learnable(2, share=0.5), learnable(3), learnable(4)]
    order = Order(rows, 1, seed=3, editing_share=0.5)
    seen = Counter(pick.row for index in range(400) for pick in order[index])
    assert seen[1] / seen[0] == pytest.approx(3, rel=0.05)
    assert seen[2] / seen[0] == pytest.approx(0.5, rel=0.3)
    texts = Counter(pick.text for index in range(400) for pick in order[index])
    assert 150 < texts[0] < 250


def test_micro_batches_have_one_size_and_one_task() -> None:
    rows = [learnable(i, size=(64, 64) if i % 2 else (64, 96), edit=i % 3 == 0) for i in range(20)]
    order = Order(rows, 4, seed=0, editing_share=0.8)
    batches = [order[index] for index in range(200)]
    for batch in batches:
        assert len(batch) == 4
        assert len({(rows[pick.row].size, rows[pick.row].source) for pick in batch}) == 1
    edits = sum(rows[batch[0].row].source is not None for batch in batches) / len(batches)
    assert edits == pytest.approx(0.8, abs=0.06)


def test_every_row_is_seen_where_tasks_are_mixed() -> None:
    """Four sizes of pictures, of which an epoch has a quarter only, for most of it is edits."""
    sizes = [(64, 64), (64, 96), (96, 64), (32, 128)]
    rows = [learnable(i, edit=True) for i in range(10)]
    rows += [learnable(10 + i, size=sizes[i % 4]) for i in range(90)]
    order = Order(rows, 1, seed=0, editing_share=0.8)
    seen = Counter(pick.row for index in range(3000) for pick in order[index])
    assert set(seen) == set(range(100))
    assert sum(seen[row] for row in range(10)) / 3000 == pytest.approx(0.8, abs=0.01)
    by_size = Counter(rows[row].size for row in seen.elements() if row >= 10)
    assert all(by_size[size] == pytest.approx(150, rel=0.25) for size in sizes)


def test_rows_that_chance_leaves_out_come_all_the_same() -> None:
    rows = [learnable(0, share=0.0), learnable(1, share=1e-9)]
    order = Order(rows, 1, seed=0, editing_share=0.5)
    assert [order[index][0].row for index in range(5)] == [1] * 5


def test_the_order_is_a_function_of_seed_and_number() -> None:
    rows = [learnable(i) for i in range(7)]
    a, b = (Order(rows, 2, seed=1, editing_share=0.5) for _ in range(2))
    forwards = [a[index] for index in range(30)]
    assert [b[index] for index in reversed(range(30))] == forwards[::-1]
    assert [Order(rows, 2, seed=2, editing_share=0.5)[index] for index in range(30)] != forwards


def test_rows_are_held_back_by_their_own_hashes() -> None:
    rows = [learnable(i) for i in range(1000)]
    learnt, back = held_back(rows, 0.1)
    assert 50 < len(back) < 150 and len(learnt) + len(back) == 1000
    assert {row.name for row in held_back(rows[:500], 0.1)[1]} == {
        row.name for row in back if int(row.name) < 500
    }


def test_words_are_left_out_of_the_share_asked_for(tmp_path: Path) -> None:
    cache = TensorCache(tmp_path)
    for key, value in (("p0", 0.0), ("a", 1.0), ("b", 1.0), ("e", 0.0)):
        shapes = {"mean": (1, 2, 2, 4), "deviation": (1, 2, 2, 4), "text": (3, 5), "pooled": (6,)}
        cache.put(key, {name: torch.full(shape, value) for name, shape in shapes.items()})
    rows = [learnable(0)]
    reader = RowReader(rows, cache, unconditional=0.25, seed=9)
    order = Order(rows, 1, seed=0, editing_share=0.5)
    stream = list(reader.stream((order[index], index) for index in range(400)))
    empty = sum(float(one.conditioning.text.sum()) == 0 for one in stream)
    assert empty == pytest.approx(100, abs=30)
    assert len({one.seeds for one in stream}) == 400
    cache.path("p0").unlink()
    with pytest.raises(CheckpointError, match="gone or damaged"):
        reader.read(order[0], 0)
