"""A folder saved here loads in diffusers and the other way, tensor by tensor; nothing of a processor is lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer, Qwen2_5_VLForConditionalGeneration
from transformers.utils import is_torchvision_available

from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.pipelines.processor_files import PROCESSOR_FILES
from tests.pipelines.conftest import SHORT

MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture
def published(folder: Path) -> Path:
    """As the hub has it: `model_index.json` names Qwen's processor, and an older library's chat template is there."""
    file = folder / "model_index.json"
    index = json.loads(file.read_text())
    index["tokenizer"] = ["transformers", "Qwen2_5_VLProcessor"]
    file.write_text(json.dumps(index))
    template = (folder / "tokenizer" / "chat_template.jinja").read_text()
    (folder / "tokenizer" / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return folder


def same_tensors(one: DiffusionPipeline, other: DiffusionPipeline) -> None:
    for name in MODELS:
        left, right = getattr(one, name).state_dict(), getattr(other, name).state_dict()
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            assert tensor.dtype == right[key].dtype and torch.equal(tensor, right[key]), (name, key)


def test_the_processor_survives_loading_and_saving(published, tmp_path):
    pipe = Kandinsky5T2IPipeline.from_pretrained(published)
    shutil.rmtree(published / "tokenizer")  # saving must not need the source
    pipe.save_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "Qwen2_5_VLProcessor"]
    saved = {path.name for path in (tmp_path / "again" / "tokenizer").iterdir()}
    assert {"preprocessor_config.json", "video_preprocessor_config.json", "tokenizer.json"} <= saved
    once_more = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "again")
    same_tensors(pipe, once_more)
    tokenizers = [getattr(p.tokenizer, "tokenizer", p.tokenizer) for p in (pipe, once_more)]
    assert tokenizers[0](SHORT)["input_ids"] == tokenizers[1](SHORT)["input_ids"]
    assert tokenizers[0].chat_template == tokenizers[1].chat_template


@pytest.mark.skipif(is_torchvision_available(), reason="the whole processor is built, and saves itself")
def test_processor_files_are_kept_byte_for_byte(published, tmp_path):
    Kandinsky5T2IPipeline.from_pretrained(published).save_pretrained(tmp_path / "again")
    for name in PROCESSOR_FILES:
        source, copy = (folder / "tokenizer" / name for folder in (published, tmp_path / "again"))
        assert source.is_file() == copy.is_file()
        assert not source.is_file() or source.read_bytes() == copy.read_bytes(), name


@pytest.mark.skipif(
    not is_torchvision_available(), reason="the video half of Qwen's processor needs torchvision"
)
def test_the_saved_processor_loads_in_transformers(published, tmp_path):
    Kandinsky5T2IPipeline.from_pretrained(published).save_pretrained(tmp_path / "again")
    processor = AutoProcessor.from_pretrained(tmp_path / "again" / "tokenizer")
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"


def test_another_tokenizer_is_saved_as_what_it_is(published, tmp_path):
    pipe = Kandinsky5T2IPipeline.from_pretrained(published)
    pipe.tokenizer = AutoTokenizer.from_pretrained(published / "tokenizer")
    pipe.save_pretrained(tmp_path / "again")
    index = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", type(pipe.tokenizer).__name__]
    assert not (tmp_path / "again" / "tokenizer" / "preprocessor_config.json").exists()


def test_ours_to_diffusers_and_back(published, tmp_path):
    ours = Kandinsky5T2IPipeline.from_pretrained(published, dtype=torch.bfloat16)
    ours.save_pretrained(tmp_path / "ours")
    # diffusers builds the whole processor, which needs torchvision; what it would get is a tokenizer here.
    brought = {} if is_torchvision_available() else {"tokenizer": None}
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "ours", torch_dtype=torch.bfloat16, **brought)
    assert type(theirs.transformer).__module__.startswith("diffusers.")
    same_tensors(ours, theirs)
    theirs.save_pretrained(tmp_path / "theirs")
    again = Kandinsky5T2IPipeline.from_pretrained(
        tmp_path / "theirs", **({} if not brought else {"tokenizer": ours.tokenizer})
    )
    same_tensors(ours, again)


def test_pickles_are_not_written(folder, tmp_path):
    pipe = Kandinsky5T2IPipeline.from_pretrained(folder)
    with pytest.raises(RequestError, match="safe_serialization"):
        pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert not (tmp_path / "pickled").exists()


def old_name(name: str) -> str:
    return name.replace("model.language_model.", "model.").replace("model.visual.", "visual.")


def new_name(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name if not name.startswith("model.") else name.replace("model.", "model.language_model.", 1)


@pytest.mark.parametrize("style", ["old", "new"])
def test_no_tensor_of_the_qwen_encoder_is_missing(folder, components, style):
    """Both spellings: `model.layers...` with `visual...`, and `model.language_model...` with `model.visual...`."""
    file = folder / "text_encoder" / "model.safetensors"
    stored = {old_name(name): tensor for name, tensor in load_file(file).items()}
    if style == "new":
        stored = {new_name(name): tensor for name, tensor in stored.items()}
    assert ("model.language_model.norm.weight" in stored) == (style == "new")
    save_file(stored, file, metadata={"format": "pt"})
    _, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder / "text_encoder", output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    loaded = Kandinsky5T2IPipeline.from_pretrained(folder).text_encoder.state_dict()
    expected = components["text_encoder"].state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.items())

    lost = next(name for name in stored if "layers.1.mlp" in name)
    stored.pop(lost)
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp"):
        Kandinsky5T2IPipeline.from_pretrained(folder)
