"""The recipe end to end at toy size: what it exports is a published-layout folder of what was trained."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from PIL import Image
from safetensors import safe_open

from kandinsky5.conditioning import encode_prompts
from kandinsky5.demo.architecture import (
    Architecture,
    build_autoencoder,
    build_network,
    build_pooled_encoder,
    build_text_encoder,
)
from kandinsky5.demo.export import PART_BYTES, pack_archive, unpack_archive
from kandinsky5.demo.preview import draw, load_exported, save_withheld
from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.running import Running
from kandinsky5.demo.scene_batches import CaptionedScenes
from kandinsky5.demo.score import claims_from_json
from kandinsky5.demo.text_to_image_training import TextToImageGradients, TextToImageRecipe, build_modules
from kandinsky5.demo.tokenizers import load_tokenizers
from kandinsky5.demo.train import main
from kandinsky5.demo.warm_start import take_weights
from kandinsky5.demo.withheld import compositions
from kandinsky5.demo.world import MAX_THINGS
from kandinsky5.errors import CheckpointError
from kandinsky5.prompts import TEXT_TO_IMAGE
from kandinsky5.train.state_file import load_state
from kandinsky5.train.update import Update, UpdateSettings

from .conftest import TOY

CPU = torch.device("cpu")


def test_the_folder_has_the_published_layout(trained: Path) -> None:
    weights = trained / "weights"
    index = json.loads((weights / "model_index.json").read_text())
    assert index["_class_name"] == "Kandinsky5T2IPipeline"
    assert index["transformer"] == ["diffusers", "Kandinsky5Transformer3DModel"]
    components = {name for name, value in index.items() if isinstance(value, list)}
    assert {path.name for path in weights.iterdir() if path.is_dir()} == components
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(weights / "scheduler")
    assert scheduler.config.shift == 3.0
    assert str(trained) not in "".join(path.read_text() for path in weights.rglob("*.json"))


def test_every_tensor_is_bfloat16_and_every_file_small(trained: Path) -> None:
    files = list((trained / "weights").rglob("*.safetensors"))
    assert len(files) >= 4
    for file in files:
        assert file.stat().st_size < 16 * 2**20
        with safe_open(file, framework="pt") as tensors:
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118 (not a dict)


def test_what_is_loaded_is_the_average_that_was_trained(trained: Path) -> None:
    recipe, pipeline = toy_recipe(trained), load_exported(trained / "weights", CPU)
    qwen, clip = load_tokenizers(trained / "tokenizers")
    modules = build_modules(recipe, qwen, clip)
    before = {name: p.detach().clone() for name, p in modules.parameters().items()}
    update = Update(modules.parameters(), recipe.update)
    update.restore(*load_state(trained / "text_to_image/state.safetensors"))
    loaded = {
        **{f"network.{name}": p for name, p in pipeline.transformer.named_parameters()},
        **{
            f"text_encoder.model.language_model.{name}": p
            for name, p in pipeline.text_encoder.model.language_model.named_parameters()
        },
        **{f"pooled_encoder.{name}": p for name, p in pipeline.text_encoder_2.named_parameters()},
    }
    average = {name: a for name, a in update.average().items() if not name.startswith("place_probe.")}
    assert set(loaded) == set(average)
    for name, value in average.items():
        assert torch.equal(loaded[name].bfloat16(), value.bfloat16()), name
    unmoved = [name for name, value in average.items() if torch.equal(value, before[name])]
    # Zero-initialised gates let nothing through at first, but after four steps everything has moved.
    assert unmoved == []


def test_a_run_may_begin_from_published_weights(trained: Path, tmp_path: Path) -> None:
    folder, work = trained / "weights", tmp_path / "warm"
    options = [*TOY, "--work", str(work), "--start", str(folder), "--peak", "0", "--steps", "1"]
    main(["finished-parts", "text-to-image", "export", *options])
    before, after = load_exported(folder, CPU), load_exported(work / "weights", CPU)
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert {key for key in old if not torch.equal(old[key], new[key])} == set(), name
    qwen, clip = load_tokenizers(work / "tokenizers")
    other = build_modules(TextToImageRecipe(), qwen, clip)
    with pytest.raises(CheckpointError, match="network differs in"):
        take_weights(folder, other)


def toy_recipe(trained: Path) -> TextToImageRecipe:
    values = load_state(trained / "text_to_image/state.safetensors")[1]["recipe"]
    architecture = {k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("architecture").items()}
    update = {k: tuple(v) if isinstance(v, list) else v for k, v in values.pop("update").items()}
    return TextToImageRecipe(
        architecture=Architecture(**architecture), update=UpdateSettings(**update), **values
    )


def test_training_conditions_as_the_pipeline_does(trained: Path) -> None:
    """The unmasked, padded forward of training gives real tokens the states that the conditioning stage gives."""
    recipe = toy_recipe(trained)
    qwen, clip = load_tokenizers(trained / "tokenizers")
    modules = build_modules(recipe, qwen, clip)
    update = Update(modules.parameters(), recipe.update)
    tokens = PromptTokens(qwen, clip)
    autoencoder = AutoencoderKL.from_pretrained(trained / "autoencoder/vae")
    running = Running(device=CPU, dtype=torch.float32)
    training = TextToImageGradients(modules, autoencoder, tokens.crop, update, recipe, running)
    prompts = ["a red circle to the left of a blue square", "", "two stars"]
    rows = tokens.rows(prompts)
    with torch.no_grad():
        text, pooled = training.encode(rows.ids, rows.clip_ids)
        expected = encode_prompts(
            prompts,
            TEXT_TO_IMAGE,
            text_encoder=modules.text_encoder,
            tokenizer=qwen,
            text_encoder_2=modules.pooled_encoder,
            tokenizer_2=clip,
            max_tokens=512,
            device=CPU,
            dtype=torch.float32,
        )
    length = expected.text.shape[1]
    assert torch.equal(rows.mask[:, :length], expected.mask) and not rows.mask[:, length:].any()
    torch.testing.assert_close(
        text[:, :length][expected.mask], expected.text[expected.mask], rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(pooled, expected.pooled, rtol=1e-4, atol=1e-5)


def test_a_broken_run_is_the_unbroken_one(trained: Path, tmp_path: Path) -> None:
    """The fixture trained in two commands; one command gives the same state, also with worker processes."""
    for part in ("tokenizers", "autoencoder"):
        (tmp_path / part).symlink_to(trained / part)
    toy = [*TOY, "--work", str(tmp_path), "--dtype", "float32", "--workers", "2", "--device", "cpu"]
    main(["text-to-image", *toy])
    expected, values = load_state(trained / "text_to_image/state.safetensors")
    found, found_values = load_state(tmp_path / "text_to_image/state.safetensors")
    assert values == found_values
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_batches_depend_on_their_number_alone(trained: Path) -> None:
    tokens = PromptTokens(*load_tokenizers(trained / "tokenizers"))
    scenes = CaptionedScenes(tokens, seed=1, batch=40, unconditional=0.25)
    first, again, other = scenes[7], scenes[7], scenes[8]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["packed"], other["packed"])
    assert first["packed"].shape[:2] == (40, MAX_THINGS + 1)
    empty = int((first["mask"].sum(dim=1) == 1).sum())
    assert 3 <= empty <= 20  # a quarter of 40, four deviations either way


def test_an_archive_comes_home_whole_and_a_missing_part_is_noticed(trained: Path, tmp_path: Path) -> None:
    weights = trained / "weights"
    for path in weights.rglob("*"):
        if path.is_file():
            assert (
                trained / "unpacked/weights" / path.relative_to(weights)
            ).read_bytes() == path.read_bytes()
    parts = pack_archive(weights, tmp_path / "out", part_bytes=100_000)
    assert len(parts) > 2 and all(part.stat().st_size <= 100_000 < PART_BYTES for part in parts)
    home = unpack_archive(tmp_path / "out", "weights", tmp_path / "home")
    assert (home / "model_index.json").read_bytes() == (weights / "model_index.json").read_bytes()
    parts[1].unlink()
    with pytest.raises(CheckpointError, match=r"weights\.tar\.gz"):
        unpack_archive(tmp_path / "out", "weights", tmp_path / "home")


def test_withheld_scenes_are_drawn_with_what_they_claim(trained: Path, tmp_path: Path) -> None:
    pipeline = load_exported(trained / "weights", CPU)
    save_withheld(pipeline, tmp_path, count=5, steps=1, guidance=3.0, seed=5, columns=2)
    entries = json.loads((tmp_path / "withheld.json").read_text())
    assert [(e["sheet"], e["row"], e["column"]) for e in entries] == [
        (0, 0, 0),
        (0, 0, 1),
        (0, 1, 0),
        (0, 1, 1),
        (1, 0, 0),
    ]
    questions = compositions(5)
    assert [e["prompt"] for e in entries] == [question.text for question in questions]
    assert [claims_from_json(e["claims"]) for e in entries] == [question.claims for question in questions]
    assert Image.open(tmp_path / "withheld-0.png").size == (128, 128)
    assert Image.open(tmp_path / "withheld-1.png").size == (128, 64)


def test_the_noise_of_a_picture_does_not_depend_on_its_neighbours(trained: Path) -> None:
    pipeline = load_exported(trained / "weights", CPU)
    both = draw(pipeline, ["a red circle", "two stars"], steps=2, guidance=3.0, seed=1)
    alone = draw(pipeline, ["a red circle"], steps=2, guidance=3.0, seed=1)
    assert both.shape == (2, 3, 64, 64)
    assert (both[:1] - alone).abs().max() < 0.05  # bfloat16, other batch


def test_the_embedded_model_fits_its_budget(trained: Path) -> None:
    qwen, clip = load_tokenizers(trained / "tokenizers")
    size = Architecture()
    with torch.device("meta"):
        modules = [
            build_network(size),
            build_text_encoder(size, qwen),
            build_pooled_encoder(size, clip),
            build_autoencoder(size),
        ]
    assert sum(p.numel() for m in modules for p in m.parameters()) * 2 <= 56e6
