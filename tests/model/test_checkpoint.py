"""Names, shapes, dtypes and files: what is published loads here, what is saved here loads in diffusers."""

import json

import pytest
import torch

from kandinsky5.errors import CheckpointError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel

from . import peer
from .tiny import PUBLISHED, config_of, drawn, inputs_for

VIDEO_SETTINGS = dict(
    attention_type="regular",
    attention_causal=False,
    attention_local=False,
    attention_glob=False,
    attention_window=3,
    attention_P=0.9,
    attention_wT=11,
    attention_wW=3,
    attention_wH=3,
    attention_add_sta=True,
    attention_method="topcdf",
)
"""Published configs carry them beside "regular" attention, where they mean nothing."""

NETWORKS = [Kandinsky5Transformer3DModel, peer.Kandinsky5Transformer3DModel]


def described(model: torch.nn.Module) -> dict[str, tuple]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("visual_cond", [False, True], ids=["t2i", "i2i"])
def test_full_size_has_the_published_tensors(visual_cond):
    config = {**PUBLISHED, "visual_cond": visual_cond}
    with torch.device("meta"):
        ours, theirs = (network.from_config(config) for network in NETWORKS)
    assert described(ours) == described(theirs)
    assert set(dict(ours.named_parameters())) == set(dict(theirs.named_parameters()))
    assert all(tensor.is_meta for tensor in (*ours.parameters(), *ours.buffers()))
    assert ours.visual_embeddings.in_layer.in_features == (132 if visual_cond else 64)


def test_full_size_has_six_billion_parameters():
    with torch.device("meta"):
        model = Kandinsky5Transformer3DModel.from_config(PUBLISHED)
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 3) == 6.022


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_stored_dtypes_are_diffusers(config, build_peer, tmp_path, dtype):
    build_peer(config).save_pretrained(tmp_path)
    ours, theirs = (network.from_pretrained(tmp_path, torch_dtype=dtype) for network in NETWORKS)
    assert described(ours) == described(theirs)
    assert {tensor.dtype for tensor in ours.state_dict().values()} == {dtype, torch.float32}


@pytest.mark.parametrize("writer, reader", [NETWORKS, NETWORKS[::-1]], ids=["ours-theirs", "theirs-ours"])
def test_a_saved_folder_loads_in_the_other_class(config, tmp_path, writer, reader):
    """Tensors bit for bit, and the config with every field, the settings that have no use here included."""
    written = drawn(writer(**config, **VIDEO_SETTINGS))
    written.save_pretrained(tmp_path / "one")
    read = reader.from_pretrained(tmp_path / "one")
    assert written.state_dict().keys() == read.state_dict().keys()
    for name, tensor in written.state_dict().items():
        assert torch.equal(tensor, read.state_dict()[name]), name
    read.save_pretrained(tmp_path / "two")
    one, two = (json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("one", "two"))
    for saved in (one, two):
        saved.pop("_name_or_path", None)
    assert one == two
    assert one["_class_name"] == "Kandinsky5Transformer3DModel"


@torch.no_grad()
def test_our_own_round_trip_changes_no_bit_of_the_output(config, build, tmp_path):
    model, inputs = build(config), inputs_for(config)
    model.save_pretrained(tmp_path)
    again = Kandinsky5Transformer3DModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**inputs.arguments()).sample, model(**inputs.arguments()).sample)


def test_sharded_folders_load(build_peer, tmp_path):
    written = build_peer(config_of("t2i"))
    written.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    read = Kandinsky5Transformer3DModel.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in written.state_dict().items())


def test_tensors_of_the_other_variant_are_refused(build, tmp_path):
    """A text-to-image checkpoint does not pass for an editing one."""
    build(config_of("t2i")).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="visual_embeddings"):
        Kandinsky5Transformer3DModel.from_pretrained(tmp_path, visual_cond=True)
