"""A loopback hub, a cache of the test's own, and a small pipeline's files. The client is the real one."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from kandinsky5.hub import HubAccess

from .server import Hub, serving

REPO = "someone/Kandinsky-5.0-tiny-Diffusers"


def safetensors_bytes(size: int, fill: bytes) -> bytes:
    """A valid safetensors file of one uint8 tensor."""
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + (fill * (size // len(fill) + 1))[:size]


def pipeline_files() -> dict[str, bytes]:
    """The published layout with weights that say nothing: the hub's side looks at names, sizes and hashes."""
    networks = {
        "_class_name": "Kandinsky5T2IPipeline",
        "transformer": ["diffusers", "Kandinsky5Transformer3DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "text_encoder_2": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "Qwen2_5_VLProcessor"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    shards = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weight_map = {"a": shards[0], "b": shards[1]}
    small = {
        "model_index.json": networks,
        "transformer/config.json": {"model_dim": 8},
        "transformer/diffusion_pytorch_model.safetensors.index.json": {"weight_map": weight_map},
        "vae/config.json": {"latent_channels": 16},
        "text_encoder/config.json": {"hidden_size": 8},
        "text_encoder_2/config.json": {"hidden_size": 4},
        "tokenizer/tokenizer.json": {"model": "tokens " * 500},
        "tokenizer_2/vocab.json": {"a": 0},
        "scheduler/scheduler_config.json": {"shift": 3.0},
    }
    files = {name: json.dumps(content).encode() for name, content in small.items()}
    files["tokenizer_2/merges.txt"] = b"#version\n"
    for number, shard in enumerate(shards):
        files[f"transformer/{shard}"] = safetensors_bytes(300_000, b"shard %d " % number)
    files["vae/diffusion_pytorch_model.safetensors"] = safetensors_bytes(50_000, b"vae ")
    files["text_encoder/model.safetensors"] = safetensors_bytes(200_000, b"qwen ")
    files["text_encoder_2/model.safetensors"] = safetensors_bytes(20_000, b"clip ")
    return files


UNWANTED = {
    "README.md": b"# words",
    ".gitattributes": b"*.safetensors lfs",
    "assets/cat.png": b"\x89PNG" * 1000,
    "vae/diffusion_pytorch_model.bin": b"pickle" * 1000,
    "vae/diffusion_pytorch_model.fp16.safetensors": safetensors_bytes(25_000, b"half "),
    "transformer/diffusion_pytorch_model.safetensors": safetensors_bytes(600_000, b"all "),
    "transformer/diffusion_pytorch_model.fp16-00001-of-00001.safetensors": safetensors_bytes(9_000, b"h"),
    "transformer/diffusion_pytorch_model.safetensors.index.fp16.json": b"{}",
    "text_encoder/consolidated.safetensors": safetensors_bytes(9_000, b"other "),
    "text_encoder/pytorch_model-00001-of-00002.bin": b"pickle",
    "text_encoder/nested/model.safetensors": safetensors_bytes(9_000, b"n"),
    "../escape.json": b"{}",
    "vae/../../escape.json": b"{}",
}
"""Files a repository may have that no task needs."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one pipeline, and the client's switches as on a machine with a network (but shorter
    waits and smaller chunks).
    """
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
    monkeypatch.setattr("kandinsky5.hub.blob.RETRY_SECONDS", 0.02)
    monkeypatch.setattr("kandinsky5.hub.blob.RETRIES", 2)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    huggingface_hub.utils.logging.set_verbosity_error()
    with serving() as hub:
        hub.add(REPO, pipeline_files() | UNWANTED)
        yield hub
    huggingface_hub.close_session()


@pytest.fixture
def at(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The cache of commands and pipelines, which ask the loopback hub as HF_ENDPOINT would have them."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    return str(tmp_path / "cache")


@pytest.fixture
def access(hub: Hub, tmp_path: Path) -> HubAccess:
    return HubAccess(endpoint=hub.address, cache_dir=tmp_path / "cache")
