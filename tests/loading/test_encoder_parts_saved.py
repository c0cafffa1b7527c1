"""A pipeline that left parts of its text encoder on disk saves the whole, bit for bit, or says why not."""

import pytest
import torch
from accelerate import cpu_offload
from diffusers import DiffusionPipeline
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils import is_torchvision_available

from kandinsky5.errors import CheckpointError, RequestError
from kandinsky5.pipelines import Kandinsky5T2IPipeline, bring_in
from kandinsky5.pipelines.encoder_parts import left_out

from .conftest import same_state, shards_of

MODELS = ("transformer", "vae", "text_encoder", "text_encoder_2")
WHOLE = {"text_encoder_parts": ["vision", "head"]}
BROUGHT = {} if is_torchvision_available() else {"tokenizer": None}
"""diffusers builds the whole processor, which needs torchvision."""


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("arguments", [{}, {"max_shard_size": "100KB"}], ids=["whole", "sharded"])
def test_what_is_left_out_is_saved(untied, tmp_path, dtype, arguments):
    whole = Kandinsky5T2IPipeline.from_pretrained(untied, dtype=dtype, **WHOLE)
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied, dtype=dtype)
    pipe.save_pretrained(tmp_path / "saved", **arguments)
    assert left_out(pipe.text_encoder) == ("vision", "head"), "and is not in memory for that"
    _, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path / "saved" / "text_encoder", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "saved", dtype=dtype or torch.float32, **BROUGHT)
    for name in MODELS:
        same_state(getattr(theirs, name), getattr(whole, name))
    again = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved", **WHOLE)
    same_state(again.text_encoder, whole.text_encoder)


def test_the_encoder_alone_is_saved_whole(untied, untied_source, tmp_path):
    Kandinsky5T2IPipeline.from_pretrained(untied).text_encoder.save_pretrained(tmp_path / "encoder")
    same_state(
        Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "encoder"),
        Qwen2_5_VLForConditionalGeneration.from_pretrained(untied_source / "text_encoder"),
    )


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_saving_refuses_without_the_source(untied, tmp_path, how):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    pipe.save_pretrained(tmp_path / "before")
    kept = {file: file.read_bytes() for file in (tmp_path / "before").rglob("*") if file.is_file()}
    file = shards_of(untied, "visual")[-1]
    if how == "gone":
        file.unlink()
    else:
        with file.open("ab") as opened:
            opened.write(b"x")
    for target in ("after", "before"):
        with pytest.raises(CheckpointError, match=rf"{file.name}.*{how}"):
            pipe.save_pretrained(tmp_path / target)
    assert not (tmp_path / "after").exists()
    assert kept == {file: file.read_bytes() for file in (tmp_path / "before").rglob("*") if file.is_file()}
    assert {path.name for path in tmp_path.iterdir()} == {"untied", "before"}


def test_layers_that_are_offloaded_one_by_one_are_gathered_first(untied, untied_source, tmp_path):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    for name in MODELS:
        cpu_offload(getattr(pipe, name), "cpu")
    with pytest.raises(RequestError, match=r"offloaded one by one.*remove_all_hooks\(\) first"):
        pipe.save_pretrained(tmp_path / "saved")
    pipe.remove_all_hooks()
    pipe.save_pretrained(tmp_path / "saved")
    whole, saved = (
        Kandinsky5T2IPipeline.from_pretrained(folder, **WHOLE)
        for folder in (untied_source, tmp_path / "saved")
    )
    for name in MODELS:
        same_state(getattr(saved, name), getattr(whole, name))


def test_saving_over_the_source(untied, untied_source):
    """Its files are mapped while they are replaced; afterwards what was left out is found in the new ones."""
    whole = Kandinsky5T2IPipeline.from_pretrained(untied_source, **WHOLE)
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    assert len(list((untied / "text_encoder").glob("*.safetensors"))) > 2
    pipe.save_pretrained(untied)
    assert [path.name for path in (untied / "text_encoder").glob("*.safetensors*")] == ["model.safetensors"]
    same_state(pipe.text_encoder, whole.text_encoder)
    bring_in(pipe.text_encoder)
    same_state(pipe.text_encoder, whole.text_encoder)
    same_state(Kandinsky5T2IPipeline.from_pretrained(untied, **WHOLE).text_encoder, whole.text_encoder)


def test_variants_lie_beside_each_other(untied):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied, dtype=torch.float16)
    pipe.save_pretrained(untied, variant="fp16")
    names = {path.name for path in (untied / "text_encoder").glob("*.safetensors*")}
    assert "model.fp16.safetensors" in names and "model.safetensors.index.json" in names
    plain = Kandinsky5T2IPipeline.from_pretrained(untied)
    half = Kandinsky5T2IPipeline.from_pretrained(untied, variant="fp16", **WHOLE)
    assert (plain.text_encoder.dtype, half.text_encoder.dtype) == (torch.float32, torch.float16)


def test_a_place_that_cannot_be_written(untied, tmp_path):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RequestError, match="is a file"):
        pipe.save_pretrained(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        pipe.save_pretrained(tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_save_that_breaks_off_leaves_nothing(untied, tmp_path, monkeypatch):
    pipe = Kandinsky5T2IPipeline.from_pretrained(untied)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pipe.text_encoder_2, "save_pretrained", full)
    with pytest.raises(CheckpointError, match="No space left"):
        pipe.save_pretrained(tmp_path / "saved")
    assert {path.name for path in tmp_path.iterdir()} == {"untied"}
