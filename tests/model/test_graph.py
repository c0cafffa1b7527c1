"""When a shape is captured, and when its graph is dropped. What a graph computes: `test_fast_path` on a GPU."""

import pytest
import torch

from kandinsky5.model.graph import KEPT, PLAIN_CALLS, REMEMBERED, Replays


def plain(x, mask):
    raise AssertionError("only asked for, never called")


class Capture:
    """Stands where `CapturedCall` does, which needs a GPU."""

    def __init__(self, fails=None):
        self.made = []
        self.fails = fails

    def __call__(self, function, inputs, pool):
        assert function is plain
        if self.fails is not None:
            raise self.fails
        self.made.append(tuple(inputs[0].shape))
        return lambda *_: f"replay {self.made[-1]}"


def ask(replays, length, times=1, computing="flash"):
    for _ in range(times):
        found = replays.of(plain, (torch.zeros(length), None), computing)
    return found


@pytest.fixture
def roomy(monkeypatch):
    """Free memory of the device, all of it, and what tensors and the allocator hold."""
    state = {"free": 100, "all": 100, "reserved": 0, "allocated": 0}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (state["free"], state["all"]))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: state["reserved"])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: state["allocated"])
    return state


def test_a_shape_runs_plainly_before_it_is_captured():
    replays = Replays(insisted=True, capture=Capture())
    assert ask(replays, 4, PLAIN_CALLS) is plain
    replay = ask(replays, 4)
    assert replay is not plain and len(replays) == 1
    assert ask(replays, 4, 10) is replay
    assert ask(replays, 5) is plain, "each shape by itself"


def test_another_back_end_is_another_graph():
    replays = Replays(insisted=True, capture=Capture())
    ask(replays, 4, PLAIN_CALLS + 1, "flash")
    assert ask(replays, 4, computing="cudnn") is plain


def test_the_shape_not_asked_for_the_longest_goes_first():
    capture = Capture()
    replays = Replays(insisted=True, capture=capture)
    for length in range(1, KEPT + 1):
        ask(replays, length, PLAIN_CALLS + 1)
    ask(replays, 1)
    ask(replays, KEPT + 1, PLAIN_CALLS + 1)
    assert len(replays) == KEPT
    assert ask(replays, 1) is not plain
    assert ask(replays, 2) is plain


def test_forgotten_graphs_are_captured_anew():
    capture = Capture()
    replays = Replays(insisted=True, capture=capture)
    ask(replays, 4, PLAIN_CALLS + 1)
    replays.forget()
    assert len(replays) == 0
    assert ask(replays, 4, PLAIN_CALLS) is plain
    ask(replays, 4)
    assert capture.made == [(4,), (4,)]


def test_nobody_insists_where_memory_is_short(roomy):
    replays = Replays(insisted=False, capture=Capture())
    roomy |= {"free": 10, "reserved": 30, "allocated": 20}
    assert ask(replays, 4, PLAIN_CALLS + 2) is plain
    roomy |= {
        "free": 10,
        "reserved": 40,
        "allocated": 20,
    }  # what the allocator holds and no tensor needs counts too
    assert ask(replays, 4) is not plain


def test_what_cannot_be_captured_is_not_tried_again(caplog):
    capture = Capture(RuntimeError("operation not permitted when stream is capturing\nmore"))
    replays = Replays(insisted=True, capture=capture)
    assert ask(replays, 4, PLAIN_CALLS + 1) is plain
    capture.fails = None
    assert ask(replays, 4, 3) is plain and capture.made == []
    assert [r.message for r in caplog.records] == [
        "No CUDA graphs: operation not permitted when stream is capturing"
    ]


def test_the_end_of_memory_is_told(roomy):
    replays = Replays(insisted=True, capture=Capture(torch.OutOfMemoryError("CUDA out of memory")))
    with pytest.raises(torch.OutOfMemoryError):
        ask(replays, 4, PLAIN_CALLS + 1)


def test_shapes_that_take_turns_are_each_captured():
    replays = Replays(insisted=True, capture=Capture())
    for _ in range(PLAIN_CALLS + 1):
        for length in (1, 2, 3):
            ask(replays, length)
    assert len(replays) == 3


def test_counts_do_not_grow_with_every_length_of_a_prompt():
    replays = Replays(insisted=True, capture=Capture())
    for length in range(1, 3 * REMEMBERED):
        ask(replays, length)
    assert len(replays._seen) <= REMEMBERED
    ask(replays, 1, PLAIN_CALLS + 1)
    assert len(replays) == 1
