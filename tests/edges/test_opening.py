"""From words to an engine: what the real opener says when a model does not fit."""

from pathlib import Path
from typing import Any

import pytest
import torch

import kandinsky5.loading
from kandinsky5.budget import Budget
from kandinsky5.cli.opening import open_engine
from kandinsky5.errors import CapacityError, RequestError
from kandinsky5.pipelines import Kandinsky5T2IPipeline


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
        ({"mode": "exact", "memory": Budget()}, "leave mode= or memory= out"),
        ({"memory": "much"}, "is no amount: say 8GB"),
        ({"memory": 8e9}, 'an amount, such as "8GB", or a Budget, not 8000000000'),
    ],
)
def test_a_mode_or_a_budget_is_refused_before_anything_is_fetched(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], words: str
) -> None:
    monkeypatch.delattr(kandinsky5.loading.hub, "fetch")
    with pytest.raises(RequestError, match=words):
        kandinsky5.loading.load_pipeline("t2i-lite-sft", device="cpu", **settings)


def test_a_folder_may_be_a_path(saved_folder: str) -> None:
    pipe = kandinsky5.loading.load_pipeline(Path(saved_folder), device="cpu", dtype="float32")
    assert pipe.config["_name_or_path"] == saved_folder


def test_a_task_that_is_none() -> None:
    with pytest.raises(RequestError, match="task='edit' is not one of text-to-image, editing"):
        kandinsky5.loading.load_pipeline("embedded", task="edit")  # type: ignore[call-overload]


def test_a_file_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would look to the hub: two names with a slash between them."""
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/kandinsky5lite_t2i.safetensors").touch()
    name = "models/kandinsky5lite_t2i.safetensors"
    for load in (kandinsky5.loading.load_pipeline, Kandinsky5T2IPipeline.from_pretrained):
        with pytest.raises(
            RequestError, match=r"is a file, and a model is a folder or a hub id.*from_single_file"
        ):
            load(name)


@pytest.mark.parametrize(
    "words", [("nothing", "cpu", "auto"), ("embedded", "gpu", "auto"), ("embedded", "cpu", "int8")]
)
def test_words_that_name_nothing_are_request_errors(words: tuple[str, str, str]) -> None:
    with pytest.raises(RequestError, match=repr(next(w for w in words if w in ("nothing", "gpu", "int8")))):
        open_engine(*words)
