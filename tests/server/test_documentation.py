"""docs/serving.md does what it says: its snippets run against a real server, its tables are those of the code."""

import re
from pathlib import Path

import pytest
import typer
from PIL import Image

from kandinsky5.cli.app import app
from kandinsky5.server.bodies import EditForm
from kandinsky5.server.problems import FAILURES

from .conftest import RunningServer

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_snippets_run(
    embedded: RunningServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As they stand, but for the address and, where they name none, the number of steps."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    assert len(SNIPPETS) == 3
    for snippet in SNIPPETS:
        here = snippet.replace("http://127.0.0.1:8000", embedded.address)
        few = (
            here
            if "extra_body" in here
            else here.replace(', size="256x256"', ', size="64x64", quality="low"')
        )
        exec(few, names)
    with Image.open("picture.png") as image:
        assert image.size == (64, 64)
    told = capsys.readouterr().out
    assert "'seed': 7, 'steps': 8" in told
    assert told.count("image_generation.partial_image") == 2 and "image_generation.completed" in told


def test_every_field_code_path_and_option_is_named() -> None:
    for field in EditForm.model_fields:
        assert f"`{field}`" in PAGE, field
    for status, code, _ in FAILURES.values():
        if code not in ("invalid_value", "checkpoint"):
            assert re.search(rf"^\| [^|]*{status}[^|]*\|[^|]*`{code}`", PAGE, re.MULTILINE), code
    options = [option for parameter in _serve().params for option in parameter.opts]
    for option in re.findall(r"`(--[a-z-]+)", PAGE):
        assert option in options, option
    assert "pip install '.[serve]'" in PAGE


def test_every_path_is_there(embedded: RunningServer) -> None:
    with embedded.client() as client:
        for path in client.get("/openapi.json").json()["paths"]:
            assert f"{path}`" in PAGE or path == "/v1/images/files/{name}", path


def _serve() -> typer.core.TyperCommand:
    return typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
