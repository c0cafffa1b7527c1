"""The embedded model through the command line, from a cold start, as on a fresh machine."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from kandinsky5.cli.app import run
from kandinsky5.cli.picturefile import read_provenance
from kandinsky5.loading import load_pipeline
from kandinsky5.variants import EMBEDDED, embedded_folder, resolve_model

PROMPT = "a red circle and a blue square"

MEBIBYTE = 2**20


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        assert run(["generate", PROMPT, "-o", name, "--seed", "3", "--steps", "4"]) == 0
    assert run(["generate", PROMPT, "-o", "c.png", "--seed", "4", "--steps", "4"]) == 0
    pixels = {}
    for name in ("a.png", "b.png", "c.png"):
        with Image.open(name) as image:
            pixels[name] = image.tobytes()
    assert pixels["a.png"] == pixels["b.png"] != pixels["c.png"]


def test_every_text_is_drawn_and_other_worlds_get_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for text in ("a cat", "кот 🐈", "x" * 3000):
        assert run(["generate", text, "-o", "a.png", "--steps", "1", "--overwrite"]) == 0
        assert "--model t2i-lite-sft" in capsys.readouterr().err
        assert read_provenance(Path("a.png")).request.prompt == text


def test_the_row_of_the_table_tells_the_truth() -> None:
    variant = resolve_model(EMBEDDED).variant
    assert variant is not None
    assert load_pipeline(EMBEDDED).default_size == variant.size
    sizes = [path.stat().st_size for path in embedded_folder().rglob("*") if path.is_file()]
    assert sum(sizes) <= 60_000_000
    assert max(sizes) < 16 * MEBIBYTE
    assert sum(sizes) == pytest.approx(variant.approximate_bytes, rel=0.1)


def test_info_knows_it_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", "--json"]) == 0
    models = {model["name"]: model for model in json.loads(capsys.readouterr().out)["models"]}
    assert models[EMBEDDED]["on_this_machine"] is True


@pytest.mark.slow
def test_a_built_package_holds_the_model(tmp_path: Path) -> None:
    """What `pip install .` copies: the weights, the tokenizers and the marker for type checkers."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(root)]
    subprocess.run(command, check=True, timeout=280)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.endswith("/")}
    here = {
        f"kandinsky5/demo/weights/{p.relative_to(embedded_folder())}"
        for p in embedded_folder().rglob("*")
        if p.is_file()
    }
    assert "kandinsky5/demo/weights/model_index.json" in here
    assert here | {"kandinsky5/py.typed"} <= packed
    assert not any(name.startswith(("tests", "docs")) for name in packed)
