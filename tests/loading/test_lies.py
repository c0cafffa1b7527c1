"""Small files that lie: packed weights that are none, code to run, times that cannot be. All are refused in words."""

import builtins
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, UniPCMultistepScheduler
from safetensors.torch import load_file, save_file

from kandinsky5 import verification
from kandinsky5.checkpoint.document import parse_object
from kandinsky5.checkpoint.packing import stored_format
from kandinsky5.checkpoint.safetensors_header import StoredTensor
from kandinsky5.checkpoint.weights import compare_packed
from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline

NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
PACKINGS: dict[str, Any] = {
    "empty": {},
    "a list": [1],
    "a word": "int8",
    "unknown": {"quant_method": "foo"},
    "not installed": {"quant_method": "gptq", "bits": 4},
    "no type": {"quant_method": "torchao", "quant_type": {"default": 5}},
    "no method": {"quant_type": {"default": 5}},
    "odd dtype": {**NF4, "bnb_4bit_compute_dtype": "evil"},
    "not packed": NF4,
    "not packed in 8 bits": {"quant_method": "bitsandbytes", "load_in_8bit": True},
}
MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")


def edit(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# -- Packed weights -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("component", MODELS)
@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packing_that_is_none_is_refused(folder, component, packing):
    """And so it is where a tensor is missing, which such a config would hide."""
    edit(folder / component / "config.json", quantization_config=PACKINGS[packing])
    with pytest.raises(CheckpointError, match=rf"{component}.*quantization_config"):
        Kandinsky5T2IPipeline.from_pretrained(folder)


@pytest.mark.parametrize("packing", [{}, {"quant_method": "foo"}], ids=str)
def test_verify_finds_random_weights(folder, packing):
    for component, check in (("text_encoder", "other components"), ("transformer", "network tensors")):
        edit(folder / component / "config.json", quantization_config=packing)
        file = next((folder / component).glob("*.safetensors"))
        tensors = load_file(file)
        tensors.pop(next(name for name in tensors if "norm" in name))
        save_file(tensors, file, metadata={"format": "pt"})
        found = {finding.check: finding for finding in verification.verify(folder, files_only=True)}
        assert found[check].outcome == "failed" and "quantization_config" in found[check].figure


def test_a_packing_in_a_part_of_a_config_is_refused(folder):
    file = folder / "text_encoder" / "config.json"
    config = json.loads(file.read_text())
    edit(file, text_config={**config["text_config"], "quantization_config": {"quant_method": "foo"}})
    with pytest.raises(CheckpointError, match="'text_config'"):
        Kandinsky5T2IPipeline.from_pretrained(folder)


def test_what_arrived_is_looked_at_where_no_quantiser_was(folder, monkeypatch):
    """Whatever a config says: a model without a quantiser is compared with its files."""
    edit(folder / "text_encoder_2" / "config.json", quantization_config={"quant_method": "foo"})
    monkeypatch.setattr("kandinsky5.pipelines.folder.check_quantizer", lambda *given: None)
    monkeypatch.setattr("kandinsky5.pipelines.folder.compare_packed", lambda *given: None)
    file = folder / "text_encoder_2" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop(next(name for name in tensors if "layers.0" in name))
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="loaded as random"):
        Kandinsky5T2IPipeline.from_pretrained(folder)


def test_a_layer_that_is_missing_is_missed_in_packings_that_only_a_library_knows():
    """Each layer has tensors, whatever a library calls them."""
    stored = {
        "a.qweight": StoredTensor(name="a.qweight", dtype="I32", shape=(1, 2), file=Path("f")),
        "a.bias": StoredTensor(name="a.bias", dtype="BF16", shape=(4,), file=Path("f")),
    }
    expected = {"a.weight": (8, 2), "a.bias": (4,)}
    assert stored_format({"quantization_config": {"quant_method": "gptq"}}) is None
    compare_packed(stored, expected, Path("f"), None)
    with pytest.raises(CheckpointError, match=r"'b\.weight'"):
        compare_packed(stored, {**expected, "b.weight": (8, 2)}, Path("f"), None)


# -- Code -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def evil(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tokenizer with code of its own, and nobody to be asked; the file that would be there once it was run."""
    sign = tmp_path / "executed"
    edit(
        folder / "tokenizer" / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Evil", None]},
        tokenizer_class="Evil",
    )
    (folder / "tokenizer" / "evil.py").write_text(
        f"open({str(sign)!r}, 'w').close()\nfrom transformers import Qwen2Tokenizer as Evil\n"
    )

    def asked(*prompt: object) -> str:
        raise AssertionError("somebody was asked")

    monkeypatch.setattr(builtins, "input", asked)
    return sign


def test_code_in_a_folder_is_refused_and_not_run(folder, evil):
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json.*auto_map.*not run"):
        Kandinsky5T2IPipeline.from_pretrained(folder)
    found = {finding.check: finding for finding in verification.verify(folder, files_only=True)}
    for check in ("other components", "template tokens"):
        assert found[check].outcome == "failed" and "auto_map" in found[check].figure
    assert not evil.exists()


def test_libraries_are_told_to_run_no_code(folder, evil, monkeypatch):
    """Where the words are not found: the library itself does not run it."""
    monkeypatch.setattr("kandinsky5.pipelines.weightless.check_no_code", lambda *given: None)
    list(verification.verify(folder, files_only=True))
    assert not evil.exists()


def test_verify_reads_the_tokenizer_once(folder, monkeypatch):
    from transformers import AutoTokenizer

    from kandinsky5.pipelines import weightless

    read = []
    load = weightless.load_light
    monkeypatch.setattr(
        "kandinsky5.pipelines.folder.load_light", lambda *given: (read.append(given[0]), load(*given))[1]
    )
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *given, **named: 1 / 0)
    found = {finding.check: finding for finding in verification.verify(folder, files_only=True)}
    assert found["template tokens"].outcome == "ok" and read.count("tokenizer") == 1


@pytest.mark.parametrize("content", ["{", json.dumps({"base_model_name_or_path": "else/where", "r": 4})])
def test_an_adapter_in_a_component_is_refused(folder, content):
    """Transformers would load the weights that it names, not those of the folder."""
    (folder / "text_encoder" / "adapter_config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"text_encoder/adapter_config\.json"):
        Kandinsky5T2IPipeline.from_pretrained(folder)


# -- Sizes ----------------------------------------------------------------------------------------------------------


def test_verify_builds_no_network_of_absurd_depth(folder, monkeypatch):
    edit(folder / "transformer" / "config.json", num_visual_blocks=20_000)
    monkeypatch.setattr(Kandinsky5Transformer3DModel, "from_config", lambda *given, **named: 1 / 0)
    found = {finding.check: finding for finding in verification.verify(folder, files_only=True)}
    assert found["network tensors"].outcome == "failed"
    assert "num_visual_blocks must be a whole number" in found["network tensors"].figure


def test_an_autoencoder_of_many_levels_is_not_built(folder, monkeypatch):
    levels = {
        "block_out_channels": [32] * 300,
        "down_block_types": ["DownEncoderBlock2D"] * 300,
        "up_block_types": ["UpDecoderBlock2D"] * 300,
    }
    edit(folder / "vae" / "config.json", **levels)
    monkeypatch.setattr("kandinsky5.pipelines.folder._empty", lambda *given: 1 / 0)
    with pytest.raises(CheckpointError, match=r"vae/config\.json.*300 entries"):
        Kandinsky5T2IPipeline.from_pretrained(folder)


def test_many_keys_take_one_pass():
    text = json.dumps({str(number): 0 for number in range(60_000)})[:-1] + ', "59999": 1}'
    start = time.process_time()
    with pytest.raises(CheckpointError, match="key '59999' twice"):
        parse_object(text, "it")
    assert time.process_time() - start < 5  # quadratic: minutes


def test_a_variant_that_nobody_has_is_the_callers(folder):
    with pytest.raises(RequestError, match=r"no weights of variant 'fp16'"):
        Kandinsky5T2IPipeline.from_pretrained(folder, variant="fp16")
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    shutil.copy(file, file.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert Kandinsky5T2IPipeline.from_pretrained(folder, variant="fp16").vae is not None


# -- Schedulers -----------------------------------------------------------------------------------------------------

TIMES = {
    "negative shift": {"shift": -1},
    "no shift": {"shift": 0},
    "huge shift": {"shift": 1e300},
    "word for a shift": {"shift": "x"},
    "negative times": {"num_train_timesteps": -5},
    "no times": {"num_train_timesteps": 0},
    "many times": {"num_train_timesteps": 10**8},
    "dynamic": {"use_dynamic_shifting": True},
    "backwards": {"invert_sigmas": True},
}


@pytest.mark.parametrize("kind", TIMES)
def test_times_that_cannot_be_are_refused(folder, kind):
    edit(folder / "scheduler" / "scheduler_config.json", **TIMES[kind])
    field = next(iter(TIMES[kind]))
    with pytest.raises(CheckpointError, match=rf"scheduler_config\.json.*{field}"):
        Kandinsky5T2IPipeline.from_pretrained(folder)


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_a_shift_that_is_no_number_is_refused(folder, value):
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(re.sub(r'"shift": [\d.]+', f'"shift": {value}', file.read_text()))
    with pytest.raises(CheckpointError, match=rf"scheduler_config\.json.*({value}|shift)"):
        Kandinsky5T2IPipeline.from_pretrained(folder)


def test_a_scheduler_of_another_kind_is_refused(folder):
    edit(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    with pytest.raises(CheckpointError, match=r"DDIMScheduler.*velocities"):
        Kandinsky5T2IPipeline.from_pretrained(folder)


@pytest.mark.parametrize("solver", [UniPCMultistepScheduler, DPMSolverMultistepScheduler])
def test_a_solver_with_flow_sigmas_is_assigned_saved_and_loaded(folder, tmp_path, solver):
    """DPM++'s config holds -Infinity, which is no JSON, but diffusers writes it."""
    pipe = Kandinsky5T2IPipeline.from_pretrained(folder)
    pipe.scheduler = solver(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    pipe.save_pretrained(tmp_path / "saved")
    again = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved")
    again.set_progress_bar_config(disable=True)
    assert type(again.scheduler) is solver
    picture = again("a red circle", num_inference_steps=2, output_type="pt").image
    assert picture.isfinite().all() and torch.is_tensor(picture)
    edit(tmp_path / "saved" / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(CheckpointError, match=r"use_flow_sigmas and prediction_type 'flow_prediction'"):
        Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved")
