"""What training shows the network is what the pipelines show it; gradients reach all that learns; widths may grow."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kandinsky5.cli.app import ExitCode
from kandinsky5.cli.app import run as command_line
from kandinsky5.demo.architecture import ARCHITECTURES, TOY
from kandinsky5.demo.edit_batches import text_positions
from kandinsky5.demo.examination import true_picture
from kandinsky5.demo.joint_batches import JointBatch, JointBatches
from kandinsky5.demo.network_loss import NetworkLoss, scenes_of, task_tokens
from kandinsky5.demo.network_training import RECIPE, NetworkLesson
from kandinsky5.demo.place_probe import PlaceProbe
from kandinsky5.demo.renderer import pack
from kandinsky5.demo.running import Running
from kandinsky5.demo.text_states import TextReader
from kandinsky5.demo.thing_map import ThingMap
from kandinsky5.demo.tokenizers import load_tokenizers
from kandinsky5.demo.trained_modules import TrainedModules, build_modules
from kandinsky5.demo.warm_start import take_weights
from kandinsky5.demo.withheld import withheld_edits
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.loading import load_pipeline
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from kandinsky5.train import settings as values
from kandinsky5.train.ema import warmed_decay
from kandinsky5.train.replicas import ALONE
from kandinsky5.train.schedule import learning_rate
from kandinsky5.train.settings_file import read_settings
from kandinsky5.train.training import train
from tests.train.small_lesson import Told, newest

from .conftest import toy_settings

CPU = torch.device("cpu")
FLOAT32 = Running(device=CPU, dtype=torch.float32, workers=0)
PROMPTS = ["a red circle to the left of a blue square", ""]
INSTRUCTIONS = ["", "Move the large striped turquoise squares to the top left corner."]


class Trial:
    """One batch of two captions and two instructions through training, over the weights of the exported folder."""

    def __init__(self, trained: Path):
        pipeline = load_pipeline(str(trained / "weights"), task="editing", device="cpu", dtype="float32")
        assert isinstance(pipeline, Kandinsky5I2IPipeline)
        self.editing = pipeline
        self.drawing = Kandinsky5T2IPipeline.from_pipe(pipeline)
        for one in (self.editing, self.drawing):
            one.set_progress_bar_config(disable=True)
        settings = toy_settings(trained, "run.batch=4", "run.micro_batch=4", "data.sources.draws=1")
        tokens = task_tokens(TOY, *load_tokenizers(trained / "parts"))
        torch.manual_seed(0)
        self.modules = TrainedModules(
            network=pipeline.transformer,
            text_encoder=pipeline.text_encoder,
            pooled_encoder=pipeline.text_encoder_2,
            place_probe=PlaceProbe(TOY.model_dim),
            thing_map=ThingMap(TOY.model_dim),
        )
        for parameter in self.modules.parameters().values():
            parameter.requires_grad_(True)
        self.train = NetworkLoss(self.modules, pipeline.vae, tokens, settings, FLOAT32)
        self.edits = [question.edit for question in withheld_edits(2)]
        batches = JointBatches(tokens, scenes_of(settings), seed=1, unconditional=0.0)
        self.batch = batches[0]
        drawn, edited = (
            tokens[task].rows(texts)
            for task, texts in (("text-to-image", PROMPTS), ("editing", INSTRUCTIONS))
        )
        self.batch["text-to-image"] |= {"ids": drawn.ids, "mask": drawn.mask, "clip_ids": drawn.clip_ids}
        self.batch["editing"] |= {
            "ids": edited.ids,
            "mask": edited.mask,
            "clip_ids": edited.clip_ids,
            "positions": text_positions(edited.ids, tokens["editing"].picture_token).movedim(0, 1),
            "source": pack([edit.source for edit in self.edits]),
            "target": pack([edit.target for edit in self.edits]),
        }


@pytest.fixture(scope="module")
def trial(trained: Path) -> Trial:
    return Trial(trained)


class HeardError(Exception):
    """Raised where the network would have begun to compute."""


def heard(network: nn.Module, call: Any) -> Mapping[str, Tensor]:
    """What a call gives the network first."""
    kept: dict[str, Any] = {}

    def listen(_module: nn.Module, _arguments: Any, given: dict[str, Any]) -> None:
        kept.update(given)
        raise HeardError

    handle = network.register_forward_pre_hook(listen, with_kwargs=True)
    try:
        with pytest.raises(HeardError):
            call()
    finally:
        handle.remove()
    return kept


def assert_same_text(
    of_training: Mapping[str, Tensor], rows: slice, of_pipeline: Mapping[str, Tensor]
) -> None:
    """Real tokens have the same states, and as many are real; the rest is padding to one length.

    States are about 1; a pixel in a thousand of what the tower sees is a byte apart (`test_edit_batches`).
    """
    states, mask = of_pipeline["encoder_hidden_states"], of_pipeline["encoder_attention_mask"]
    length = states.shape[1]
    assert torch.equal(of_training["encoder_attention_mask"][rows, :length], mask)
    assert not of_training["encoder_attention_mask"][rows, length:].any()
    found = of_training["encoder_hidden_states"][rows, :length]
    torch.testing.assert_close(found[mask], states[mask], rtol=0, atol=2e-3)
    torch.testing.assert_close(
        of_training["pooled_projections"][rows], of_pipeline["pooled_projections"], rtol=1e-4, atol=1e-5
    )


def test_training_draws_as_the_pipeline_draws(trial: Trial) -> None:
    """Captions, one of them empty: the same texts; and zeros where an edit has its source and mask."""
    network = trial.editing.transformer
    trained = heard(network, lambda: trial.train(trial.batch, 0))
    asked = heard(network, lambda: trial.drawing(PROMPTS, guidance_scale=1.0, num_inference_steps=1))
    assert trained["hidden_states"].shape == (4, 1, 8, 8, 33)
    assert torch.equal(trained["hidden_states"][:2, ..., 16:], asked["hidden_states"][..., 16:])
    assert not asked["hidden_states"][..., 16:].any()
    assert_same_text(trained, slice(0, 2), asked)


def test_training_edits_as_the_pipeline_edits(trial: Trial) -> None:
    """Instructions, one of them empty beside its picture: the same texts; noise, source latents, ones."""
    network = trial.editing.transformer
    trained = heard(network, lambda: trial.train(trial.batch, 0))
    sources = [Image.fromarray(true_picture(edit.source, 64)) for edit in trial.edits]
    generator = torch.Generator().manual_seed(1)
    asked = heard(
        network,
        lambda: trial.editing(
            sources, INSTRUCTIONS, guidance_scale=1.0, num_inference_steps=1, generator=generator
        ),
    )
    assert_same_text(trained, slice(2, 4), asked)
    assert (asked["hidden_states"][..., 32] == 1).all() and (trained["hidden_states"][2:, ..., 32] == 1).all()
    ours, theirs = trained["hidden_states"][2:, ..., 16:32], asked["hidden_states"][..., 16:32]
    _, mean, deviation = trial.train.encode_scenes(pack([edit.source for edit in trial.edits]))
    for sample in (ours, theirs):  # both of the source's posterior, one of a picture in bytes
        away = (sample - mean) / deviation
        assert 0.9 < float(away.std()) < 1.1 and float(away.abs().max()) < 6
    assert deviation.max() < 0.1 and (mean[0] - mean[1]).abs().max() > 1, "each row has its own source"


def test_what_guidance_compares_an_edit_with_keeps_the_picture(trial: Trial) -> None:
    """The pipeline's negative branch is the empty instruction beside source and picture, as unconditional rows are."""
    network = trial.editing.transformer
    source = Image.fromarray(true_picture(trial.edits[0].source, 64))
    both = heard(
        network,
        lambda: trial.editing(source, INSTRUCTIONS[1], guidance_scale=3.0, num_inference_steps=1),
    )
    trained = heard(network, lambda: trial.train(trial.batch, 0))
    assert torch.equal(both["hidden_states"][0, ..., 16:], both["hidden_states"][1, ..., 16:])
    length = int(both["encoder_attention_mask"][0].sum())
    assert length == 4 + 3, "four tokens of the picture, two around it, the end"
    negative = {
        "encoder_hidden_states": both["encoder_hidden_states"][:1, :length],
        "encoder_attention_mask": both["encoder_attention_mask"][:1, :length],
        "pooled_projections": both["pooled_projections"][:1],
    }
    assert_same_text(trained, slice(2, 3), negative)


def test_gradients_reach_everything_and_losses_are_told_by_task(trial: Trial) -> None:
    parameters = trial.modules.parameters()
    loss, numbers = trial.train(trial.batch, 0)
    gradients = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
    still = [name for name, gradient in gradients.items() if not gradient.any()]
    assert still == []
    assert sum(name.startswith("text_encoder.model.visual.") for name in gradients) > 20
    assert loss > numbers["loss"] + 0.1 * numbers["place"], "and the map's"
    torch.testing.assert_close(numbers["loss"], (numbers["drawing"] + numbers["editing"]) / 2)
    for task in ("drawing", "editing"):
        sums, counts = numbers[f"{task}_by_time"]
        assert counts.sum() == 2
        torch.testing.assert_close(sums.sum() / 2, numbers[task])


def test_muon_is_for_attention_and_feed_forward(trained: Path) -> None:
    modules = build_modules(TOY, 5, *load_tokenizers(trained / "parts"))
    hidden, parameters = modules.hidden(), modules.parameters()
    assert {parameters[name].ndim for name in hidden} == {2}
    assert {name.split(".")[-3] for name in hidden} == {
        *("self_attention", "cross_attention", "feed_forward"),  # the network's
        *("self_attn", "attn", "mlp"),  # the language models' and the tower's
    }
    assert modules.weights("adamw").hidden == ()
    assert all(modules.weights("muon").masters[name].ndim == 3 for name in modules.weights("muon").hidden)


def test_the_recipe_is_a_plain_loop(trained: Path) -> None:
    """Its four steps as torch would write them: the losses, gradient norms and averages of the fixture's run."""
    settings = toy_settings(trained, "watch.log_every=1")
    lesson = NetworkLesson(settings, trained, ALONE, print)
    learners = lesson.modules.parameters()
    average = {name: p.detach().clone() for name, p in learners.items()}
    groups = [
        {"params": [p for p in learners.values() if p.ndim >= 2], "weight_decay": 0.01},
        {"params": [p for p in learners.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    for step, batch in enumerate(lesson.batches(range(4))):
        loss, _ = lesson.loss(batch, step)
        loss.backward()
        nn.utils.clip_grad_norm_(learners.values(), 1.0)
        for group in adam.param_groups:
            group["lr"] = learning_rate(step, steps=4, peak=8e-4, warmup=2, decay_share=0.25)
        adam.step()
        adam.zero_grad()
        for name, p in learners.items():
            average[name].lerp_(p.detach(), 1 - warmed_decay(0.999, step + 1))
    tensors, _ = newest(trained / "network")
    found = lesson.weights.named({name: tensors[f"average.{name}"] for name in lesson.weights.masters})
    start = build_modules(TOY, 5, *load_tokenizers(trained / "parts")).parameters()
    for name, value in average.items():
        apart, moved = (found[name] - value).norm(), (value - start[name]).norm()
        # A key's bias has no gradient but what rounding leaves, and AdamW steps by its sign.
        assert apart < 0.01 * moved or "k_proj.bias" in name, name


def test_the_shipped_recipe_is_settings_as_any_are(trained: Path, tmp_path: Path) -> None:
    """A copy of the file, made small, by `kandinsky5 train`: a folder that edits; also with a batch in two parts."""
    assert read_settings(RECIPE).data.drawn == values.DrawnSettings(
        compiled=("text", "autoencoder", "renderer")
    )
    assert set(values.ARCHITECTURES) == set(ARCHITECTURES)
    shutil.copy(RECIPE, tmp_path / "recipe.toml")
    small = [
        "data.sources.architecture=toy",
        f"model.name={trained / 'parts'}",
        "model.device=cpu",
        "model.base=fp32",
    ]
    small += [
        "run.batch=8",
        "run.steps=2",
        "data.sources.draws=2",
        "watch.log_every=1",
        "run.compile=false",
        "data.sources.compiled=[]",
    ]
    for name, rows in (("one", 8), ("two", 4)):
        changes = [*small, f"output={name}", f"run.micro_batch={rows}"]
        options = [part for change in changes for part in ("--set", change)]
        assert command_line(["train", str(tmp_path / "recipe.toml"), "-q", *options]) == ExitCode.OK
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [1, 2]
        for line in lines:
            assert line["loss"] == pytest.approx((line["drawing"] + line["editing"]) / 2, rel=1e-5)
    pipeline = load_pipeline(str(tmp_path / "two/model"), task="editing", device="cpu")
    assert isinstance(pipeline, Kandinsky5I2IPipeline)


def test_a_batch_holds_both_tasks_own_batches(trained: Path) -> None:
    tokens = task_tokens(TOY, *load_tokenizers(trained / "parts"))
    batches = JointBatches(tokens, {"text-to-image": 3, "editing": 5}, seed=2, unconditional=0.1)
    first, again, other = batches[4], batches[4], batches[5]
    assert {task: len(rows["ids"]) for task, rows in first.items()} == {"text-to-image": 3, "editing": 5}
    assert first["editing"]["positions"].shape[:2] == (5, 3)
    for task in first:
        assert all(torch.equal(first[task][name], again[task][name]) for name in first[task])
        assert not torch.equal(first[task]["ids"], other[task]["ids"])
    alone = JointBatches(tokens, {"text-to-image": 3, "editing": 0}, seed=2, unconditional=0.1)[4]
    assert list(alone) == ["text-to-image"]
    assert torch.equal(alone["text-to-image"]["ids"], first["text-to-image"]["ids"])


def test_a_batch_divides_into_scenes_and_tasks(trained: Path) -> None:
    def scenes(*changes: str) -> dict[str, int]:
        size = ("run.batch=512", "run.micro_batch=512", "objective.editing_share=0.5")
        return dict(scenes_of(read_settings(RECIPE, (*size, *changes))))

    assert scenes() == {"text-to-image": 64, "editing": 64}
    assert scenes("objective.editing_share=0.8") == {"text-to-image": 26, "editing": 102}
    assert scenes("model.task=text-to-image") == {"text-to-image": 128, "editing": 0}
    for wrong in ("run.micro_batch=2", "objective.editing_share=0.0", "run.micro_batch=4"):
        with pytest.raises(RequestError, match=r"run\.micro_batch = (2|4|512) "):
            scenes(wrong)
    with pytest.raises(RequestError, match="is no folder"):
        NetworkLesson(toy_settings(trained, "model.name=t2i-lite-pretrain"), trained, ALONE, print)
    with pytest.raises(RequestError, match="has room for 800 tokens"):
        NetworkLesson(toy_settings(trained, "model.name=embedded"), trained, ALONE, print)


def test_a_network_that_only_draws_trains_without_tower(trained: Path, tmp_path: Path) -> None:
    changes = [f"output={json.dumps(str(tmp_path))}", "model.task=text-to-image", "run.steps=1"]
    settings = toy_settings(trained, *changes)
    lesson = NetworkLesson(settings, tmp_path, ALONE, print)
    assert not [name for name in lesson.modules.parameters() if "visual." in name]
    train(settings, tmp_path, Told(), NetworkLesson)
    assert newest(tmp_path)[1]["step"] == 1


def test_a_caption_is_read_the_same_beside_edits(trial: Trial, trained: Path) -> None:
    """The padding to the longer template of the other task reaches nothing."""
    batch: JointBatch = trial.batch
    tokens = task_tokens(TOY, *load_tokenizers(trained / "parts"))
    assert tokens["text-to-image"].crop != tokens["editing"].crop
    reader = TextReader(trial.editing.text_encoder, trial.editing.text_encoder_2, tokens)
    with torch.no_grad():
        alone = reader({"text-to-image": batch["text-to-image"]})
        both = reader(batch, torch.rand(2, 3, 64, 64) * 2 - 1)
    mask = alone.mask
    torch.testing.assert_close(both.text[:2][mask], alone.text[mask], rtol=1e-4, atol=1e-5)
    assert torch.equal(both.mask[:2], mask)


def saved(modules: TrainedModules, folder: Path) -> Path:
    for name, module in (
        ("transformer", modules.network),
        ("text_encoder", modules.text_encoder),
        ("text_encoder_2", modules.pooled_encoder),
    ):
        module.save_pretrained(folder / name)
    return folder


def test_a_network_that_learns_to_edit_still_draws_the_same(trained: Path, tmp_path: Path) -> None:
    qwen, clip = load_tokenizers(trained / "parts")
    sizes = (replace(TOY, editing=False), TOY, TOY)
    narrow, wide, again = (build_modules(size, 5, qwen, clip) for size in sizes)
    for parameter in narrow.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    take_weights(saved(narrow, tmp_path / "narrow"), wide)
    x = torch.randn(2, 1, 8, 8, 16)
    source = torch.randn(2, 1, 8, 8, 17)
    others = {
        "encoder_hidden_states": torch.randn(2, 5, TOY.text_dim),
        "timestep": torch.tensor([900.0, 300.0]),
        "pooled_projections": torch.randn(2, TOY.pooled_dim),
        "visual_rope_pos": [torch.arange(n) for n in (1, 4, 4)],
        "text_rope_pos": torch.arange(5),
    }
    with torch.no_grad():
        expected = narrow.network(x, **others).sample
        drawn = wide.network(torch.cat([x, torch.zeros_like(source)], -1), **others).sample
        edited = wide.network(torch.cat([x, source], -1), **others).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(drawn, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(edited, expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad():  # what has learnt to edit is taken as it is
        wide.network.visual_embeddings.in_layer.weight.normal_()
    take_weights(saved(wide, tmp_path / "wide"), again)
    for key, tensor in wide.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[key]), key
    with pytest.raises(CheckpointError, match="network differs in visual_embeddings"):
        take_weights(tmp_path / "wide", narrow)


def test_pictures_of_training_are_those_that_are_scored(trial: Trial) -> None:
    """A row's target is its edit's, not its source's: what the network is asked for is the changed picture."""
    clean, source, pictures = trial.train.latents(trial.batch, torch.Generator())
    assert clean.shape == (4, 1, 8, 8, 16) and source.shape == (4, 1, 8, 8, 17)
    assert pictures is not None
    for row, edit in enumerate(trial.edits):
        before, after = (true_picture(scene, 64).astype(int) for scene in (edit.source, edit.target))
        seen = ((pictures[row].permute(1, 2, 0).numpy() + 1) * 127.5).round()
        assert np.abs(seen - before).max() <= 1
        assert np.abs(before - after).max() > 50
        packed = pack([edit.target])
        expected = trial.train.encode_scenes(packed)[1]
        torch.testing.assert_close(clean[2 + row : 3 + row], expected, rtol=1e-4, atol=1e-4)
