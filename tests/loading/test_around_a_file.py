"""`from_single_file` with all components passed: which arguments it takes, and which it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch

from kandinsky5.errors import RequestError
from kandinsky5.pipelines import Kandinsky5T2IPipeline

from .test_single_file import original


@pytest.fixture
def file(components: dict[str, Any], tmp_path: Path) -> Path:
    return original(tmp_path, components["transformer"])


@pytest.fixture
def others(components: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in components.items() if name != "transformer"}


@pytest.mark.parametrize(
    "taken",
    [
        {"device_map": "cpu"},
        {"disable_mmap": True},
        {"dtype": torch.bfloat16},
        {"torch_dtype": {"transformer": torch.bfloat16, "default": torch.float32}},
        {"token": "x", "cache_dir": "y", "local_files_only": True, "use_safetensors": True},
        {"variant": None, "revision": None, "force_download": False},
        {"default_steps": 7},
        {"text_encoder_parts": ["vision"]},
    ],
)
def test_what_is_taken(file, others, taken):
    pipe = Kandinsky5T2IPipeline.from_single_file(file, **others, **taken)
    assert pipe.vae is others["vae"] and pipe.transformer.device.type == "cpu"
    narrow = {"dtype", "torch_dtype"} & set(taken)
    assert pipe.transformer.dtype == (torch.bfloat16 if narrow else torch.float32)
    assert pipe.default_steps == taken.get("default_steps", 50)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        ({"variant": "fp16"}, "variant='fp16' is about loading the other components"),
        ({"revision": "v2"}, "revision='v2' is about"),
        ({"force_download": True}, "force_download=True is about"),
        ({"default_step": 3}, "did you mean default_steps"),
        ({"use_safetensors": False}, "pickles"),
        ({"trust_remote_code": True}, "code from a repository is not run"),
    ],
)
def test_what_is_refused_in_words(file, others, refused, words):
    with pytest.raises(RequestError, match=words):
        Kandinsky5T2IPipeline.from_single_file(file, **others, **refused)


def test_a_second_network_is_refused(file, components):
    with pytest.raises(RequestError, match=r"comes from kandinsky5lite\.safetensors; leave transformer out"):
        Kandinsky5T2IPipeline.from_single_file(file, **components)


def test_with_a_base_they_reach_it(file, saved_folder):
    pipe = Kandinsky5T2IPipeline.from_single_file(file, config=saved_folder, device_map="cpu")
    assert pipe.transformer.device.type == "cpu"
    with pytest.raises(RequestError, match="revision is for hub ids"):
        Kandinsky5T2IPipeline.from_single_file(file, config=saved_folder, revision="v2")
