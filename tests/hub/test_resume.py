"""A fetch that ended in the middle of a file goes on from there, in the same process and in another."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kandinsky5.hub import HubAccess, check_room, fetch, plan

from .conftest import REPO, pipeline_files
from .server import Hub, Request, Trouble
from .test_fetch import Counted, files_in, leftovers

SIZE = sum(map(len, pipeline_files().values()))
SHARD = "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
CONTENT = pipeline_files()[SHARD]
DIGEST = hashlib.sha256(CONTENT).hexdigest()
HALF = len(CONTENT) // 2


def environment(hub: Hub, cache: Path, patience: int = 50) -> dict[str, str]:
    """A process of its own reaches the hub as a user does: by the environment. `patience`: seconds without bytes."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.address,
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": str(patience),
    }


# The chunk of the child is made small, so that a file of this size is written in pieces.
PULL = [
    sys.executable,
    "-c",
    "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 1 << 14; "
    f"from kandinsky5.cli.app import main; main(['pull', {REPO!r}])",
]


def pulling(hub: Hub, cache: Path, bytes_before: int, patience: int = 50) -> subprocess.Popen[str]:
    """A `kandinsky5 pull` that has so many bytes of the shard, and waits for more."""
    hub.troubles.append(Trouble(where=f"GET /store/{REPO}/{DIGEST}", hang_after=bytes_before))
    process = subprocess.Popen(
        PULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(hub, cache, patience)
    )
    deadline = time.monotonic() + 60
    while (partial_of(cache).stat().st_size if partial_of(cache).exists() else 0) < bytes_before - (1 << 14):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process


def partial_of(cache: Path) -> Path:
    return cache / f"models--{REPO.replace('/', '--')}" / "blobs" / f"{DIGEST}.incomplete"


def asked_of_the_store(hub: Hub) -> list[Request]:
    return [r for r in hub.requests if r.method == "GET" and f"/store/{REPO}/{DIGEST}" in r.path]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_ended_pull_goes_on_in_a_new_process(hub: Hub, tmp_path: Path, how: signal.Signals) -> None:
    cache = tmp_path / "cache"
    process = pulling(hub, cache, 200_000, patience=50 if how is signal.SIGKILL else 5)
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert process.returncode == (-signal.SIGKILL if how is signal.SIGKILL else 130) and out == ""
    assert "Traceback" not in err
    assert ("the same command goes on from there" in err) == (how is signal.SIGINT)
    kept = partial_of(cache).stat().st_size
    assert CONTENT.startswith(partial_of(cache).read_bytes()) and kept > 150_000
    assert leftovers(HubAccess(cache_dir=cache)) == []
    there = sum(p.stat().st_size for p in cache.rglob("blobs/*") if not p.name.endswith(".etag"))
    hub.troubles.clear()
    hub.requests.clear()
    done = subprocess.run(PULL, capture_output=True, text=True, env=environment(hub, cache), timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert files_in(Path(done.stdout.strip())) == pipeline_files()
    (again,) = asked_of_the_store(hub)
    assert (again.range, again.if_range, again.status) == (f"bytes={kept}-", f'"{DIGEST}"', 206)
    assert again.sent == len(CONTENT) - kept
    assert hub.sent() == SIZE - there, "nothing that was there was sent again"
    assert not list(cache.rglob("*.incomplete*"))


def leave(access: HubAccess, content: bytes, etag: str | None = DIGEST) -> Path:
    """What a killed process leaves: the first bytes of the shard, and the ETag they came with."""
    partial = partial_of(access.cache_folder)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(content)
    if etag is not None:
        partial.with_name(f"{partial.name}.etag").write_text(f'"{etag}"')
    return partial


def test_only_the_rest_is_counted_and_needs_room(hub: Hub, access: HubAccess) -> None:
    leave(access, CONTENT[:HALF])
    assert check_room(plan(REPO, access=access), access) == SIZE - HALF
    counted = Counted()
    fetch(REPO, access=access, watch=counted.watch)
    assert counted.announced[0] == counted.bytes["fetched"] == hub.sent() == SIZE - HALF


def test_all_bytes_but_no_name(hub: Hub, access: HubAccess) -> None:
    """Killed between the last byte and the renaming."""
    leave(access, CONTENT)
    assert files_in(fetch(REPO, access=access)) == pipeline_files()
    assert asked_of_the_store(hub) == []


@pytest.mark.parametrize(
    ("kept", "etag", "trouble", "ranges"),
    [
        # Of another file: If-Range spares the rest of it, and the hash is not needed to tell.
        (b"?" * HALF, "before", None, [f"bytes={HALF}-"]),
        (b"?" * HALF, DIGEST, Trouble(where="GET /store", etag='"after"'), [f"bytes={HALF}-"]),
        (CONTENT[:HALF], DIGEST, Trouble(where="GET /store", no_ranges=True), [f"bytes={HALF}-"]),
        (CONTENT[:HALF], None, Trouble(where="GET /store", wrong_range=True), [f"bytes={HALF}-", None]),
        (CONTENT[:HALF], DIGEST, Trouble(where="GET /store", status=416, times=1), [f"bytes={HALF}-", None]),
        (b"?" * HALF, DIGEST, None, [f"bytes={HALF}-", None]),
        (b"?" * len(CONTENT), DIGEST, None, [None]),
        (CONTENT + b"more", DIGEST, None, [None]),
    ],
    ids=["etag", "other etag", "no ranges", "wrong range", "416", "other bytes", "all other", "too long"],
)
def test_bytes_that_do_not_fit_are_fetched_again(
    hub: Hub,
    access: HubAccess,
    kept: bytes,
    etag: str | None,
    trouble: Trouble | None,
    ranges: list[str | None],
) -> None:
    leave(access, kept, etag)
    if trouble is not None:
        trouble.where = f"GET /store/{REPO}/{DIGEST}"
        hub.troubles.append(trouble)
    counted = Counted()
    assert files_in(fetch(REPO, access=access, watch=counted.watch)) == pipeline_files()
    assert [request.range for request in asked_of_the_store(hub)] == ranges
    assert counted.bytes["fetched"] == counted.announced[0], "the bar ends at its end"
    assert leftovers(access) == [] and not list(access.cache_folder.rglob("*.incomplete*"))


def test_a_file_that_changed_on_the_hub_starts_anew(hub: Hub, access: HubAccess) -> None:
    leave(access, CONTENT[:HALF])
    changed = {**pipeline_files(), SHARD: CONTENT[::-1]}
    hub.push(REPO, changed)
    assert files_in(fetch(REPO, access=access)) == changed
    assert all(request.range is None for request in hub.requests)


def test_two_processes_fetch_each_file_once(hub: Hub, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = pulling(hub, cache, 100_000, patience=5)
    hub.troubles.clear()
    second = subprocess.Popen(
        PULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(hub, cache)
    )
    outs = [process.communicate(timeout=90) for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0], outs
    assert outs[0][0] == outs[1][0] and files_in(Path(outs[0][0].strip())) == pipeline_files()
    assert leftovers(HubAccess(cache_dir=cache)) == [] and not list(cache.rglob("*.incomplete*"))
    assert hub.sent("GET", f"/store/{REPO}/{DIGEST}") < len(CONTENT) + (1 << 15)


def test_a_forced_fetch_takes_nothing_from_before(hub: Hub, access: HubAccess) -> None:
    fetch(REPO, access=access)
    hub.requests.clear()
    assert files_in(fetch(REPO, access=access, force=True)) == pipeline_files()
    assert hub.sent() == SIZE
