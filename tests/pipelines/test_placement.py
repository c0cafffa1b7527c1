"""The same picture however the components are loaded and placed, and nothing left behind when a run fails."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading

import kandinsky5.model.transformer as network_module
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.loading import load_pipeline
from kandinsky5.pipelines import Kandinsky5T2IPipeline

from .conftest import SHORT


@pytest.fixture(scope="module")
def expected(saved_folder):
    return draw(Kandinsky5T2IPipeline.from_pretrained(saved_folder))


def draw(pipe):
    pipe.set_progress_bar_config(disable=True)
    seeds = [torch.Generator().manual_seed(s) for s in (0, 1)]
    return pipe(
        SHORT, num_images_per_prompt=2, num_inference_steps=3, generator=seeds, output_type="pt"
    ).image


def test_saved_and_loaded(saved_folder, components, expected):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
    assert type(pipe.transformer) is network_module.Kandinsky5Transformer3DModel
    for name, tensor in components["transformer"].state_dict().items():
        assert torch.equal(tensor, pipe.transformer.state_dict()[name]), name
    original = Kandinsky5T2IPipeline(**components)
    assert (draw(original) - expected).abs().max() < 1e-5


def test_the_saved_index_names_the_libraries_that_others_know(saved_folder):
    index = json.loads((Path(saved_folder) / "model_index.json").read_text())
    assert index["_class_name"] == "Kandinsky5T2IPipeline"
    assert index["transformer"] == ["diffusers", "Kandinsky5Transformer3DModel"]
    assert {index[name][0] for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")} == {
        "transformers"
    }
    assert not any("kandinsky5" in str(value) for value in index.values())


def test_diffusers_loads_the_saved_folder(saved_folder, components):
    pipe = DiffusionPipeline.from_pretrained(saved_folder)
    assert type(pipe.transformer).__module__.startswith("diffusers.")
    for name, tensor in components["transformer"].state_dict().items():
        assert torch.equal(tensor, pipe.transformer.state_dict()[name]), name


def test_torch_dtype_reaches_the_network(saved_folder, expected):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder, dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in pipe.transformer.named_parameters()}
    assert dtypes["visual_transformer_blocks.0.feed_forward.in_layer.weight"] == torch.bfloat16
    assert dtypes["visual_transformer_blocks.0.visual_modulation.out_layer.weight"] == torch.float32
    assert (draw(pipe).float() - expected).pow(2).mean().sqrt() < 0.03


@pytest.mark.parametrize("enable", ["model", "sequential", "group", "group with leaves"])
def test_offload_gives_the_same_picture(saved_folder, expected, monkeypatch, enable):
    """On this machine the "device" is the CPU too; weights still leave for the meta device or hooks and come back."""
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
    _offload(pipe, enable, monkeypatch)
    assert (draw(pipe) - expected).abs().max() < 1e-5
    assert (draw(pipe) - expected).abs().max() < 1e-5, "and once more, after the hooks were freed"


def test_sequential_offload_really_offloads(saved_folder, monkeypatch):
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
    _offload(pipe, "sequential", monkeypatch)
    assert {p.device.type for p in pipe.transformer.parameters()} == {"meta"}
    draw(pipe)
    assert {p.device.type for p in pipe.transformer.parameters()} == {"meta"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_hooks_are_freed_when_a_run_fails(saved_folder, monkeypatch, error):
    """Model offload brings one component in at a time; after an error or a cancel all of them have left again."""
    pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
    freed = []
    real = pipe.maybe_free_model_hooks
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True) or real())

    def fail(*_):
        raise error("stop here")

    with pytest.raises(error, match="stop here"):
        pipe(SHORT, num_inference_steps=2, callback_on_step_end=fail)
    assert freed == [True]


class TestWritingOut:
    """What `expand_prompt` leaves behind under model offload: as a call, nothing."""

    @pytest.fixture
    def freed(self, saved_folder, monkeypatch, few_tokens):
        """An offloaded pipeline, and how often its hooks were freed."""
        pipe = Kandinsky5T2IPipeline.from_pretrained(saved_folder)
        _offload(pipe, "model", monkeypatch)
        freed = []
        real = pipe.maybe_free_model_hooks
        monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True) or real())
        return pipe, freed

    def test_hooks_are_freed_afterwards(self, freed):
        pipe, count = freed
        text = pipe.expand_prompt(SHORT)
        assert text and count == [True]
        assert pipe.expand_prompt(SHORT) == text, "and once more, after the hooks were freed"

    def test_hooks_are_freed_when_the_caller_gives_up(self, freed):
        pipe, count = freed
        texts = pipe.expanding(SHORT)
        next(texts)
        assert count == []
        texts.close()
        assert count == [True]

    def test_hooks_are_freed_when_it_fails(self, freed, monkeypatch):
        pipe, count = freed
        monkeypatch.setattr(pipe.text_encoder, "forward", lambda **_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pipe.expand_prompt(SHORT)
        assert count == [True]


class TestLoadPipeline:
    def test_a_folder(self, saved_folder, expected):
        pipe = load_pipeline(saved_folder, device="cpu", dtype="float32")
        assert (draw(pipe) - expected).abs().max() < 1e-5
        assert pipe.default_steps == 3

    def test_a_folder_that_is_something_else(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"model_index\.json"):
            load_pipeline(str(tmp_path), device="cpu")

    @pytest.mark.parametrize(("arguments", "words"), [
        ({"device": "cuda:99"}, "cuda:99"), ({"device": "abacus"}, "abacus"), ({"dtype": "float7"}, "float7"),
    ])  # fmt: skip
    def test_devices_and_dtypes_that_do_not_exist(self, saved_folder, arguments, words):
        with pytest.raises(RequestError, match=words):
            load_pipeline(saved_folder, **arguments)


def _offload(pipe, kind, monkeypatch):
    if kind == "model":
        from diffusers.pipelines import pipeline_utils

        # diffusers refuses the CPU as the device to offload from; the hooks themselves run on it.
        monkeypatch.setattr(pipeline_utils, "get_device", lambda: "cpu:0")
        pipe.enable_model_cpu_offload(device="cpu:0")
    elif kind == "sequential":
        for component in ("text_encoder", "text_encoder_2", "transformer", "vae"):
            cpu_offload(getattr(pipe, component), "cpu")
    else:
        for component in ("text_encoder", "text_encoder_2", "transformer", "vae"):
            apply_group_offloading(
                getattr(pipe, component),
                onload_device=torch.device("cpu"),
                offload_device=torch.device("cpu"),
                **(
                    {"offload_type": "leaf_level"}
                    if "leaves" in kind
                    else {"offload_type": "block_level", "num_blocks_per_group": 1}
                ),
            )
