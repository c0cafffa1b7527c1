"""Saving over a folder that exists is all or nothing, whatever stops it and wherever."""

import os
from pathlib import Path

import pytest

from kandinsky5.errors import CheckpointError
from kandinsky5.pipelines import Kandinsky5T2IPipeline
from kandinsky5.pipelines.staging import staged

WEIGHTS = "diffusion_pytorch_model"
OLD = {
    "model_index.json": "old",
    "notes.txt": "mine",
    f"transformer/{WEIGHTS}-00001-of-00002.safetensors": "old one",
    f"transformer/{WEIGHTS}-00002-of-00002.safetensors": "old two",
    f"transformer/{WEIGHTS}.safetensors.index.json": "old index",
    f"transformer/{WEIGHTS}.fp16.safetensors": "another variant",
}
NEW = {
    "model_index.json": "new",
    f"transformer/{WEIGHTS}.safetensors": "new",
    "transformer/config.json": "new",
    "vae/config.json": "new",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def read(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_weights_are_replaced_and_other_files_stay(tmp_path):
    target = write(tmp_path / "target", OLD)
    with staged(target) as stage:
        write(stage, NEW)
    kept = ("notes.txt", f"transformer/{WEIGHTS}.fp16.safetensors")
    assert read(target) == NEW | {name: OLD[name] for name in kept}
    assert [p.name for p in target.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=str)
@pytest.mark.parametrize("after", range(8))
def test_a_move_that_stops_is_taken_back(tmp_path, monkeypatch, after, stop):
    target = write(tmp_path / "target", OLD)
    rename, count = Path.rename, 0

    def stopping(self: Path, to: Path) -> Path:
        nonlocal count
        count += 1
        if count == after + 1:
            raise stop
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", stopping)
    with (
        pytest.raises(CheckpointError if isinstance(stop, OSError) else stop),
        staged(target) as stage,
    ):
        write(stage, NEW)
    assert count > after
    assert read(target) == OLD
    assert sorted(p.name for p in target.iterdir()) == ["model_index.json", "notes.txt", "transformer"]


@pytest.mark.parametrize("where", ["vae", "vae/config.json/deeper"])
def test_a_place_that_is_taken_is_found_first(tmp_path, where):
    target = write(tmp_path / "target", {**OLD, where: "in the way"})
    before = read(target)
    with pytest.raises(CheckpointError, match=r"vae.* is a f"), staged(target) as stage:
        write(stage, NEW)
    assert read(target) == before
    assert not list(target.glob(".saving*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_found_first(tmp_path):
    target = write(tmp_path / "target", OLD)
    (target / "transformer").chmod(0o500)
    with pytest.raises(CheckpointError, match="transformer cannot be written"), staged(target) as stage:
        write(stage, NEW)
    (target / "transformer").chmod(0o700)
    assert read(target) == OLD


def test_a_pipeline_over_a_folder_with_a_file_in_the_way(saved_folder, tmp_path):
    target = write(tmp_path / "target", {"vae": "a file", "transformer/config.json": '{"mine": 1}'})
    with pytest.raises(CheckpointError, match="vae is a file"):
        Kandinsky5T2IPipeline.from_pretrained(saved_folder).save_pretrained(target)
    assert read(target) == {"vae": "a file", "transformer/config.json": '{"mine": 1}'}
