"""Components that were assigned, compiled, or left out: what the saved index says of them, and who loads it."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from kandinsky5.errors import RequestError
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from tests.pipelines.conftest import SHORT

ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def index_of(folder: Path) -> dict[str, list[str | None]]:
    return json.loads((folder / "model_index.json").read_text())


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    expected = other.state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize("kind", ["another", "compiled"])
def test_a_network_that_was_assigned_is_saved_under_the_name_that_others_know(folder, tmp_path, kind):
    pipe = Kandinsky5T2IPipeline.from_pretrained(folder)
    network = copy.deepcopy(pipe.transformer)
    with torch.no_grad():
        network.out_layer.out_layer.bias.add_(1)
    pipe.transformer = network if kind == "another" else torch.compile(network, backend="eager")
    pipe.save_pretrained(tmp_path / "saved")
    assert index_of(tmp_path / "saved")["transformer"] == ["diffusers", "Kandinsky5Transformer3DModel"]
    ours = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved")
    theirs = DiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert type(theirs.transformer).__module__.startswith("diffusers.")
    assert same_weights(ours.transformer, network) and same_weights(theirs.transformer, network)


def test_a_pipeline_without_encoders_is_saved_and_loaded(folder, tmp_path):
    whole = Kandinsky5T2IPipeline.from_pretrained(folder)
    pipe = Kandinsky5T2IPipeline.from_pretrained(folder, **dict.fromkeys(ENCODERS))
    pipe.save_pretrained(tmp_path / "saved")
    assert all(index_of(tmp_path / "saved")[name] == [None, None] for name in ENCODERS)
    again = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved")
    assert [getattr(again, name) for name in ENCODERS] == [None] * 4
    again.set_progress_bar_config(disable=True)
    names = ("prompt_embeds_qwen", "prompt_embeds_clip", "prompt_cu_seqlens")
    given = dict(zip(names, whole.encode_prompt(SHORT), strict=True))
    assert len(again(**given, guidance_scale=1, num_inference_steps=1).images) == 1
    with pytest.raises(RequestError, match="without its text encoders"):
        again(SHORT)
    brought = {name: getattr(whole, name) for name in ENCODERS}
    joined = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved", **brought)
    assert joined.text_encoder is whole.text_encoder


def test_a_component_that_joined_later_is_saved(folder, tmp_path):
    """The library leaves the entry of one that was None as it was, and would not write it."""
    whole = Kandinsky5T2IPipeline.from_pretrained(folder)
    pipe = Kandinsky5T2IPipeline.from_pretrained(folder, transformer=None, vae=None)
    pipe.transformer = whole.transformer
    pipe.save_pretrained(tmp_path / "saved")
    index = index_of(tmp_path / "saved")
    assert index["transformer"] == ["diffusers", "Kandinsky5Transformer3DModel"]
    assert index["vae"] == [None, None]
    again = Kandinsky5T2IPipeline.from_pretrained(tmp_path / "saved")
    assert same_weights(again.transformer, whole.transformer) and again.vae is None
