"""Pictures drawn elsewhere come home as files and get the scores that they would have had there."""

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from kandinsky5.cli.app import run
from kandinsky5.demo.drawn_sets import COLUMNS, RECORD, DrawnSets, load_drawn, save_drawn
from kandinsky5.demo.examination import texts_of, true_picture
from kandinsky5.demo.preview import load_exported, save_withheld
from kandinsky5.demo.sampling import Sampling, draw_edits, draw_prompts
from kandinsky5.demo.sheets import tiled, untiled
from kandinsky5.demo.withheld import compositions, withheld_edits
from kandinsky5.errors import CheckpointError, RequestError

MANY = COLUMNS + 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """True answers to compositions and edits, on two rows of a sheet; the last of each is blank."""
    blank = np.full((256, 256, 3), 255, np.uint8)
    drawn = [true_picture(question.scene, 256) for question in compositions(MANY - 1)]
    edited = [true_picture(question.edit.target, 256) for question in withheld_edits(6)]
    sets = DrawnSets(
        pictures={"compositions": [*drawn, blank], "edits": [*edited, blank]}, facts={"steps": 7, "seed": 3}
    )
    paths = save_drawn(sets, tmp_path / "drawn")
    assert {path.name for path in paths} == {"compositions.png", "edits.png", RECORD}
    return tmp_path / "drawn"


def test_a_sheet_comes_apart_again() -> None:
    pictures = [np.random.default_rng(n).integers(0, 256, (16, 16, 3), dtype=np.uint8) for n in range(7)]
    sheet = tiled(pictures, columns=3)
    assert sheet.size == (48, 48)
    for found, expected in zip(untiled(sheet, columns=3, count=7), pictures, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_one_command_scores_both_tasks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["demo", "judge", str(folder), "-o", str(tmp_path / "score")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("whole") and f"{MANY - 1} of {MANY}" in line for line in lines)
    assert any(line.startswith("done") and "6 of 7" in line for line in lines)
    record = json.loads((tmp_path / "score/score.json").read_text())
    assert (record["drawn"], record["steps"], record["seed"]) == (str(folder), 7, 3)
    assert [wrong["number"] for wrong in record["sets"]["compositions"]["wrong"]] == [MANY - 1]
    assert [wrong["number"] for wrong in record["sets"]["edits"]["wrong"]] == [6]
    names = {path.name for path in (tmp_path / "score").iterdir()}
    assert names == {"score.json", "score.md", "failures-compositions.png", "failures-edits.png"}


def test_answers_to_other_questions_are_refused(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    record["sets"]["edits"][2] += "!"
    (folder / RECORD).write_text(json.dumps(record))
    with pytest.raises(RequestError, match="answers edits that this version does not ask"):
        load_drawn(folder)


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no withheld\.json"):
        load_drawn(tmp_path)
    sheet = (folder / "edits.png").read_bytes()
    (folder / "edits.png").write_bytes(sheet[: len(sheet) // 2])
    with pytest.raises(CheckpointError, match="cannot be read as drawn sets"):
        load_drawn(folder)
    (folder / "edits.png").unlink()
    with pytest.raises(CheckpointError, match=r"edits\.png"):
        load_drawn(folder)
    tiled([np.zeros((256, 256, 3), np.uint8)], columns=COLUMNS).save(folder / "compositions.png")
    with pytest.raises(CheckpointError, match=f"no sheet of {MANY} pictures"):
        load_drawn(folder)
    (folder / RECORD).write_text("[]")
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_drawn(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": 0}, "cannot be read as drawn sets"),
        ({"sets": {}}, "holds answers to no set"),
        ({"sets": {"dreams": ["a cat"]}}, "answers dreams that this version does not ask"),
    ],
)
def test_a_list_that_says_something_else_is_named(
    folder: Path, change: dict[str, object], words: str
) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps(record | change))
    with pytest.raises((CheckpointError, RequestError), match=words):
        load_drawn(folder)


def test_files_made_to_harm_are_named(folder: Path) -> None:
    sheet = bytearray((folder / "compositions.png").read_bytes())
    sheet[16:24] = struct.pack(">II", 200_000, 200_000)
    sheet[29:33] = struct.pack(">I", zlib.crc32(sheet[12:29]))
    (folder / "compositions.png").write_bytes(sheet)
    with pytest.raises(CheckpointError, match="decompression bomb"):
        load_drawn(folder)
    (folder / RECORD).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match="recursion"):
        load_drawn(folder)


def test_the_stage_draws_what_is_asked(trained: Path, tmp_path: Path) -> None:
    pipeline = load_exported(trained / "weights", torch.device("cpu"))
    fast = Sampling(steps=1, guidance=3.0, seed=5, batch=2)
    save_withheld(pipeline, tmp_path, sets=("edits", "compositions"), count=3, sampling=fast)
    drawn = load_drawn(tmp_path)
    assert (drawn.facts["steps"], drawn.facts["seed"], drawn.facts["dtype"]) == (1, 5, "bfloat16")
    sources = [true_picture(question.edit.source, 64) for question in withheld_edits(3)]
    expected = {
        "compositions": list(draw_prompts(pipeline, texts_of("compositions", 3), fast)),
        "edits": list(draw_edits(pipeline, sources, texts_of("edits", 3), fast)),
    }
    assert list(drawn.pictures) == list(expected)
    for name, pictures in expected.items():
        np.testing.assert_array_equal(np.stack(drawn.pictures[name]), np.stack(pictures))
