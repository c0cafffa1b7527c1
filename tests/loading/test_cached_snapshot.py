"""By hub id from a cache of links, as `huggingface_hub` lays it out; this suite has no network."""

import shutil
from pathlib import Path

import pytest
import torch

from kandinsky5.errors import CheckpointError
from kandinsky5.model.transformer import Kandinsky5Transformer3DModel
from kandinsky5.pipelines import Kandinsky5T2IPipeline

HUB_ID, COMMIT = "somebody/tiny-kandinsky", "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(saved_folder: str, tmp_path: Path) -> Path:
    """A cache that holds the shared system: blobs, and a snapshot of links to them."""
    repository = tmp_path / "cache" / "models--somebody--tiny-kandinsky"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(p for p in Path(saved_folder).rglob("*") if p.is_file())):
        link = snapshot / file.relative_to(saved_folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blobs / str(number))
        link.symlink_to(blobs / str(number))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path / "cache"


def test_the_network_of_a_hub_id(cache, components):
    network = Kandinsky5Transformer3DModel.from_pretrained(
        HUB_ID, subfolder="transformer", cache_dir=cache, local_files_only=True
    )
    expected = components["transformer"].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    assert network.config._name_or_path == HUB_ID


def test_the_pipeline_of_a_hub_id(cache, components):
    pipe = Kandinsky5T2IPipeline.from_pretrained(HUB_ID, cache_dir=cache, local_files_only=True)
    expected = components["transformer"].state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in pipe.transformer.state_dict().items())
    assert pipe.config._name_or_path == HUB_ID


@pytest.mark.parametrize("load", [Kandinsky5T2IPipeline, Kandinsky5Transformer3DModel])
def test_what_is_not_there_is_a_checkpoint_error(cache, load):
    with pytest.raises(CheckpointError, match="somebody/else"):
        load.from_pretrained("somebody/else", cache_dir=cache, local_files_only=True)


def test_a_damaged_blob_is_found_behind_its_link(cache):
    link = next(cache.rglob("snapshots/*/vae/*.safetensors"))
    link.resolve().write_bytes(link.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"vae.*cut off"):
        Kandinsky5T2IPipeline.from_pretrained(HUB_ID, cache_dir=cache, local_files_only=True)
