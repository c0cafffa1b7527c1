"""Waiting for another process, or for a hub that asks to be left alone: short, told, and ended by one Ctrl-C."""

import hashlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.utils import WeakFileLock

from kandinsky5.errors import CheckpointError
from kandinsky5.hub import HubAccess, fetch
from kandinsky5.hub.access import seconds_asked
from kandinsky5.hub.bars import bars
from kandinsky5.hub.blob import Blob
from kandinsky5.hub.lock import pause

from .conftest import REPO, pipeline_files
from .server import Hub, Trouble
from .test_fetch import files_in, leftovers
from .test_resume import CONTENT, DIGEST, PULL, environment, partial_of

CONFIG = pipeline_files()["vae/config.json"]
SMALL = hashlib.sha1(f"blob {len(CONFIG)}\0".encode() + CONFIG).hexdigest()


def lock_of(cache: Path, etag: str) -> Path:
    lock = cache / ".locks" / f"models--{REPO.replace('/', '--')}" / f"{etag}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    return lock


def told(process: subprocess.Popen[str], words: str) -> str:
    """What a process says on standard error, up to the line with these words."""
    lines = []
    assert process.stderr is not None
    while not lines or words not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], lines
    return "".join(lines)


@pytest.mark.parametrize("etag", [DIGEST, SMALL], ids=["large", "small"])
def test_ctrl_c_ends_a_wait_for_another_process(hub: Hub, tmp_path: Path, etag: str) -> None:
    cache = tmp_path / "cache"
    with WeakFileLock(lock_of(cache, etag)):
        process = subprocess.Popen(
            PULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(hub, cache)
        )
        assert "Traceback" not in told(process, "Another process is fetching the same file")
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        out, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 10
    assert (process.returncode, out) == (130, "") and "Traceback" not in err


def test_who_waited_takes_what_the_other_fetched(
    hub: Hub, access: HubAccess, caplog: pytest.LogCaptureFixture
) -> None:
    """The lock is let go of when the file is there."""
    blob = partial_of(access.cache_folder).with_name(DIGEST)

    def other() -> None:
        with WeakFileLock(lock_of(access.cache_folder, DIGEST)):
            locked.set()
            time.sleep(1.5)
            blob.parent.mkdir(parents=True, exist_ok=True)
            blob.write_bytes(CONTENT)

    locked = threading.Event()
    thread = threading.Thread(target=other)
    thread.start()
    locked.wait()
    assert files_in(fetch(REPO, access=access)) == pipeline_files()
    thread.join()
    assert hub.sent("GET", DIGEST) == 0 and "Another process is fetching" in caplog.text


def test_a_bar_tells_who_fetches(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(
        "rich.progress.Progress.update", lambda self, task, **told: shown.append(told["description"])
    )
    with bars(10, 10) as on_bytes:
        on_bytes("waiting", 1)
        on_bytes("waiting", -1)
    assert shown == ["fetching (1 by another process)", "fetching"]


@pytest.mark.parametrize("where", [f"GET /store/{REPO}/{DIGEST}", f"GET /{REPO}/resolve"])
def test_a_hub_that_asks_for_long_is_not_waited_for(hub: Hub, access: HubAccess, where: str) -> None:
    hub.troubles.append(Trouble(where=where, status=429, headers={"Retry-After": "3600"}))
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=r"HTTP 429.*in 3600 seconds"):
        fetch(REPO, access=access)
    assert time.monotonic() - start < 20


def test_nothing_is_asked_that_the_client_would_sleep_after(hub: Hub, access: HubAccess) -> None:
    """It asks for a file's headers before it makes a link, and then sleeps as long as an overloaded hub says."""
    hub.troubles.append(Trouble(where="HEAD /", status=429, headers={"Retry-After": "0"}))
    assert files_in(fetch(REPO, access=access)) == pipeline_files()
    assert {request.method for request in hub.requests} == {"GET"}


def test_a_wait_is_told(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits = []
    monkeypatch.setattr("kandinsky5.hub.blob.pause", lambda seconds, go_on: waits.append(seconds))
    busy = {"where": f"GET /store/{REPO}/{DIGEST}", "status": 429, "times": 1}
    hub.troubles += [Trouble(**busy, headers={"Retry-After": after}) for after in ("55", "2")]
    assert files_in(fetch(REPO, access=access)) == pipeline_files()
    told = [line for line in caplog.messages if "left alone" in line]
    assert waits == [55, 2] and len(told) == 1 and "for 55 seconds; waiting" in told[0]


def test_a_wait_ends_when_the_fetch_does() -> None:
    calls = []

    def go_on() -> None:
        calls.append(1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pause(3600, go_on)
    assert calls == [1]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "77"}, 77),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"RateLimit": '"api";r=0;t=55'}, 55),
        ({"RateLimit": '"api";r=3;t=55'}, None),
        ({"Retry-After": "soon"}, None),
        ({}, None),
    ],
)
def test_how_long_a_hub_asks_for(headers: Mapping[str, str], seconds: int | None) -> None:
    assert seconds_asked(headers) == seconds


def test_a_hub_may_name_the_time() -> None:
    in_two_days = datetime.now(UTC) + timedelta(days=2)
    assert seconds_asked({"Retry-After": format_datetime(in_two_days, usegmt=True)}) == pytest.approx(
        172_800, abs=300
    )


# -- Damage, repaired by several ------------------------------------------------------------------------------------


def damage(access: HubAccess) -> Path:
    fetch(REPO, access=access)
    blob = partial_of(access.cache_folder).with_name(DIGEST)
    blob.write_bytes(b"x" * len(CONTENT))
    return blob


def test_what_another_process_repaired_is_kept(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at a damaged file and its removal another process has put the right one there."""
    blob = damage(access)
    hub.requests.clear()
    look = Blob.is_right
    looked = []

    def repaired(self: Blob, path: Path, on_checked: Callable[[int], None]) -> bool:
        right = look(self, path, on_checked)
        if self.digest == DIGEST and not looked:
            looked.append(right)
            blob.write_bytes(CONTENT)
        return right

    monkeypatch.setattr(Blob, "is_right", repaired)
    assert files_in(fetch(REPO, access=access, check_all=True)) == pipeline_files()
    assert looked == [False] and hub.sent("GET", DIGEST) == 0


def test_several_repair_once(hub: Hub, access: HubAccess) -> None:
    damage(access)
    hub.requests.clear()
    found: list[Any] = []

    def repair() -> None:
        try:
            found.append(files_in(fetch(REPO, access=access, check_all=True)))
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=repair) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [pipeline_files()] * 3
    assert hub.sent("GET", DIGEST) == len(CONTENT) and leftovers(access) == []
