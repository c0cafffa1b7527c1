"""Fetching from a hub that refuses, stalls, breaks and lies: one line each, and nothing wrong in the cache."""

import errno
import hashlib
import json
import logging
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from kandinsky5.errors import CapacityError, CheckpointError
from kandinsky5.hub import HubAccess, fetch, plan

from .conftest import REPO, pipeline_files
from .server import Hub, Trouble
from .test_fetch import files_in, leftovers

SHARD = "transformer/diffusion_pytorch_model-00002-of-00002.safetensors"


def refused(access: HubAccess, repo_id: str = REPO, **arguments: str) -> str:
    """The one line of a fetch that fails, which leaves nothing wrong behind."""
    with pytest.raises(CheckpointError) as caught:
        fetch(repo_id, access=access, **arguments)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert leftovers(access) == []
    return str(caught.value)


def with_token(access: HubAccess, token: str) -> HubAccess:
    return HubAccess(**{**vars(access), "token": token})


def test_a_repository_that_is_not_there(hub: Hub, access: HubAccess) -> None:
    line = refused(access, "someone/nothing")
    assert line.startswith(
        "someone/nothing is not on the hub, or it is private (HTTP 404); check the name at http"
    )
    assert not access.cache_folder.exists()


def test_a_private_repository(hub: Hub, access: HubAccess) -> None:
    hub.repositories[REPO].token = "hf_right"
    assert "private (HTTP 401)" in refused(access) and "HF_TOKEN" in refused(access)
    assert "refuses the token" in refused(with_token(access, "hf_wrong"))


def test_a_gated_repository(hub: Hub, access: HubAccess) -> None:
    hub.repositories[REPO].gated = True
    line = refused(with_token(access, "hf_any"))
    assert "accept its licence (HTTP 403): log in and accept it at" in line
    assert f"{hub.address}/{REPO}" in line and "hf auth login" in line and "HF_TOKEN" in line


def test_a_gated_repository_without_a_token(hub: Hub, access: HubAccess) -> None:
    hub.repositories[REPO].gated = True
    hub.troubles.append(Trouble(where="/api/models", status=401, headers={"X-Error-Code": "GatedRepo"}))
    assert "accept its licence (HTTP 401): log in" in refused(access)


def test_a_token_that_may_not_read(hub: Hub, access: HubAccess) -> None:
    hub.troubles.append(Trouble(where="/api/models", status=403))
    assert f"The token sent may not read {REPO} (HTTP 403)" in refused(with_token(access, "hf_any"))


def test_a_revision_that_is_not_there(hub: Hub, access: HubAccess) -> None:
    assert f"{REPO} has no revision 'v7'" in refused(access, revision="v7")


def test_too_many_requests_say_how_long_to_wait(hub: Hub, access: HubAccess) -> None:
    hub.troubles.append(Trouble(where="/api/models", status=429, headers={"Retry-After": "77"}))
    assert "(HTTP 429); try again in 77 seconds" in refused(access)
    assert len(hub.requests) == 1


def test_too_many_requests_in_the_middle_are_waited_for(hub: Hub, access: HubAccess) -> None:
    busy = Trouble(where="GET /store", status=429, times=1, headers={"Retry-After": "0"})
    hub.troubles.append(busy)
    assert files_in(fetch(REPO, access=access)) == pipeline_files()
    assert [r.status for r in hub.requests].count(429) == 1


@pytest.mark.parametrize("status", [500, 503])
def test_a_failing_hub(hub: Hub, access: HubAccess, status: int) -> None:
    hub.troubles.append(Trouble(where="/api/models", status=status))
    assert f"fails now (HTTP {status}" in refused(access)


def test_no_hub_at_all(hub: Hub, tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        line = refused(HubAccess(endpoint=address, cache_dir=tmp_path / "cache"))
    assert line.startswith(f"{address} does not answer (ConnectError")
    assert "HTTPS_PROXY" in line and "--model embedded" in line


def test_a_copy_in_the_cache_is_used_when_the_hub_is_gone(
    hub: Hub, access: HubAccess, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch(REPO, access=access)
    hub.troubles.append(Trouble(where="/api/models", status=503))
    with caplog.at_level(logging.WARNING, "kandinsky5"):
        assert fetch(REPO, access=access) == folder
    assert "using the copy in" in caplog.text
    (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert "HTTP 503" in refused(access)


def test_a_file_that_is_gone(hub: Hub, access: HubAccess) -> None:
    hub.troubles.append(
        Trouble(where=f"GET /{REPO}/resolve", status=404, headers={"X-Error-Code": "EntryNotFound"})
    )
    assert "has lost a file that it listed (HTTP 404" in refused(access)


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, access: HubAccess) -> None:
    shard = f"GET /store/{REPO}/{hashlib.sha256(pipeline_files()[SHARD]).hexdigest()}"
    hub.troubles.append(Trouble(where=shard, times=2, break_after=40_000))
    assert files_in(fetch(REPO, access=access)) == pipeline_files()
    chunk = constants.DOWNLOAD_CHUNK_SIZE
    ranges = [r.range for r in hub.requests if r.range and "/store/" in r.path]
    assert ranges == [f"bytes={2 * chunk}-", f"bytes={4 * chunk}-"]
    again = hub.sent() - sum(map(len, pipeline_files().values()))
    assert again == 2 * (40_000 - 2 * chunk), "only what had not filled a chunk was sent again"


def test_a_server_without_ranges_is_asked_from_the_start(hub: Hub, access: HubAccess) -> None:
    hub.troubles += [
        Trouble(where="GET /store", times=1, break_after=5_000),
        Trouble(where="GET /store", no_ranges=True),
    ]
    assert files_in(fetch(REPO, access=access)) == pipeline_files()


def test_whole_files_of_a_fetch_that_failed_are_kept(hub: Hub, access: HubAccess) -> None:
    lost = Trouble(where=f"GET /{REPO}/resolve", status=503)
    hub.troubles.append(lost)
    wanted = plan(REPO, access=access)
    assert "HTTP 503" in refused(access)
    hub.troubles.clear()
    hub.requests.clear()
    assert files_in(fetch(REPO, access=access)) == pipeline_files()
    assert hub.sent() <= wanted.size
    hub.requests.clear()
    fetch(REPO, access=access)
    assert hub.sent() == 0


def test_a_slow_answer_is_waited_for_and_a_stalled_one_is_not(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kandinsky5.hub.selection.ANSWER_SECONDS", 0.3)
    slow = Trouble(where="/api/models", stall=0.1, times=1)
    hub.troubles.append(slow)
    plan(REPO, access=access)
    assert slow.times == 0
    hub.troubles.append(Trouble(where="/api/models", stall=2))
    assert "does not answer (ReadTimeout" in refused(access)


def test_a_stalled_file_is_asked_for_again(hub: Hub, access: HubAccess) -> None:
    hub.troubles.append(Trouble(where="GET /store", stall=1.5, times=1))
    assert files_in(fetch(REPO, access=access)) == pipeline_files()


def test_other_bytes_than_the_hub_describes(hub: Hub, access: HubAccess) -> None:
    content = pipeline_files()[SHARD]
    hub.troubles.append(Trouble(where="GET /store", other_bytes=True))
    line = refused(access)
    assert f"{REPO}/" in line and ".safetensors arrived damaged" in line
    hub.troubles.clear()
    assert (fetch(REPO, access=access) / SHARD).read_bytes() == content


def test_a_small_file_with_other_bytes(hub: Hub, access: HubAccess) -> None:
    hub.troubles.append(Trouble(where="GET /" + REPO + "/resolve", other_bytes=True))
    assert f"{REPO}/model_index.json arrived damaged" in refused(access)


def test_a_length_that_is_not_the_files(hub: Hub, access: HubAccess) -> None:
    hub.troubles.append(Trouble(where="GET /store", short_length=1000))
    line = refused(access)
    assert re.search(r"\.safetensors: the hub sends 1000 bytes where \d+ are to come", line)


def test_answers_that_hold_nothing_end(hub: Hub, access: HubAccess) -> None:
    hub.troubles.append(Trouble(where="GET /store", break_after=0))
    assert "does not answer (RemoteProtocolError" in refused(access)
    assert hub.count("GET", "/store/") < 40


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for half of the pipeline; making one takes root."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], capture_output=True)
    if made.returncode:
        pytest.skip("a small file system cannot be made here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount")
def test_a_small_disk_is_seen_before_and_survived_within(
    hub: Hub, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = HubAccess(endpoint=hub.address, cache_dir=small_disk / "cache")
    with pytest.raises(CapacityError, match="are free"):
        fetch(REPO, access=access)
    assert hub.sent() == 0
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**9})())
    with pytest.raises(CapacityError, match=r"The disk of .*cache is full; .*what came is kept"):
        fetch(REPO, access=access)
    assert leftovers(access) == []
    kept = sum(path.stat().st_size for path in access.cache_folder.rglob("blobs/*"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    hub.requests.clear()
    assert files_in(fetch(REPO, access=access)) == pipeline_files()
    assert kept > 200_000 and hub.sent() < sum(map(len, pipeline_files().values())) - 200_000


def test_a_disk_that_fills_up(hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("kandinsky5.hub.blob._receive", full)
    with pytest.raises(CapacityError, match=r"The disk of .*cache is full; .*what came is kept"):
        fetch(REPO, access=access)
    assert leftovers(access) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_index.json": None}, "has no model_index.json"),
        (
            {
                "vae/diffusion_pytorch_model.safetensors": None,
                "vae/diffusion_pytorch_model.bin": b"pickle",
            },
            r"no safetensors for vae, only vae/diffusion_pytorch_model.bin, which could run code",
        ),
        ({SHARD: None}, "has 1 of the 2 shards of transformer"),
        ({"vae/config.json": None}, "lacks vae/config.json"),
        ({"scheduler/scheduler_config.json": None}, "lacks scheduler"),
    ],
)
def test_repositories_that_are_no_pipeline(
    hub: Hub, access: HubAccess, change: dict[str, bytes | None], message: str
) -> None:
    files = {**pipeline_files(), **change}
    hub.add("someone/odd", {name: content for name, content in files.items() if content is not None})
    with pytest.raises(CheckpointError, match=message):
        fetch("someone/odd", access=access)
    assert hub.count("GET", "/store/") == 0, "known before the first large file"


def test_an_index_that_names_a_shard_nobody_has(hub: Hub, access: HubAccess) -> None:
    index = "transformer/diffusion_pytorch_model.safetensors.index.json"
    for shard in ("diffusion_pytorch_model-00003-of-00003.safetensors", "../../../etc/passwd"):
        content = json.dumps({"weight_map": {"a": shard}}).encode()
        hub.add("someone/odd", {**pipeline_files(), index: content})
        hub.requests.clear()
        line = refused(access, "someone/odd")
        assert f"someone/odd lacks transformer/{shard}, which its own index names" in line
        assert hub.count("GET", "/store/") == 0


def test_names_that_lead_out_of_the_folder_are_not_asked_for(hub: Hub, access: HubAccess) -> None:
    odd = {"vae/../../../evil.json": b"{}", "/etc/evil.json": b"{}", "vae/..\\evil.json": b"{}", "..": b"{}"}
    hub.add("someone/odd", {**pipeline_files(), **odd})
    folder = fetch("someone/odd", access=access)
    assert files_in(folder) == pipeline_files()
    assert not any("evil" in request.path for request in hub.requests)


def test_what_a_mistyped_id_was_meant_to_be(hub: Hub, access: HubAccess) -> None:
    line = refused(access, "kandinskylab/Kandinsky-5.0-T2I-Lite-sfft-Diffusers")
    assert "did you mean kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers" in line
    original = "kandinskylab/Kandinsky-5.0-T2I-Lite-sft"
    hub.add(original, {"model/kandinsky5lite_t2i.safetensors": b"x" * 3000})
    assert "did you mean kandinskylab/Kandinsky-5.0-T2I-Lite-sft-Diffusers" in refused(access, original)
    assert "did you mean" not in refused(access, "someone/nothing")


def test_a_name_that_is_no_id(hub: Hub, access: HubAccess) -> None:
    assert refused(access, "/no/such/folder") == (
        "'/no/such/folder' is neither a folder here nor a hub id such as org/name."
    )
    assert hub.requests == []
