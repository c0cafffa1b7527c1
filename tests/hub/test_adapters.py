"""An adapter's repository: the one file that is fetched of it, once, and what is not one."""

import json
import logging
from pathlib import Path

import pytest

from kandinsky5.errors import CheckpointError
from kandinsky5.hub import HubAccess
from kandinsky5.hub.adapters import adapter_among, fetch_adapter

from .conftest import REPO, safetensors_bytes
from .server import Hub, Trouble

ADAPTER = "someone/crescents-lora"
FILES = {
    "lora.safetensors": safetensors_bytes(30_000, b"lora "),
    "config_lora.json": json.dumps({"r": 4}).encode(),
}
OTHERS = {
    "README.md": b"# words",
    "sub/other.safetensors": safetensors_bytes(2_000, b"sub "),
    "sub/adapter_config.json": json.dumps({"r": 8}).encode(),
    "lora.bin": b"pickle" * 100,
    "optimizer.json": b"{}",
    "../escape.safetensors": safetensors_bytes(100, b"x"),
    "a/../../escape.safetensors": safetensors_bytes(100, b"x"),
}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def offline(access: HubAccess) -> HubAccess:
    return HubAccess(endpoint=access.endpoint, cache_dir=access.cache_dir, local_files_only=True)


def test_one_file_and_its_config_are_fetched_once(hub: Hub, access: HubAccess) -> None:
    hub.add(ADAPTER, FILES | OTHERS)
    file = fetch_adapter(ADAPTER, access)
    assert file.name == "lora.safetensors" and content(file.parent) == FILES
    sent = hub.sent()
    assert fetch_adapter(ADAPTER, access) == file
    assert hub.sent() - sent < 5_000
    assert fetch_adapter(ADAPTER, offline(access)) == file
    assert not list(Path(access.cache_folder).rglob("escape*"))


def test_of_many_files_only_the_one_that_is_named_is_fetched(hub: Hub, access: HubAccess) -> None:
    """Trainers push one a checkpoint; a published model's repository has gigabytes of them."""
    steps = {f"step-{i:05}.safetensors": safetensors_bytes(50_000, b"step %d " % i) for i in range(30)}
    hub.add(ADAPTER, steps | OTHERS)
    before = hub.sent()
    file = fetch_adapter(ADAPTER, access, wanted="step-00007.safetensors")
    assert content(file.parent) == {file.name: steps[file.name]} and hub.sent() - before < 70_000
    other = fetch_adapter(ADAPTER, access, wanted="sub/other.safetensors")
    assert other == fetch_adapter(ADAPTER, access, subfolder="sub") == file.parent / "sub/other.safetensors"
    assert (other.parent / "adapter_config.json").is_file()
    before = hub.sent()
    for wanted, words in (
        (None, "weight_name say which: step-00000.safetensors, .* and 19 more"),
        ("step-7.safetensors", "has no safetensors file 'step-7.safetensors'; it has"),
        ("../escape.safetensors", "has no safetensors file"),
        ("lora.bin", "has no safetensors file 'lora.bin'"),
    ):
        with pytest.raises(CheckpointError, match=words):
            fetch_adapter(ADAPTER, access, wanted=wanted)
    with pytest.raises(CheckpointError, match=f"{REPO} must hold one .safetensors file of an adapter"):
        fetch_adapter(REPO, access)
    assert hub.sent() - before < 100_000  # descriptions


def test_a_hub_that_is_out_of_reach(hub: Hub, access: HubAccess, caplog: pytest.LogCaptureFixture) -> None:
    hub.add(ADAPTER, FILES)
    hub.troubles.append(Trouble(where="/api/", status=503))
    with pytest.raises(CheckpointError, match="HTTP 503"):
        fetch_adapter(ADAPTER, access)
    hub.troubles.clear()
    file = fetch_adapter(ADAPTER, access)
    hub.troubles.append(Trouble(where="/api/", status=503))
    with caplog.at_level(logging.WARNING, "kandinsky5"):
        assert fetch_adapter(ADAPTER, access) == file
    assert "cannot be asked" in caplog.text
    with pytest.raises(CheckpointError, match="HTTP 503"):
        fetch_adapter(ADAPTER, access, force=True)


def test_repositories_that_are_none(hub: Hub, access: HubAccess) -> None:
    hub.add(ADAPTER, OTHERS)
    with pytest.raises(CheckpointError, match=r"must hold one .*other"):
        fetch_adapter(ADAPTER, access)
    with pytest.raises(CheckpointError, match="not on the hub"):
        fetch_adapter("someone/nothing", access)
    with pytest.raises(CheckpointError, match="neither a folder here nor a hub id"):
        fetch_adapter("a b c", access)
    with pytest.raises(CheckpointError, match="not in the cache"):
        fetch_adapter(REPO, offline(access))


def test_which_of_a_folder_s_files() -> None:
    usual = "pytorch_lora_weights.safetensors"
    assert adapter_among([usual, "a.safetensors", "config.json"], None, "x") == usual
    assert adapter_among(["a.safetensors", f"sub/{usual}"], None, "x") == "a.safetensors"
    with pytest.raises(CheckpointError, match=r"x must hold one .*: none\."):
        adapter_among(["a.bin"], None, "x")
