"""A checkpoint is asked, drawn, scored and written about: each answer beside its own question."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from kandinsky5.demo import examination, pictures
from kandinsky5.demo.examination import ALL, SETS, Examined, examine, sets_for, true_picture
from kandinsky5.demo.sampling import (
    OnStep,
    Picture,
    Pipeline,
    Sampling,
    can_edit,
    draw_edits,
    draw_prompts,
    for_task,
)
from kandinsky5.demo.scorecard import (
    headlines,
    save_scores,
    score_markdown,
    score_record,
    score_text,
    write_whole,
)
from kandinsky5.demo.tables import LEAST_UNTOUCHED_DB, Tally, percent, tabulate_edits
from kandinsky5.demo.withheld import compositions, withheld_edits
from kandinsky5.errors import RequestError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline

FAST = Sampling(steps=1, guidance=3.0, seed=2, batch=2)


@pytest.fixture(scope="module")
def drawing(drawing_only: Path) -> Kandinsky5T2IPipeline:
    pipeline = Kandinsky5T2IPipeline.from_pretrained(drawing_only, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def editing(drawing: Kandinsky5T2IPipeline) -> Kandinsky5I2IPipeline:
    """The same components around a network that takes a source picture."""
    torch.manual_seed(0)
    config = {name: value for name, value in drawing.transformer.config.items() if not name.startswith("_")}
    network = Kandinsky5Transformer3DModel(**{**config, "visual_cond": True})
    for parameter in network.parameters():  # modulation begins at zero, and then the source would not matter
        torch.nn.init.normal_(parameter, std=0.05)
    pipeline = Kandinsky5I2IPipeline(**{**drawing.components, "transformer": network}, default_steps=2)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_a_picture_does_not_depend_on_its_batch(drawing: Kandinsky5T2IPipeline) -> None:
    prompts = ["a red circle", "two stars", "a green line on white"]
    in_batches = list(draw_prompts(drawing, prompts, FAST))
    one_by_one = list(draw_prompts(drawing, prompts, replace(FAST, batch=1)))
    at_once = list(draw_prompts(drawing, prompts, replace(FAST, batch=50)))
    assert [picture.shape for picture in in_batches] == [(64, 64, 3)] * 3
    for drawn in (one_by_one, at_once):
        assert max(abs(a.astype(int) - b).max() for a, b in zip(in_batches, drawn, strict=True)) <= 1
    reseeded = next(draw_prompts(drawing, prompts, replace(FAST, seed=3)))
    assert abs(reseeded.astype(int) - in_batches[0]).max() > 1


def test_an_edit_depends_on_source_and_instruction_alone(editing: Kandinsky5I2IPipeline) -> None:
    questions = withheld_edits(3)
    sources = [true_picture(question.edit.source, 64) for question in questions]
    texts = [question.text for question in questions]
    in_batches = list(draw_edits(editing, sources, texts, FAST))
    one_by_one = list(draw_edits(editing, sources, texts, replace(FAST, batch=1)))
    assert [picture.shape for picture in in_batches] == [(64, 64, 3)] * 3
    assert max(abs(a.astype(int) - b).max() for a, b in zip(in_batches, one_by_one, strict=True)) <= 1
    other = next(draw_edits(editing, sources[1:], texts, FAST))
    assert abs(other.astype(int) - in_batches[0]).max() > 1, "the source matters"


def test_steps_are_told_over_all_batches(drawing: Kandinsky5T2IPipeline) -> None:
    told: list[tuple[int, int]] = []
    settings = Sampling(steps=3, guidance=1.0, batch=2)
    list(draw_prompts(drawing, ["a", "b", "c"], settings, lambda *at: told.append(at)))
    assert told == [(n, 6) for n in range(1, 7)]


def test_one_network_serves_the_tasks_it_can(
    drawing: Kandinsky5T2IPipeline, editing: Kandinsky5I2IPipeline
) -> None:
    assert sets_for(drawing) == ("compositions", "foreign")
    assert sets_for(editing) == tuple(SETS)
    assert for_task(drawing, Kandinsky5T2IPipeline) is drawing
    other = for_task(editing, Kandinsky5T2IPipeline)
    assert other.transformer is editing.transformer
    assert (other.default_steps, other.default_guidance) == (editing.default_steps, editing.default_guidance)
    assert len(list(draw_prompts(editing, ["a red circle"], FAST))) == 1
    assert not can_edit(drawing)
    with pytest.raises(RequestError, match="text-to-image"):
        next(draw_edits(drawing, [np.zeros((64, 64, 3), np.uint8)], ["make it red"], FAST))


# --- scoring ----------------------------------------------------------------------------------------------------------


def perfect_pictures(count: int, wrong: set[int]) -> list[Picture]:
    """True pictures of the first compositions, but blank ones at some places."""
    scenes = [question.scene for question in compositions(count)]
    blank = np.full((256, 256, 3), 255, np.uint8)
    return [blank if index in wrong else true_picture(scene, 256) for index, scene in enumerate(scenes)]


def test_true_pictures_are_all_right_and_wrong_ones_are_named(
    drawing: Kandinsky5T2IPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def draw(pipeline: Pipeline, texts: Sequence[str], sampling: Sampling, on_step: OnStep | None) -> Any:
        assert texts == [question.text for question in compositions(20)]
        return perfect_pictures(20, wrong={7})

    monkeypatch.setattr(examination, "draw_prompts", draw)
    card = examine(drawing, "compositions", 20)
    assert {part: table["whole"].cases for part, table in card.tables.items()} == {
        ALL: 20,
        "pairs": 8,
        "relations": 8,
        "counts": 4,
    }
    assert card.tables[ALL]["whole"] == Tally(right=19, cases=20)
    assert card.tables["pairs"]["whole"] == Tally(right=7, cases=8), "the eighth is one of pairs"
    [wrong] = card.wrong
    assert (wrong["number"], wrong["text"], wrong["part"]) == (7, compositions(8)[7].text, "pairs")
    assert wrong["faults"][0].startswith("no ")
    [cell] = card.failing
    assert cell.text == wrong["text"]
    assert (cell.pictures[0] == 255).all()


def test_true_edits_are_all_right_and_wrong_ones_are_named(
    editing: Kandinsky5I2IPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = withheld_edits(14)

    def draw(
        pipeline: Pipeline, sources: Sequence[Picture], texts: Sequence[str], *rest: Any
    ) -> Iterator[Picture]:
        assert list(texts) == [question.text for question in questions]
        for index, (question, source) in enumerate(zip(questions, sources, strict=True)):
            np.testing.assert_array_equal(source, true_picture(question.edit.source, len(source)))
            yield source if index == 5 else true_picture(question.edit.target, len(source))

    monkeypatch.setattr(examination, "draw_edits", draw)
    monkeypatch.setattr(examination, "side_of", lambda pipeline: 256)
    card = examine(editing, "edits", 14)
    assert card.tables[ALL]["done"] == Tally(right=13, cases=14)
    assert card.tables[ALL]["kept"] == Tally(right=14, cases=14)
    assert card.tables[questions[5].part]["done"] == Tally(right=1, cases=2)
    assert card.tables[ALL]["untouched"].share == 1.0
    assert card.figures == {"untouched dB": None}, "every pixel is exactly the source's"
    assert [wrong["number"] for wrong in card.wrong] == [5]
    assert len(card.failing[0].pictures) == 2


def test_untouched_is_counted_from_its_limit() -> None:
    [question] = withheld_edits(1)
    report = examination.score_edit(
        question.edit, true_picture(question.edit.source, 256), true_picture(question.edit.target, 256)
    )
    near = [replace(report, untouched=LEAST_UNTOUCHED_DB + change) for change in (-0.1, 0.0, 5.0)]
    table = tabulate_edits([*near, replace(report, untouched=None)])
    assert table["untouched"] == Tally(right=2, cases=3)
    assert table["done"] == Tally(right=4, cases=4)
    assert examination.mean_untouched(near) == pytest.approx(LEAST_UNTOUCHED_DB + 4.9 / 3)


def test_a_toy_model_answers_every_set(editing: Kandinsky5I2IPipeline) -> None:
    for name in SETS:
        card = examine(editing, name, 3, FAST)
        assert card.cases == 3
        assert len(card.wrong) == len(card.failing) == 3, "it can do nothing yet"
    with pytest.raises(KeyError):
        examine(editing, "everything", 3, FAST)


# --- writing ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cards(editing: Kandinsky5I2IPipeline) -> list[Examined]:
    return [examine(editing, name, 4, FAST) for name in SETS]


def test_scores_are_written_for_people_and_programs(cards: list[Examined], tmp_path: Path) -> None:
    paths = save_scores(cards, {"model": "toy", "steps": 1}, tmp_path / "new")
    assert {path.name for path in paths} == {path.name for path in (tmp_path / "new").iterdir()}
    assert {path.name for path in paths} == {"score.json", "score.md"} | {
        f"failures-{name}.png" for name in SETS
    }
    record = json.loads((tmp_path / "new/score.json").read_text())
    assert record == json.loads(json.dumps(score_record(cards, {"model": "toy", "steps": 1})))
    assert record["model"] == "toy"
    objects = cards[0].tables[ALL]["objects"]
    assert record["sets"]["compositions"]["tables"][ALL]["objects"] == {
        "right": objects.right,
        "cases": objects.cases,
        "share": objects.share,
    }
    assert len(record["sets"]["edits"]["wrong"]) == 4
    assert (
        Image.open(tmp_path / "new/failures-edits.png").width
        > Image.open(tmp_path / "new/failures-foreign.png").width / 2
    )
    text, page = score_text(cards), score_markdown(cards)
    for card in cards:
        assert f"{card.name}: 4 {SETS[card.name]}" in text
        for part in card.tables:
            assert part == ALL or part in text
            assert f" {part} |" in page
        for name in headlines(card):
            assert percent(card.tables[ALL][name]) in page


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("before")

    def fails(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(file, fails)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]
    write_whole(file, lambda path: path.write_text("after"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["after"]


def test_the_pages_scores_are_replaced_and_nothing_else(cards: list[Examined], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{pictures.BEGIN}\nold\n{pictures.END}\n\nthe end\n")
    pictures.write_page(page, cards)
    text = page.read_text()
    assert text == f"# Title\n\n{pictures.BEGIN}\n{score_markdown(cards)}\n{pictures.END}\n\nthe end\n"
    pictures.write_page(page, cards)
    assert page.read_text() == text
    page.write_text("no marks")
    with pytest.raises(RequestError, match="scores: begin"):
        pictures.write_page(page, cards)
    with pytest.raises(RequestError, match="no page"):
        pictures.write_page(tmp_path / "none.md", cards)


def test_the_pages_pictures_hold_what_they_say(
    editing: Kandinsky5I2IPipeline, cards: list[Examined], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "STEPS", (1, 2))
    monkeypatch.setattr(pictures, "GUIDANCES", (1.0, 3.0))
    told: list[tuple[int, int]] = []
    grid = pictures.guidance_and_steps(editing, FAST, lambda *at: told.append(at))
    assert told == [(n, 6) for n in range(1, 7)], "steps of all cells in one count"
    assert grid.width == 2 * 256 + 4
    first = next(draw_prompts(editing, [pictures.OVER_PROMPT], replace(FAST, guidance=1.0)))
    np.testing.assert_array_equal(
        np.asarray(grid)[:256, :256], np.asarray(Image.fromarray(first).resize((256, 256)))
    )
    prompts = pictures.prompt_grid(editing, replace(FAST, batch=24))
    assert prompts.size == (6 * 260 - 4, 4 * (256 + 2 * 13 + 2))
    edits = pictures.edit_grid(editing, replace(FAST, batch=15))
    assert edits.width == 3 * (2 * 256 + 4 + 4) - 4
    assert pictures.few_failures(cards[2]).height < 2 * 400
