"""From words to an engine: what the real opener says when a model does not fit."""

from typing import Any

import pytest
import torch

import kandinsky5.loading
from kandinsky5.budget import Budget
from kandinsky5.cli.opening import open_engine
from kandinsky5.errors import CapacityError, RequestError


def test_a_model_that_does_not_fit_is_a_capacity_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(model: str, **settings: str) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(kandinsky5.loading, "load_pipeline", full)
    with pytest.raises(CapacityError, match="embedded does not fit into the memory of device cpu"):
        open_engine("embedded", "cpu", "auto")


def test_an_engine_is_named_after_its_source(saved_folder: str) -> None:
    engine = open_engine(saved_folder, "cpu", "float32")
    assert engine.source == saved_folder
    assert engine.pipeline.default_steps == 3


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mode": "fast"}, "'fast' is not one of exact, fp8"),
        ({"mode": "exact", "budget": Budget()}, "leave the mode"),
    ],
)
def test_a_mode_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    monkeypatch.delattr(kandinsky5.loading.hub, "fetch")
    with pytest.raises(RequestError, match=words):
        kandinsky5.loading.load_pipeline("t2i-lite-sft", device="cpu", **settings)


@pytest.mark.parametrize(
    "words", [("nothing", "cpu", "auto"), ("embedded", "gpu", "auto"), ("embedded", "cpu", "int8")]
)
def test_words_that_name_nothing_are_request_errors(words: tuple[str, str, str]) -> None:
    with pytest.raises(RequestError, match=repr(next(w for w in words if w in ("nothing", "gpu", "int8")))):
        open_engine(*words)
