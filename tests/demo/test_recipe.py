"""The recipe end to end at toy size: what it exports is a published-layout folder of what was trained."""

import json
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Qwen2VLImageProcessorPil

from kandinsky5.demo.architecture import (
    SAMPLING_SHIFT,
    Architecture,
    build_autoencoder,
    build_network,
    build_pooled_encoder,
    build_text_encoder,
)
from kandinsky5.demo.architecture import TOY as SIZE
from kandinsky5.demo.caption_reading import ENCODERS, take_reading
from kandinsky5.demo.export import PART_BYTES, export, pack_archive, unpack_archive
from kandinsky5.demo.pictures import edit_grid, prompt_grid
from kandinsky5.demo.preview import load_exported, save_preview
from kandinsky5.demo.prompt_tokens import PromptTokens
from kandinsky5.demo.sampling import Sampling
from kandinsky5.demo.scene_batches import CaptionedScenes
from kandinsky5.demo.tokenizers import load_tokenizers
from kandinsky5.demo.train import main
from kandinsky5.demo.trained_modules import build_modules
from kandinsky5.demo.warm_start import digest, take_weights
from kandinsky5.demo.world import MAX_THINGS
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.loading import load_pipeline
from kandinsky5.pipelines import Kandinsky5I2IPipeline, Kandinsky5T2IPipeline
from tests.pipelines.editing_peer import PictureProcessor
from tests.train.small_lesson import newest

from .conftest import FLOAT32, TOY

CPU = torch.device("cpu")


def test_the_folder_has_the_published_layout(trained: Path) -> None:
    weights = trained / "weights"
    index = json.loads((weights / "model_index.json").read_text())
    assert index["_class_name"] == "Kandinsky5T2IPipeline"
    assert index["transformer"] == ["diffusers", "Kandinsky5Transformer3DModel"]
    components = {name for name, value in index.items() if isinstance(value, list)}
    assert {path.name for path in weights.iterdir() if path.is_dir()} == components
    scheduler = DPMSolverMultistepScheduler.from_pretrained(weights / "scheduler")
    assert scheduler.config.flow_shift == SAMPLING_SHIFT
    assert str(trained) not in "".join(path.read_text() for path in weights.rglob("*.json"))


def test_every_tensor_is_bfloat16_and_every_file_small(trained: Path) -> None:
    files = list((trained / "weights").rglob("*.safetensors"))
    assert len(files) >= 4
    for file in files:
        assert file.stat().st_size < 16 * 2**20
        with safe_open(file, framework="pt") as tensors:
            assert {tensors.get_tensor(name).dtype for name in tensors.keys()} == {torch.bfloat16}  # noqa: SIM118 (not a dict)


def test_what_is_loaded_is_the_average_that_was_trained(trained: Path) -> None:
    pipeline = load_exported(trained / "weights", CPU)
    modules = build_modules(SIZE, 5, *load_tokenizers(trained / "parts"))
    before = {name: p.detach().clone() for name, p in modules.parameters().items()}
    weights = modules.weights("adamw")
    tensors, values = newest(trained / "network")
    assert values["step"] == 4
    averages = weights.named({name: tensors[f"average.{name}"] for name in weights.masters})
    loaded = {
        **{f"network.{name}": p for name, p in pipeline.transformer.named_parameters()},
        **{
            f"text_encoder.model.language_model.{name}": p
            for name, p in pipeline.text_encoder.model.language_model.named_parameters()
        },
        **{
            f"text_encoder.model.visual.{name}": p
            for name, p in pipeline.text_encoder.model.visual.named_parameters()
        },
        **{f"pooled_encoder.{name}": p for name, p in pipeline.text_encoder_2.named_parameters()},
    }
    readings = ("place_probe.", "thing_map.")
    average = {name: a for name, a in averages.items() if not name.startswith(readings)}
    assert set(loaded) == set(average)
    for name, value in average.items():
        assert torch.equal(loaded[name].bfloat16(), value.bfloat16()), name
    unmoved = [name for name, value in average.items() if torch.equal(value, before[name])]
    # Zero-initialised gates let nothing through at first, but after four steps everything has moved.
    assert unmoved == []


def test_a_run_leaves_what_export_writes(trained: Path) -> None:
    """The folder at its end is that of its last checkpoint."""
    for one, other in (("network/model", "weights"), ("unpacked/weights", "weights")):
        files = {path.relative_to(trained / one) for path in (trained / one).rglob("*") if path.is_file()}
        assert len(files) > 10
        for file in files:
            assert (trained / one / file).read_bytes() == (trained / other / file).read_bytes(), file


def test_muon_continues_exactly_and_export_needs_no_telling(trained: Path, tmp_path: Path) -> None:
    options = [*TOY, *FLOAT32, "--parts", str(trained / "weights")]
    muon = ["--set", "optimiser.name=muon"]
    whole, broken = ([*options, "--work", str(tmp_path / name)] for name in ("whole", "broken"))
    main(["finished-parts", "network", *whole, *muon])
    main(["finished-parts", "network", *broken, *muon, "--stop-at", "2"])
    with pytest.raises(RequestError, match=r"optimiser\.name"):
        main(["network", *broken])
    main(["network", "export", *broken, *muon])
    expected, found = (newest(tmp_path / name / "network")[0] for name in ("whole", "broken"))
    assert expected.keys() == found.keys() and any(name.endswith(".momentum") for name in expected)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    main(["export", *whole])
    first, second = (
        load_exported(tmp_path / name / "weights", CPU).transformer for name in ("whole", "broken")
    )
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        export(tmp_path, tmp_path / "weights")


STILL = ["--set", "optimiser.rate=1e-30", "--set", "run.steps=1"]
"""A run whose only step moves nothing."""


def test_the_network_begins_with_encoders_that_have_learnt_to_read(trained: Path, tmp_path: Path) -> None:
    options = [*TOY, *FLOAT32, *STILL, "--work", str(tmp_path), "--parts", str(trained / "weights")]
    main(["finished-parts", "reading", "network", "export", *options, "--reading-steps", "2"])
    _, values = newest(tmp_path / "network")
    assert values["run"]["data"]["data.sources.reading"] == digest(tmp_path / ENCODERS)
    qwen, clip = load_tokenizers(tmp_path / "parts")
    fresh, taught = (build_modules(SIZE, 5, qwen, clip).parameters() for _ in range(2))
    take_reading(tmp_path / ENCODERS, taught)
    changed = {name.partition(".")[0] for name in fresh if not torch.equal(fresh[name], taught[name])}
    assert changed == {"text_encoder", "pooled_encoder"}
    exported = load_exported(tmp_path / "weights", CPU)
    for name, parameter in exported.text_encoder.model.language_model.named_parameters():
        expected = taught[f"text_encoder.model.language_model.{name}"]
        assert torch.equal(parameter.float(), expected.bfloat16().float()), name
    with pytest.raises(RequestError, match=r"data\.sources\.reading"):
        (tmp_path / ENCODERS).unlink()
        main(["network", *options])
    with pytest.raises(CheckpointError, match="differs in"):
        save_file({"text_encoder.model.language_model.norm.weight": torch.ones(3)}, tmp_path / ENCODERS)
        take_reading(tmp_path / ENCODERS, taught)


def test_a_run_may_begin_from_published_weights(trained: Path, tmp_path: Path) -> None:
    folder, work = trained / "weights", tmp_path / "warm"
    options = [*TOY, *STILL, "--work", str(work), "--parts", str(folder), "--begin-from", str(folder)]
    main(["finished-parts", "network", "export", *options])
    before, after = load_exported(folder, CPU), load_exported(work / "weights", CPU)
    for name in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        old, new = getattr(before, name).state_dict(), getattr(after, name).state_dict()
        assert {key for key in old if not torch.equal(old[key], new[key])} == set(), name
    other = build_modules(Architecture(), 5, *load_tokenizers(work / "parts"))
    with pytest.raises(CheckpointError, match="network differs in"):
        take_weights(folder, other)


def test_a_broken_run_is_the_unbroken_one(trained: Path, tmp_path: Path) -> None:
    """The fixture trained in two commands; one command gives the same state, also with worker processes."""
    for part in ("parts", "autoencoder"):
        (tmp_path / part).symlink_to(trained / part)
    main(["network", *TOY, *FLOAT32, "--workers", "2", "--work", str(tmp_path)])
    expected, values = newest(trained / "network")
    found, found_values = newest(tmp_path / "network")
    assert values == found_values
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_batches_depend_on_their_number_alone(trained: Path) -> None:
    tokens = PromptTokens(*load_tokenizers(trained / "parts"))
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


def test_the_folder_draws_and_edits(trained: Path, tmp_path: Path) -> None:
    """One set of weights behind both pipelines; the preview shows both, and the withheld answers come home whole."""
    folder = str(trained / "weights")
    drawing = load_pipeline(folder, device="cpu")
    editing = load_pipeline(folder, task="editing", device="cpu")
    assert (type(drawing), type(editing)) == (Kandinsky5T2IPipeline, Kandinsky5I2IPipeline)
    source = drawing("a red circle", num_inference_steps=2).image[0]
    edited = editing(source, "make it blue", num_inference_steps=2).image[0]
    assert source.size == edited.size == (64, 64)
    preview = tmp_path / "preview.png"
    fast = Sampling(steps=1, batch=8)
    save_preview(load_exported(trained / "weights", CPU), preview, fast)
    prompts, edits = prompt_grid(drawing, fast), edit_grid(editing, fast)
    assert Image.open(preview).size == (max(prompts.width, edits.width), prompts.height + edits.height)


def test_diffusers_own_pipelines_load_the_folder(trained: Path) -> None:
    """All but Qwen's processor, whose video half needs torchvision. Its editing pipeline edits; its other one has no
    zeros for source and mask, and so draws with no network that edits, of whatever folder.
    """
    qwen, _ = load_tokenizers(trained / "weights")
    pictures = Qwen2VLImageProcessorPil.from_pretrained(trained / "weights/tokenizer")
    brought = {
        "tokenizer": PictureProcessor(image_processor=pictures, tokenizer=qwen),
        "dtype": torch.float32,
    }
    arguments = {
        "prompt": "make it blue",
        "height": 64,
        "width": 64,
        "num_inference_steps": 1,
        "output_type": "np",
    }
    editing = diffusers.Kandinsky5I2IPipeline.from_pretrained(trained / "weights", **brought)
    drawing = diffusers.Kandinsky5T2IPipeline.from_pretrained(trained / "weights", **brought)
    for pipeline in (editing, drawing):
        assert type(pipeline.transformer).__module__.startswith("diffusers.")
        pipeline.resolutions = [(64, 64)]
        pipeline.set_progress_bar_config(disable=True)
    assert editing(Image.new("RGB", (64, 64), "red"), **arguments).image.shape == (1, 64, 64, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        drawing(**arguments)


def test_the_embedded_model_fits_its_budget(trained: Path) -> None:
    qwen, clip = load_tokenizers(trained / "parts")
    size = Architecture()
    with torch.device("meta"):
        modules = [
            build_network(size),
            build_text_encoder(size, qwen),
            build_pooled_encoder(size, clip),
            build_autoencoder(size),
        ]
    assert modules[0].config.visual_cond
    assert sum(p.numel() for m in modules for p in m.parameters()) * 2 <= 56e6
