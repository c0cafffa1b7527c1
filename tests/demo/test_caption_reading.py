"""Questions after captions, and two encoders that learn to answer them."""

import random
from pathlib import Path

import torch
from safetensors.torch import load_file

from kandinsky5.demo.architecture import Architecture
from kandinsky5.demo.caption_questions import ANSWERS, KIND_OPTIONS, QUESTIONS, UNASKED, ask, question_rows
from kandinsky5.demo.caption_reading import (
    ENCODERS,
    CaptionQuestions,
    ReadingRecipe,
    answer_losses,
    build_readers,
    right_answers,
    train_reading,
)
from kandinsky5.demo.captions import describe
from kandinsky5.demo.claims import Claims, Group
from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.running import Running
from kandinsky5.demo.text_states import TextReader
from kandinsky5.demo.tokenizers import load_tokenizers
from kandinsky5.demo.world import draw_scene
from kandinsky5.train.replicas import ALONE
from kandinsky5.train.settings import OptimiserSettings, RunSettings
from kandinsky5.train.tuning.holders import ReplicatedWeights
from tests.train.small_lesson import newest

CPU = torch.device("cpu")
TOY = Architecture(text_dim=64, text_ff_dim=128, text_layers=2, text_heads=2, pooled_dim=48, vision_dim=32)


def group(colour: str | None, shape: str, **said: object) -> Group:
    values = {"count": 1, "size": None, "fill": None, "position": None} | said
    return Group(colour=colour, shape=shape, **values)  # type: ignore[arg-type]


CLAIMS = Claims(
    groups=(group("red", "circle", count=2, size="small"), group("blue", "square", position="top left")),
    relations=((1, "left of", 0),),
    ground="pink",
)


def test_a_caption_is_asked_after_everything_it_says() -> None:
    asked = ask(CLAIMS, random.Random(0))
    said = {(q.kind, q.other): dict(q.answers) for q in asked}
    assert said[(None, None), (None, None)] == {"ground": "pink"}
    assert said[("red", "circle"), (None, None)] == {"count": 2, "size": "small", "fill": None, "place": None}
    assert said[("blue", "square"), (None, None)]["place"] == "top left"
    assert said[("blue", "square"), ("red", "circle")] == {"relation": "left of"}


def test_what_it_does_not_say_is_asked_after_in_its_own_words() -> None:
    absent = {
        q.kind for seed in range(40) for q in ask(CLAIMS, random.Random(seed)) if q.answers.get("count") == 0
    }
    assert {("red", "square"), ("blue", "circle")} <= absent
    assert not absent & {("red", "circle"), ("blue", "square")}
    assert all("red" in kind or "blue" in kind or kind[1] in ("circle", "square") for kind in absent)


def test_kinds_that_two_groups_share_are_left_alone() -> None:
    twins = Claims(
        groups=(group("red", "circle", size="small"), group("red", "circle", size="large")),
        relations=(),
        ground=None,
    )
    kinds = [q.kind for q in ask(twins, random.Random(1)) if q.answers.get("count") != 0]
    assert kinds == [(None, None)]


def test_rows_say_what_the_questions_say() -> None:
    rng = random.Random(3)
    for _ in range(300):
        asked = ask(describe(draw_scene(rng), rng).claims, rng)
        questions, answers = question_rows(asked)
        assert len(questions) == len(answers) == QUESTIONS
        for question, row, answer in zip(asked, questions, answers, strict=False):
            pairs = [*zip(KIND_OPTIONS, row[:2], strict=True), *zip(KIND_OPTIONS, row[2:], strict=True)]
            assert tuple(options[index] for options, index in pairs) == (*question.kind, *question.other)
            given = {
                name: options[index]
                for (name, options), index in zip(ANSWERS.items(), answer, strict=True)
                if index != UNASKED
            }
            assert given == dict(question.answers)
        assert all(index == UNASKED for row in answers[len(asked) :] for index in row)


def test_right_answers_count_only_what_is_said() -> None:
    answers = torch.full((1, 2, len(ANSWERS)), UNASKED)
    answers[0, 0, :3] = torch.tensor([2, 0, 1])
    answers[0, 1, :1] = 3
    logits = {name: torch.zeros(1, 2, len(options)) for name, options in ANSWERS.items()}
    logits["count"][0, :, 2] = 1
    logits["fill"][0, 0, 1] = 1
    right, counted = right_answers(logits, answers).tolist()
    assert (right, counted) == ([1, 0, 1, 0, 0, 0], [2, 0, 1, 0, 0, 0])
    losses = answer_losses(logits, answers)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert float(losses["relation"]) == 0


def test_the_encoders_learn_to_read(trained: Path, tmp_path: Path) -> None:
    """Also in two commands, and with answers that depend on the caption and not on the question alone."""
    qwen, clip = load_tokenizers(trained / "parts")
    recipe = ReadingRecipe(
        architecture=TOY,
        optimiser=OptimiserSettings(rate=8e-3, weight_decay=0.01, warmup=5, decay_share=0.25),
        run=RunSettings(steps=300, batch=16, micro_batch=16, seed=5, ema=0.999),
    )
    running = Running(device=CPU, dtype=torch.float32, workers=0)
    assert train_reading(recipe, running, tmp_path, qwen, clip)
    tensors, _ = newest(tmp_path / "reading")
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())
    tokens = PromptTokens(qwen, clip)
    batch = CaptionQuestions(tokens, seed=99, batch=64)[0]
    readers = build_readers(recipe, qwen, clip)
    read = TextReader(readers.text_encoder, readers.pooled_encoder, {"text-to-image": tokens})

    def loss(shifted: int) -> float:
        rows = {name: batch[name].roll(shifted, 0) for name in ("ids", "mask", "clip_ids")}
        with torch.no_grad():
            of_text, _ = readers.answerer(read({"text-to-image": rows}), batch["questions"])
        return float(sum(answer_losses(of_text, batch["answers"]).values()))

    untrained = loss(0)
    weights = ReplicatedWeights(readers.parameters(), ALONE)
    averages = weights.named({name: tensors[f"average.{name}"] for name in weights.masters})
    with torch.no_grad():
        for name, average in averages.items():
            readers.parameters()[name].copy_(average)
    encoders = load_file(tmp_path / ENCODERS)
    assert encoders.keys() == {name for name in averages if not name.startswith("answerer.")}
    assert all(torch.equal(value, averages[name]) for name, value in encoders.items())
    assert loss(0) < 0.8 * untrained
    assert loss(0) < loss(1) - 0.1
