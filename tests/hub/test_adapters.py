"""An adapter's repository: what is fetched of it, once, and what is not one."""

import json
from pathlib import Path

import pytest

from kandinsky5.errors import CheckpointError
from kandinsky5.hub import HubAccess
from kandinsky5.hub.adapters import fetch_adapter

from .conftest import REPO, safetensors_bytes
from .server import Hub

ADAPTER = "someone/crescents-lora"
FILES = {
    "lora.safetensors": safetensors_bytes(30_000, b"lora "),
    "config_lora.json": json.dumps({"r": 4}).encode(),
    "sub/other.safetensors": safetensors_bytes(2_000, b"sub "),
}
OTHERS = {
    "README.md": b"# words",
    "lora.bin": b"pickle" * 100,
    "optimizer.json": b"{}",
    "../escape.safetensors": safetensors_bytes(100, b"x"),
    "a/../../escape.safetensors": safetensors_bytes(100, b"x"),
}


def test_safetensors_and_their_configs_are_fetched_once(hub: Hub, access: HubAccess) -> None:
    hub.add(ADAPTER, FILES | OTHERS)
    folder = fetch_adapter(ADAPTER, access)
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found == FILES
    sent = hub.sent()
    assert fetch_adapter(ADAPTER, access) == folder
    assert hub.sent() - sent < 5_000
    offline = HubAccess(endpoint=access.endpoint, cache_dir=access.cache_dir, local_files_only=True)
    assert fetch_adapter(ADAPTER, offline) == folder
    assert not list(Path(access.cache_folder).rglob("escape*"))


def test_repositories_that_are_none(hub: Hub, access: HubAccess) -> None:
    hub.add(ADAPTER, OTHERS)
    with pytest.raises(CheckpointError, match="0 safetensors files: it is not the repository of an adapter"):
        fetch_adapter(ADAPTER, access)
    with pytest.raises(CheckpointError, match="not on the hub"):
        fetch_adapter("someone/nothing", access)
    with pytest.raises(CheckpointError, match="neither a folder here nor a hub id"):
        fetch_adapter("a b c", access)
    offline = HubAccess(endpoint=access.endpoint, cache_dir=access.cache_dir, local_files_only=True)
    with pytest.raises(CheckpointError, match="not in the cache"):
        fetch_adapter(REPO, offline)
