"""Fetching from a hub that behaves: what is chosen, what is transferred, and what is left in the cache."""

import errno
import hashlib
import io
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from huggingface_hub import hf_hub_download, scan_cache_dir
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from kandinsky5.errors import CapacityError, CheckpointError
from kandinsky5.hub import FetchedBytes, HubAccess, cached, fetch, missing_files, need, plan, unseen

from .conftest import REPO, UNWANTED, pipeline_files
from .server import Hub


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def leftovers(access: HubAccess) -> list[str]:
    """Blobs that are not what their names say, and links to nothing. Parts of files are not named as blobs."""
    blobs = [p for p in access.cache_folder.rglob("blobs/*") if p.is_file() and ".incomplete" not in p.name]
    bad = [p.name for p in blobs if p.name not in (sha256(p), git_sha1(p))]
    broken = [
        p.name for p in access.cache_folder.rglob("snapshots/**/*") if p.is_symlink() and not p.exists()
    ]
    return bad + broken


class Counted:
    """What a bar would have been told."""

    def __init__(self) -> None:
        self.bytes = {"fetched": 0, "checked": 0}
        self.announced = (0, 0)
        self.lock = threading.Lock()

    @contextmanager
    def watch(self, to_fetch: int, to_check: int) -> Iterator[FetchedBytes]:
        self.announced = (to_fetch, to_check)

        def on_bytes(what: str, count: int) -> None:
            with self.lock:
                self.bytes[what] += count

        yield on_bytes


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_sha1(path: Path) -> str:
    return hashlib.sha1(f"blob {path.stat().st_size}\0".encode() + path.read_bytes()).hexdigest()


def test_a_plan_names_what_is_needed_and_nothing_else(hub: Hub, access: HubAccess) -> None:
    wanted = plan(REPO, access=access)
    assert {file.path: file.size for file in wanted.files} == {n: len(c) for n, c in pipeline_files().items()}
    assert wanted.size == sum(map(len, pipeline_files().values()))
    assert wanted.commit == hub.repositories[REPO].refs["main"]
    assert hub.count("GET", "/resolve/") == 0


def test_another_precision_is_taken_where_it_is_there(hub: Hub, access: HubAccess) -> None:
    paths = {file.path for file in plan(REPO, need.pipeline(variant="fp16"), access=access).files}
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in paths
    assert "vae/diffusion_pytorch_model.safetensors" not in paths
    assert "text_encoder/model.safetensors" in paths


def test_a_repository_becomes_a_folder(hub: Hub, access: HubAccess) -> None:
    counted = Counted()
    folder = fetch(REPO, access=access, watch=counted.watch)
    assert files_in(folder) == pipeline_files()
    assert not set(files_in(folder)) & set(UNWANTED)
    size = sum(map(len, pipeline_files().values()))
    assert counted.bytes == {"fetched": size, "checked": size} and hub.sent() == size
    assert counted.announced == (size, size)
    assert leftovers(access) == [] and missing_files(folder) == []


@pytest.mark.parametrize("check_all", [False, True])
def test_a_second_fetch_transfers_nothing(hub: Hub, access: HubAccess, check_all: bool) -> None:
    first = fetch(REPO, access=access)
    before = hub.sent()
    hub.requests.clear()
    assert fetch(REPO, access=access, check_all=check_all) == first
    assert before > 0 and hub.sent() == 0 and len(hub.requests) == 1, "what the repository is"


def test_a_new_commit_fetches_only_what_changed(hub: Hub, access: HubAccess) -> None:
    old = fetch(REPO, access=access)
    changed = {**pipeline_files(), "vae/diffusion_pytorch_model.safetensors": b"another vae " * 1000}
    commit = hub.push(REPO, changed)
    hub.requests.clear()
    new = fetch(REPO, access=access)
    assert new.name == commit and new != old
    assert hub.sent() == 12_000
    assert files_in(new) == changed and files_in(old) == pipeline_files()


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, access: HubAccess) -> None:
    main = hub.repositories[REPO].refs["main"]
    other = hub.push(REPO, {**pipeline_files(), "scheduler/scheduler_config.json": b'{"shift": 5}'}, "v2")
    assert fetch(REPO, revision="v2", access=access).name == other
    assert fetch(REPO, revision=main, access=access).name == main
    assert fetch(REPO, revision=other, access=access).name == other
    assert fetch(REPO, access=access).name == main


def test_the_token_reaches_the_hub(hub: Hub, access: HubAccess) -> None:
    hub.repositories[REPO].token = "hf_secret"
    folder = fetch(REPO, access=HubAccess(**{**vars(access), "token": "hf_secret"}))
    assert files_in(folder) == pipeline_files()
    assert {r.token for r in hub.requests if not r.path.startswith("/store/")} == {"hf_secret"}
    assert {r.token for r in hub.requests if r.path.startswith("/store/")} == {None}, (
        "another host got the token"
    )


def test_offline_uses_a_whole_copy_and_refuses_half_a_one(hub: Hub, access: HubAccess) -> None:
    offline = HubAccess(**{**vars(access), "local_files_only": True})
    with pytest.raises(CheckpointError, match=f"{REPO} is not in the cache .*kandinsky5 pull {REPO}"):
        fetch(REPO, access=offline)
    folder = fetch(REPO, access=access)
    asked = len(hub.requests)
    assert fetch(REPO, access=offline) == folder and len(hub.requests) == asked
    with pytest.raises(CheckpointError, match="at revision 'v9' is not in the cache"):
        fetch(REPO, revision="v9", access=offline)
    (folder / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"not whole: it lacks transformer/\S+-00002-of-00002.safetensors"
    ):
        fetch(REPO, access=offline)


def test_damage_in_the_cache_is_found_and_mended(hub: Hub, access: HubAccess) -> None:
    folder = fetch(REPO, access=access)
    blob = (folder / "text_encoder" / "model.safetensors").resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    cut = (folder / "vae" / "diffusion_pytorch_model.safetensors").resolve()
    cut.write_bytes(cut.read_bytes()[:100])
    hub.requests.clear()
    assert fetch(REPO, access=access) == folder
    assert hub.sent() == len(pipeline_files()["vae/diffusion_pytorch_model.safetensors"])  # its length tells
    assert files_in(folder) != pipeline_files()
    fetch(REPO, access=access, check_all=True)
    assert files_in(folder) == pipeline_files() and leftovers(access) == []


def test_the_disk_is_checked_first(hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 500_000})())
    with pytest.raises(CapacityError, match=r"needs 0\.00 GB more in .*cache, where 0\.00 GB are free"):
        fetch(REPO, access=access)
    assert hub.sent() == 0 and not access.cache_folder.exists()


def test_what_is_there_needs_no_room(hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch(REPO, access=access)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 0})())
    assert fetch(REPO, access=access) == folder


def test_the_cache_is_listed(hub: Hub, access: HubAccess, tmp_path: Path) -> None:
    assert cached(tmp_path / "nothing") == []
    folder = fetch(REPO, access=access)
    hub.add("someone/else", {**pipeline_files(), "model_index.json": b'{"_class_name": "FluxPipeline"}'})
    fetch("someone/else", access=access)
    (entry,) = cached(access.cache_folder)
    assert (entry.repo_id, entry.commit, entry.refs) == (REPO, folder.name, ("main",))
    assert entry.size == sum(map(len, pipeline_files().values())) and entry.missing == ()
    (folder / "vae" / "config.json").unlink()
    assert cached(access.cache_folder)[0].missing == ("vae/config.json",)


class Terminal(io.StringIO):
    """A standard error that somebody watches."""

    def isatty(self) -> bool:
        return True


def test_bars_are_for_those_who_watch(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(REPO, access=access)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    fetch(REPO, access=access, force=True)
    shown = terminal.getvalue()
    assert "874.6/874.6 kB" in shown and "checking" in shown, shown
    for quiet in ({"watch": unseen, "force": True}, {}):  # nothing to fetch is nothing to show
        monkeypatch.setattr(sys, "stderr", terminal := Terminal())
        fetch(REPO, access=access, **quiet)
        assert terminal.getvalue() == ""
    disable_progress_bars()
    try:
        fetch(REPO, access=access, force=True)
    finally:
        enable_progress_bars()
    assert terminal.getvalue() == ""


def test_the_client_finds_what_was_fetched(hub: Hub, access: HubAccess) -> None:
    """By branch, tag and commit, with the hub and without it; and it lists nothing that it does not know."""
    hub.repositories[REPO].refs["pr/1"] = commit = hub.repositories[REPO].refs["main"]
    folder = fetch(REPO, access=access)
    assert fetch(REPO, revision="pr/1", access=access) == folder
    before, place = hub.sent(), folder / "transformer" / "config.json"
    where = {"cache_dir": access.cache_folder, "endpoint": hub.address}
    for revision, offline in ((commit, True), ("main", True), ("pr/1", True), ("main", False)):
        found = hf_hub_download(
            REPO, "transformer/config.json", revision=revision, local_files_only=offline, **where
        )
        assert Path(found) == place
    (repo,) = scan_cache_dir(access.cache_folder).repos
    assert {revision.refs for revision in repo.revisions} == {frozenset({"main", "pr/1"})}
    assert hub.sent() == before and place.readlink().parts[:2] == ("..", "..")
    assert (
        (access.cache_folder / "CACHEDIR.TAG")
        .read_text()
        .startswith("Signature: 8a477f597d28d172789f06886806bc55")
    )


def test_a_whole_cache_that_cannot_be_written_is_used(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch(REPO, access=access)
    hub.repositories[REPO].refs["v2"] = folder.name
    (access.cache_folder / "CACHEDIR.TAG").unlink()

    def write_text(path: Path, *arguments: object, **settings: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", write_text)
    assert fetch(REPO, revision="v2", access=access) == folder
    assert "will not know v2 without the hub" in caplog.text


def test_a_file_system_without_links_holds_each_file_once(
    hub: Hub, access: HubAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kandinsky5.hub.links.are_symlinks_supported", lambda *arguments: False)
    folder = fetch(REPO, access=access)
    assert files_in(folder) == pipeline_files()
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert not [path for path in access.cache_folder.rglob("blobs/*") if path.stat().st_size > 2000]
    hub.requests.clear()
    assert fetch(REPO, access=access) == folder and hub.sent() == 0
    same = {**pipeline_files(), "scheduler/scheduler_config.json": pipeline_files()["vae/config.json"]}
    hub.push(REPO, same)
    assert files_in(fetch(REPO, access=access)) == same, "two files with the same bytes"
