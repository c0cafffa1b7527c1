"""`kandinsky5 demo score` and `kandinsky5 demo pictures`, with a real toy model (`judge`: `test_drawn_sets`)."""

import json
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from kandinsky5.cli import demo as command
from kandinsky5.cli import extras
from kandinsky5.cli.app import run
from kandinsky5.demo import pictures
from kandinsky5.demo.examination import SETS
from kandinsky5.demo.withheld import COMPOSITIONS, EDITS, compositions, foreign_sentences

QUICK = ["--count", "2", "--steps", "1", "--batch", "2", "--device", "cpu", "--quiet"]


@pytest.fixture
def model(trained: Path) -> str:
    return str(trained / "weights")


def test_scores_are_printed_and_written(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["demo", "score", model, "-o", str(out), *QUICK]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert [line.split(":")[0] for line in lines if ": 2 " in line] == list(SETS)
    assert sum(line.startswith("objects ") for line in lines) == 2
    assert sum(line.startswith("done ") for line in lines) == 1
    assert captured.err == ""
    assert set(lines[-5:]) == {str(path) for path in out.iterdir()}
    record = json.loads((out / "score.json").read_text())
    assert (record["model"], record["steps"], record["seed"]) == (model, 1, 0)
    assert record["guidance"] == 3.0, "the checkpoint's own"
    texts = [wrong["text"] for wrong in record["sets"]["compositions"]["wrong"]]
    assert texts == [question.text for question in compositions(2)]


def test_the_options_speak_of_the_sets_there_are() -> None:
    assert [one.value for one in command.Set] == list(SETS)
    counts = f"{COMPOSITIONS}, {len(foreign_sentences())} and {EDITS}"
    [option] = [part for part in get_args(command.CountOfSet) if hasattr(part, "help")]
    assert option.help.endswith(f"Default: {counts}.")


def test_one_set_as_json(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--set", "foreign", "--json", "--guidance", "1", "--seed", "4", "-o", str(tmp_path)]
    assert run(["demo", "score", model, *QUICK, *arguments]) == 0
    record = json.loads(capsys.readouterr().out)
    assert list(record["sets"]) == ["foreign"]
    assert (record["guidance"], record["seed"]) == (1.0, 4)
    assert record["sets"]["foreign"]["wrong"][0]["text"] == foreign_sentences(2)[0].text
    assert json.loads((tmp_path / "score.json").read_text()) == record


def test_a_set_that_the_model_cannot_answer_is_refused(
    drawing_only: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(["demo", "score", str(drawing_only), "--set", "edits", "-o", str(out), *QUICK]) == 2
    assert "cannot answer edits" in capsys.readouterr().err
    assert not out.exists()


def test_without_scipy_the_extra_is_named(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(extras, "find_spec", lambda name: None)
    assert run(["demo", "score", model, *QUICK]) == 2
    assert "kandinsky5[demo]" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["score", "judge", "pictures"])
@pytest.mark.parametrize("inside", ["", "deeper"])
def test_a_folder_that_cannot_be_is_refused_before_anything_is_loaded(
    command: str, inside: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    assert run(["demo", command, str(tmp_path / "empty"), "-o", str(tmp_path / "file" / inside)]) == 2
    assert "file is not a folder" in capsys.readouterr().err


def test_a_seed_beyond_torch_s_is_refused(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo", "score", model, "--seed", str(2**64), *QUICK]) == 2
    assert "--seed" in capsys.readouterr().err


def test_running_out_of_memory_names_the_batch(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*arguments: object) -> None:
        raise MemoryError

    monkeypatch.setattr("kandinsky5.demo.examination.draw_prompts", full)
    assert run(["demo", "score", model, "-o", str(tmp_path), *QUICK]) == 4
    assert "--batch" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_pictures_of_the_page_and_its_scores(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "STEPS", (1,))
    monkeypatch.setattr(pictures, "GUIDANCES", (3.0,))
    page, out = tmp_path / "page.md", tmp_path / "images"
    page.write_text(f"{pictures.BEGIN}\n{pictures.END}\n")
    assert run(["demo", "pictures", model, "-o", str(out), "--page", str(page), *QUICK]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(out / f"embedded-{name}.png")
        for name in ("grid", "guidance-steps", "edits", *(f"failures-{one}" for one in SETS))
    ]
    for file in out.iterdir():
        Image.open(file).verify()
    assert "| claimed things with everything claimed of them | 0.0% |" in page.read_text()


def test_a_page_without_marks_is_refused_before_anything_is_drawn(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    out = tmp_path / "images"
    assert run(["demo", "pictures", "no-such-model", "-o", str(out), "--page", str(page)]) == 2
    assert "scores: begin" in capsys.readouterr().err
    assert not out.exists()
