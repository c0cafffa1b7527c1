"""Every kind of damage has its own words, and no library sees the file first."""

import json
import math
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from kandinsky5.checkpoint.finite import PIECE_BYTES, find_non_finite, is_finite
from kandinsky5.errors import CheckpointError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = WEIGHTS + ".index.json"
FIRST = "out_layer.modulation.out_layer.bias"
SOME = "visual_transformer_blocks.1.feed_forward.in_layer.weight"


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries' own loading, which must not be reached."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a library was given a broken folder")

    monkeypatch.setattr("diffusers.models.modeling_utils.ModelMixin.from_pretrained", fail)
    monkeypatch.setattr("diffusers.pipelines.pipeline_utils.DiffusionPipeline.from_pretrained", fail)


def edit_json(file: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def edit_header(file: Path, change: Callable[[dict], object]) -> None:
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


def edit_tensors(file: Path, change: Callable[[dict], object]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def header(change):
    return lambda folder: edit_header(folder / WEIGHTS, change)


def tensors(change):
    return lambda folder: edit_tensors(folder / WEIGHTS, change)


def config(**values):
    return lambda folder: edit_json(folder / "config.json", lambda content: content.update(values))


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def shift(entry):
    entry["data_offsets"] = [offset + 2 for offset in entry["data_offsets"]]


DAMAGE = {
    "missing": (lambda f: (f / WEIGHTS).unlink(), [WEIGHTS, "missing"]),
    "renamed": (lambda f: (f / WEIGHTS).rename(f / "weights.safetensors"), ["weights.safetensors"]),
    "empty": (write(WEIGHTS, b""), [WEIGHTS, "cut off"]),
    "half": (lambda f: os.truncate(f / WEIGHTS, 20_000), [WEIGHTS, "cut off", "tensor"]),
    "one byte less": (lambda f: os.truncate(f / WEIGHTS, (f / WEIGHTS).stat().st_size - 1), [WEIGHTS, "cut"]),
    "one byte more": (lambda f: (f / WEIGHTS).open("ab").write(b"x"), [WEIGHTS, "after its last tensor"]),
    "long header": (write(WEIGHTS, struct.pack("<Q", 2**62) + b"{}"), [WEIGHTS, str(2**62)]),
    "a page instead": (write(WEIGHTS, b"<!DOCTYPE html><html>404</html>"), [WEIGHTS, "no safetensors"]),
    "an lfs pointer": (write(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\n"), [WEIGHTS]),
    "header no json": (write(WEIGHTS, struct.pack("<Q", 3) + b"{,}"), [WEIGHTS, "JSON"]),
    "header a list": (write(WEIGHTS, struct.pack("<Q", 2) + b"[]"), [WEIGHTS, "object"]),
    "deep header": (write(WEIGHTS, struct.pack("<Q", 10**6) + b"[" * 10**6), [WEIGHTS]),
    "a directory": (lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()), [WEIGHTS]),
    "a pipe": (lambda f: ((f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS)), [WEIGHTS]),
    "overlap": (header(lambda h: shift(h[FIRST])), [WEIGHTS, "byte"]),
    "same bytes": (
        header(lambda h: h.update({"copy": h[SOME]})),
        [WEIGHTS, "overlaps"],
    ),
    "negative": (header(lambda h: h[SOME].update(data_offsets=[-4, 0])), [SOME, "data_offsets"]),
    "huge shape": (header(lambda h: h[SOME].update(shape=[2**40, 2**40])), [SOME, "takes"]),
    "shape of floats": (header(lambda h: h[SOME].update(shape=[96.0, 64])), [SOME, "shape"]),
    "unknown dtype": (header(lambda h: h[SOME].update(dtype="F13")), [SOME, "F13"]),
    "whole numbers": (header(lambda h: h[SOME].update(dtype="I16")), [SOME, "I16", "floats"]),
    "odd metadata": (header(lambda h: h.update(__metadata__={"a": 1})), [WEIGHTS, "metadata"]),
    "no such tensor": (tensors(lambda t: t.pop(SOME)), [SOME, "no tensor"]),
    "unknown tensor": (tensors(lambda t: t.update(stray=torch.ones(2))), ["stray", WEIGHTS]),
    "renamed tensor": (tensors(lambda t: t.update({SOME + "x": t.pop(SOME)})), [SOME]),
    "wrong shape": (
        tensors(lambda t: t.update({SOME: t[SOME].T.contiguous()})),
        [SOME, "(64, 96)", "(96, 64)"],
    ),
    "nan": (tensors(lambda t: t[SOME].view(-1)[7].fill_(float("nan"))), [SOME, "finite"]),
    "infinite": (tensors(lambda t: t[SOME].view(-1)[9].fill_(float("-inf"))), [SOME, "finite"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json", "missing"]),
    "config no json": (write("config.json", b"{"), ["config.json", "JSON"]),
    "config a list": (write("config.json", b"[1]"), ["config.json", "object"]),
    "config bytes": (write("config.json", b"\xff\xfe\x00"), ["config.json"]),
    "config twice": (write("config.json", b'{"ff_dim": 1, "ff_dim": 2}'), ["config.json", "twice"]),
    "config of another": (config(_class_name="UNet2DModel"), ["config.json", "UNet2DModel"]),
    "a billion blocks": (config(num_visual_blocks=10**9), ["config.json", "num_visual_blocks"]),
    "a block more": (config(num_visual_blocks=4), ["visual_transformer_blocks.3"]),
    "a block less": (config(num_visual_blocks=2), ["visual_transformer_blocks.2"]),
    "words for numbers": (config(model_dim="64"), ["config.json", "model_dim", "64"]),
    "no width": (config(ff_dim=None), ["config.json", "ff_dim"]),
    "huge width": (config(ff_dim=10**30), ["config.json", "ff_dim"]),
    "two axes": (config(axes_dims=[8, 8]), ["config.json", "axes_dims"]),
    "zero axis": (config(axes_dims=[0, 8, 8]), ["config.json", "axes_dims"]),
    "other head width": (config(axes_dims=[8, 12, 12]), ["query_norm"]),
    "video network": (config(attention_type="nabla"), ["config.json", "nabla"]),
    "not a number": (config(ff_dim=float("nan")), ["config.json", "NaN"]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_broken_network_is_named(network_folder, breakable, request, kind):
    """The values are looked at once they are loaded; everything else before a library sees the folder."""
    damage, words = DAMAGE[kind]
    folder = breakable(network_folder)
    damage(folder)
    if "finite" not in words:
        request.getfixturevalue("untouched")
    with pytest.raises(CheckpointError) as caught:
        Kandinsky5Transformer3DModel.from_pretrained(folder)
    message = str(caught.value)
    assert all(word in message for word in [*words, str(folder)]), message
    assert len(message) < 700 and "\n" not in message


def shard_of(folder: Path) -> str:
    return json.loads((folder / INDEX).read_text())["weight_map"][SOME]


def rename_shard(to: str):
    def damage(folder: Path) -> None:
        old = shard_of(folder)

        def change(index: dict) -> None:
            index["weight_map"] = {
                name: to if shard == old else shard for name, shard in index["weight_map"].items()
            }

        shutil.copy(folder / old, folder.parent / "outside.safetensors")
        edit_json(folder / INDEX, change)

    return damage


def index(change):
    return lambda folder: edit_json(folder / INDEX, change)


SHARDS = {
    "lost shard": (lambda f: (f / shard_of(f)).unlink(), ["missing"]),
    "cut shard": (lambda f: os.truncate(f / shard_of(f), 3_000), ["cut off"]),
    "traversal": (rename_shard("../outside.safetensors"), [INDEX, "../outside.safetensors"]),
    "absolute": (rename_shard("/etc/outside.safetensors"), [INDEX, "/etc/outside"]),
    "drive letter": (rename_shard("C:outside.safetensors"), [INDEX, "C:outside"]),
    "backslash": (rename_shard("..\\outside.safetensors"), [INDEX, "outside"]),
    "pickle": (rename_shard("outside.bin"), [INDEX, "outside.bin"]),
    "no name": (index(lambda i: i["weight_map"].update({SOME: 7})), [INDEX, SOME]),
    "no map": (index(lambda i: i.pop("weight_map")), [INDEX, "weight_map"]),
    "no metadata": (index(lambda i: i.pop("metadata")), [INDEX, "metadata"]),
    "unlisted tensor": (index(lambda i: i["weight_map"].pop(SOME)), [SOME, INDEX]),
    "listed in vain": (
        index(lambda i: i["weight_map"].update(stray=i["weight_map"][SOME])),
        ["stray", INDEX],
    ),
    "in two shards": (
        lambda f: [
            edit_tensors(p, lambda t: t.update({SOME: torch.ones(2)})) for p in f.glob("*.safetensors")
        ],
        [SOME],
    ),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("kind", SHARDS)
def test_broken_shards_are_named(sharded_folder, breakable, kind):
    damage, words = SHARDS[kind]
    folder = breakable(sharded_folder)
    assert len(list(folder.glob("*.safetensors"))) > 2
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        Kandinsky5Transformer3DModel.from_pretrained(folder)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_links_into_a_cache_are_followed(sharded_folder, tmp_path):
    """A snapshot of huggingface_hub is a folder of links to blobs with other names."""
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(sharded_folder.iterdir())):
        blob = tmp_path / f"blob{number}"
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)
    network = Kandinsky5Transformer3DModel.from_pretrained(snapshot)
    expected = Kandinsky5Transformer3DModel.from_pretrained(sharded_folder).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())


@pytest.mark.usefixtures("untouched")
def test_pickles_are_refused_with_what_would_work(network_folder, breakable):
    folder = breakable(network_folder)
    (folder / WEIGHTS).unlink()
    torch.save({"weight": torch.ones(1)}, folder / "diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled.*safe_serialization=True"):
        Kandinsky5Transformer3DModel.from_pretrained(folder)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("closed", [".", WEIGHTS, "config.json"])
def test_no_permission(network_folder, tmp_path_factory, closed):
    if os.geteuid() != 0:
        folder = Path(shutil.copytree(network_folder, tmp_path_factory.mktemp("closed") / "network"))
        (folder / closed).chmod(0)
        _refused(folder)
        return
    # Root may read everything: be somebody else for as long as it takes, in a place that they can reach.
    import tempfile

    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        Path(place).chmod(0o755)
        folder = Path(shutil.copytree(network_folder, Path(place) / "network"))
        for path in [folder, *folder.iterdir()]:
            path.chmod(0o755)
        (folder / closed).chmod(0)
        os.seteuid(65534)
        try:
            _refused(folder)
        finally:
            os.seteuid(0)


def _refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="Permission denied"):
        Kandinsky5Transformer3DModel.from_pretrained(folder)


def component(name: str, **values: object):
    return lambda folder: edit_json(folder / name / "config.json", lambda content: content.update(values))


def entry(**values: object):
    return lambda folder: edit_json(folder / "model_index.json", lambda content: content.update(values))


def lose(name: str, file: str, tensor: str):
    return lambda folder: edit_tensors(folder / name / file, lambda stored: stored.pop(tensor))


def shorten_vae(folder: Path) -> None:
    """A config that asks for fewer blocks than are stored: a smaller model would load without a word."""
    edit_json(folder / "vae" / "config.json", lambda content: content["down_block_types"].pop())


PIPELINES = {
    "no index": (lambda f: (f / "model_index.json").unlink(), ["model_index.json"]),
    "no folder": (lambda f: shutil.rmtree(f / "vae"), ["'vae'"]),
    "no entry": (lambda f: edit_json(f / "model_index.json", lambda c: c.pop("vae")), ["'vae'"]),
    "own code": (entry(vae=["os", "system"]), ["system", "vae"]),
    "code of others": (entry(tokenizer_2=["antigravity", "Tokenizer"]), ["antigravity"]),
    "no tokenizer": (entry(tokenizer=["transformers", "pipeline"]), ["pipeline"]),
    "code in the folder": (entry(_class_name=["mine", "Mine"]), ["_class_name"]),
    "odd steps": (entry(default_steps="many"), ["default_steps"]),
    "odd template": (entry(template="best"), ["template"]),
    "half a scheduler": (lambda f: (f / "scheduler" / "scheduler_config.json").write_text("{"), ["scheduler"]),
    "cut tokenizer": (lambda f: os.truncate(f / "tokenizer_2" / "tokenizer.json", 999), ["tokenizer_2"]),
    "cut encoder": (lambda f: os.truncate(f / "text_encoder" / "model.safetensors", 9999), ["text_encoder"]),
    "a billion layers": (component("text_encoder_2", num_hidden_layers=10**9), ["num_hidden_layers"]),
    "a billion labels": (component("text_encoder_2", num_labels=10**9), ["num_labels"]),
    "a long VAE": (component("vae", layers_per_block=10**9), ["layers_per_block"]),
    "a short VAE": (shorten_vae, ["encoder.down_blocks.3", "no place"]),
    "odd VAE": (component("vae", block_out_channels="wide"), ["vae", "AutoencoderKL"]),
    "odd scale": (component("vae", scaling_factor=0), ["scaling_factor"]),
    "other width": (component("text_encoder_2", intermediate_size=3), ["text_encoder_2", "mlp"]),
    "pickled VAE": (
        lambda f: (f / "vae" / WEIGHTS).rename(f / "vae" / "diffusion_pytorch_model.bin"),
        ["vae", "pickled"],
    ),
    "Qwen without a norm": (lose("text_encoder", "model.safetensors", "model.norm.weight"), ["norm.weight"]),
    "VAE without a norm": (lose("vae", WEIGHTS, "decoder.conv_norm_out.weight"), ["conv_norm_out"]),
}  # fmt: skip


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("kind", PIPELINES)
def test_a_broken_pipeline_is_named(folder, kind):
    damage, words = PIPELINES[kind]
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        Kandinsky5T2IPipeline.from_pretrained(folder)
    assert all(word in str(caught.value) for word in [*words, str(folder)]), str(caught.value)


def test_what_is_brought_along_is_not_looked_at(folder, components):
    shutil.rmtree(folder / "vae")
    edit_json(folder / "model_index.json", lambda content: content.pop("vae"))
    pipe = Kandinsky5T2IPipeline.from_pretrained(folder, vae=components["vae"], text_encoder=None)
    assert pipe.vae is components["vae"] and pipe.text_encoder is None


@pytest.mark.parametrize("name", ["vae", "text_encoder", "text_encoder_2"])
def test_values_of_every_model_must_be_finite(folder, name):
    file = next((folder / name).glob("*.safetensors"))
    spoiled = []

    def spoil(stored: dict) -> None:
        spoiled.append(sorted(stored)[3])
        stored[spoiled[0]].view(-1)[0] = float("inf")

    edit_tensors(file, spoil)
    assert find_non_finite(folder) == [(file, spoiled[0])]
    with pytest.raises(CheckpointError, match=r"not finite"):
        Kandinsky5T2IPipeline.from_pretrained(folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [math.inf, -math.inf, math.nan, -math.nan])
def test_no_special_value_is_overlooked(dtype, wrong):
    limits = torch.finfo(dtype)
    largest = torch.tensor([limits.max, limits.min, limits.tiny, -0.0], dtype=dtype)
    assert is_finite(largest) and is_finite(largest[0])
    values = torch.randn(2 * PIECE_BYTES // dtype.itemsize + 1).to(dtype)
    assert is_finite(values)
    for place in (0, len(values) - 1):
        spoiled = values.clone()
        spoiled[place] = wrong
        assert not is_finite(spoiled)
        assert not is_finite(spoiled.repeat(2, 1).T)  # its rows are not behind each other
    assert not is_finite(torch.tensor(wrong, dtype=dtype))
