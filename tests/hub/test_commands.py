"""`kandinsky5 pull` and `kandinsky5 models` with the real client and the loopback hub."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import are_progress_bars_disabled

from kandinsky5.cli.app import run
from kandinsky5.errors import CapacityError
from kandinsky5.hub import HubAccess, fetch, need
from kandinsky5.variants import VARIANTS, embedded_folder

from .conftest import REPO, pipeline_files
from .server import Hub, Trouble
from .test_fetch import files_in

SIZE = sum(map(len, pipeline_files().values()))


def test_pull_prints_the_folder(hub: Hub, at: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", REPO, "--cache-dir", at]) == 0
    captured = capsys.readouterr()
    assert captured.err == "" and files_in(Path(captured.out.strip())) == pipeline_files()
    assert run(["pull", REPO, "--cache-dir", at, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "hub_id": REPO,
        "revision": hub.repositories[REPO].refs["main"],
        "folder": captured.out.strip(),
        "files": len(pipeline_files()),
        "bytes": SIZE,
        "fetched_bytes": 0,
    }


def test_pull_takes_a_token_from_a_file(
    hub: Hub, at: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repositories[REPO].token = "hf_secret"
    assert run(["pull", REPO, "--cache-dir", at]) == 3
    (tmp_path / "token").write_text("hf_secret\n")
    assert run(["pull", REPO, "--cache-dir", at, "--token-file", str(tmp_path / "token")]) == 0
    (tmp_path / "token").write_text("two words")
    assert run(["pull", REPO, "--cache-dir", at, "--token-file", str(tmp_path / "token")]) == 2
    assert run(["pull", REPO, "--cache-dir", at, "--token-file", str(tmp_path / "none")]) == 2
    captured = capsys.readouterr()
    assert "hf_secret" not in captured.err and "two words" not in captured.err


def test_pull_has_nothing_to_fetch_for_a_folder(at: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pull", "embedded"]) == 2
    assert str(embedded_folder()) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("trouble", "code", "words"),
    [
        (Trouble(where="/api/models", status=429, headers={"Retry-After": "9"}), 3, "in 9 seconds"),
        (Trouble(where="GET /store", other_bytes=True), 3, "arrived damaged"),
    ],
)
def test_pull_ends_with_one_line(
    hub: Hub, at: str, capsys: pytest.CaptureFixture[str], trouble: Trouble, code: int, words: str
) -> None:
    hub.troubles.append(trouble)
    assert run(["pull", REPO, "--cache-dir", at]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and words in captured.err


def test_pull_without_room_is_a_capacity_error(
    hub: Hub, at: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10})())
    assert run(["pull", REPO, "--cache-dir", at]) == 4
    assert "free some room" in capsys.readouterr().err


def test_models_lists_what_is_known_and_what_is_here(
    hub: Hub, at: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = VARIANTS[1].hub_id
    assert known is not None
    hub.add(known, pipeline_files())
    assert run(["pull", REPO, "--cache-dir", at]) == run(["pull", known, "--cache-dir", at]) == 0
    capsys.readouterr()
    assert run(["models", "--cache-dir", at, "--json"]) == 0
    rows = {row["hub_id"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == [variant.hub_id for variant in VARIANTS] + [REPO]
    assert (rows[None]["name"], rows[None]["state"]) == ("embedded", "here")
    assert (rows[known]["state"], rows[known]["size"], rows[known]["refs"]) == ("here", SIZE, ["main"])
    assert rows[known]["revision"] == hub.repositories[known].refs["main"]
    assert (rows[REPO]["task"], rows[REPO]["name"]) == ("text-to-image", None)
    absent = rows[VARIANTS[2].hub_id]
    assert (absent["state"], absent["size"], absent["approximate_bytes"]) == (
        "to fetch",
        None,
        29_000_000_000,
    )
    assert rows[known]["partial"] == 0
    (Path(rows[REPO]["folder"]) / "vae" / "config.json").unlink()
    assert run(["models", "--cache-dir", at]) == 0
    text = capsys.readouterr().out
    assert re.search(rf"incomplete +0\.9 MB +{rows[REPO]['revision'][:10]} \(main\) +{REPO}", text)
    assert "~29.0 GB" in text and VARIANTS[4].hub_id in text


def test_models_counts_what_was_begun(hub: Hub, at: str, capsys: pytest.CaptureFixture[str]) -> None:
    known = str(VARIANTS[3].hub_id)
    hub.add(known, pipeline_files())
    hub.troubles += [
        Trouble(where="GET /store", break_after=100_000, times=3),
        Trouble(where="GET /store", status=503),
    ]
    assert run(["pull", known, "--cache-dir", at]) == 3
    assert "fails now (HTTP 503" in capsys.readouterr().err
    assert run(["models", "--cache-dir", at, "--json"]) == 0
    row = {row["hub_id"]: row for row in json.loads(capsys.readouterr().out)}[known]
    begun = [p.stat().st_size for p in Path(at).rglob("*.incomplete")]
    assert row["state"] == "incomplete" and row["partial"] == sum(begun) > 50_000
    next(Path(at).rglob("blobs")).joinpath(f"{'0' * 64}.deadbeef.incomplete").write_bytes(
        b"the client's" * 99
    )
    assert run(["models", "--cache-dir", at]) == 0
    here = f"{(row['size'] + row['partial']) / 1e6:.1f} MB of ~29.0 GB"
    assert f"incomplete  {here}" in capsys.readouterr().out


def test_quiet_drawing_fetches_without_bars(tmp_path: Path) -> None:
    seen = []

    def opener(model: str, *rest: str) -> Any:
        seen.append((model, are_progress_bars_disabled()))
        raise CapacityError("opened")

    for quiet in ([], ["-q"]):
        run(["generate", "a", "--model", REPO, "-o", str(tmp_path / "a.png"), *quiet], opener)
    assert seen == [(REPO, False), (REPO, True)]


def test_pull_without_a_network_tells_what_is_here(
    hub: Hub, at: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["pull", REPO, "--cache-dir", at, "--json"]) == 0
    fetched = json.loads(capsys.readouterr().out)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.requests.clear()
    assert run(["pull", REPO, "--cache-dir", at, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {**fetched, "fetched_bytes": 0}
    assert run(["pull", REPO, "--cache-dir", at]) == 0
    assert capsys.readouterr().out.strip() == fetched["folder"]
    next(Path(at).rglob("snapshots/*/vae/config.json")).unlink()
    assert run(["pull", REPO, "--cache-dir", at]) == 3
    line = capsys.readouterr().err
    assert "lacks vae/config.json, and the hub must not be asked" in line
    assert run(["pull", "someone/else", "--cache-dir", at]) == 3
    assert "someone/else is not in the cache" in capsys.readouterr().err and hub.requests == []


def test_a_snapshot_of_one_variant_is_here(
    hub: Hub, at: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pipeline_files()
    for folder, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model")):
        files[f"{folder}/{stem}.fp16.safetensors"] = files.pop(f"{folder}/{stem}.safetensors")
    hub.add("someone/half", files)
    fetch("someone/half", need.pipeline(variant="fp16"), access=HubAccess(cache_dir=Path(at)))
    assert run(["models", "--cache-dir", at, "--json"]) == 0
    (row,) = (r for r in json.loads(capsys.readouterr().out) if r["hub_id"] == "someone/half")
    assert (row["state"], row["missing"]) == ("here", [])
    next(Path(at).rglob("vae/*.fp16.safetensors")).unlink()
    assert run(["models", "--cache-dir", at, "--json"]) == 0
    (row,) = (r for r in json.loads(capsys.readouterr().out) if r["hub_id"] == "someone/half")
    assert row["state"] == "incomplete"


DEEP = "[" * 100_000


@pytest.mark.parametrize("command", ["models", "info"])
@pytest.mark.parametrize(
    "damage", ["deep index", "deep weights", "a file", "under a file", "a folder is a file"]
)
def test_a_bad_cache_is_no_crash(
    hub: Hub,
    at: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    damage: str,
) -> None:
    cache = Path(at)
    if damage == "a file":
        cache.write_text("")
    elif damage == "under a file":
        cache.write_text("")
        cache = cache / "cache"
    else:
        folder = fetch(REPO, access=HubAccess(cache_dir=cache))
        index = {"deep index": "model_index.json", "deep weights": "transformer/*.index.json"}.get(damage)
        for file in folder.glob(index) if index else ():
            file.unlink()
            file.write_text(DEEP)
        if index is None:
            shutil.rmtree(folder / "vae")
            (folder / "vae").write_text("")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    assert run([command, "--json"]) == 0
    assert "embedded" in capsys.readouterr().out
