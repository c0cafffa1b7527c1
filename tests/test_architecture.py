"""The arrows between modules are those of the table in `docs/architecture.md`, and no others."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "kandinsky5"
TABLE = ROOT / "docs" / "architecture.md"

STAGE_LEVEL = 2
LONGEST_FILE = 400
LONGEST_FUNCTION = 50


@dataclass(frozen=True)
class Row:
    level: int
    may_import: frozenset[str]


def read_table() -> dict[str, Row]:
    """The rows of the table of arrows: module -> its level and what it may import."""
    rows: dict[str, Row] = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"\| (\d) \| `(\w+)` \|(.*)\|", line.strip())
        if match:
            assert match[2] not in rows, f"{match[2]} has two rows"
            rows[match[2]] = Row(int(match[1]), frozenset(re.findall(r"`(\w+)`", match[3])))
    return rows


def unit_of(file: Path) -> str:
    """The module or package of the table that a file belongs to."""
    first = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    return "kandinsky5" if first == "__init__" else first


def units() -> set[str]:
    return {unit_of(file) for file in SOURCE.rglob("*.py")}


def imported_names(tree: ast.AST, package: str) -> set[str]:
    """Absolute dotted names a module imports anywhere, also inside functions and for type checkers."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = (
                resolve_name("." * node.level + (node.module or ""), package) if node.level else node.module
            )
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def arrows_of(file: Path, known: set[str]) -> set[str]:
    """The `known` units of our package that a file imports, its own left out."""
    package = ".".join(["kandinsky5", *file.relative_to(SOURCE).parts[:-1]])
    found: set[str] = set()
    for name in imported_names(ast.parse(file.read_text(encoding="utf-8")), package):
        head, _, rest = name.partition(".")
        if head == "kandinsky5":
            first = rest.partition(".")[0]
            found.add(first if first in known else "kandinsky5")
    return found - {unit_of(file)}


def all_arrows() -> dict[str, set[str]]:
    known = units()
    arrows: dict[str, set[str]] = {unit: set() for unit in known}
    for file in SOURCE.rglob("*.py"):
        arrows[unit_of(file)] |= arrows_of(file, known)
    return arrows


def test_every_module_has_a_row_and_every_row_a_module() -> None:
    assert set(read_table()) == units()


def test_every_arrow_is_in_the_table() -> None:
    table = read_table()
    strangers = {
        f"{unit} -> {to}" for unit, found in all_arrows().items() for to in found - table[unit].may_import
    }
    assert not strangers, "imports that docs/architecture.md does not allow"


def test_every_arrow_of_the_table_is_used() -> None:
    arrows = all_arrows()
    unused = {f"{unit} -> {to}" for unit, row in read_table().items() for to in row.may_import - arrows[unit]}
    assert not unused, "arrows in docs/architecture.md that no code uses"


def test_arrows_point_down_and_never_between_stages() -> None:
    table = read_table()
    for unit, row in table.items():
        for to in row.may_import:
            assert table[to].level <= row.level, f"{unit} -> {to} points upwards"
            assert not table[to].level == row.level == STAGE_LEVEL, f"{unit} -> {to} ties two stages together"


def test_an_arrow_that_is_not_in_the_table_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of imports misses none of the ways to write one."""
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    for name in ("errors", "flow", "records", "denoise", "engine"):
        (tmp_path / f"{name}.py").write_text("")
    (tmp_path / "cli").mkdir()
    file = tmp_path / "cli" / "app.py"
    file.write_text(
        "import kandinsky5.errors\n"
        "from kandinsky5 import flow\n"
        "from ..records import Conditioning\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from kandinsky5.denoise import Run\n"
        "def f():\n    from kandinsky5.engine import Engine\n"
        "from kandinsky5.cli import other\n"
    )
    assert arrows_of(file, units()) == {"errors", "flow", "records", "denoise", "engine"}


def test_values_import_only_the_standard_library_and_each_other() -> None:
    allowed = {*sys.stdlib_module_names, "kandinsky5", "ftfy"}
    values = [unit for unit, row in read_table().items() if row.level == 0]
    for unit in values:
        names = imported_names(ast.parse((SOURCE / f"{unit}.py").read_text(encoding="utf-8")), "kandinsky5")
        assert {name.partition(".")[0] for name in names} <= allowed, unit


@pytest.mark.parametrize(
    "statement",
    [
        "import kandinsky5",
        "from kandinsky5 import ImageRequest, RequestError",
        "import kandinsky5.variants, kandinsky5.prompts, kandinsky5.geometry, kandinsky5.request",
        "import kandinsky5.cli.app",
        "from kandinsky5.cli.app import run; "
        "assert not any(run([*c, '--help']) for c in ([], ['generate'], ['edit'], ['serve']))",
    ],
)
def test_no_tensor_library_is_loaded_before_it_is_needed(statement: str) -> None:
    heavy = "torch, numpy, transformers, diffusers, accelerate, huggingface_hub, PIL"
    check = f"import sys; bad = {{*'{heavy}'.split(', ')}} & {{*sys.modules}}; assert not bad, bad"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{check}"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_the_process_that_speaks_http_loads_no_model_library() -> None:
    """It reads uploads and sends pictures; torch would cost it a second and 180 MB, and the worker has its own."""
    heavy = "torch, transformers, diffusers, accelerate, huggingface_hub"
    served = "import kandinsky5.cli.serve, kandinsky5.server.running, kandinsky5.server.app"
    statement = (
        f"import sys; {served}\nbad = {{*'{heavy}'.split(', ')}} & {{*sys.modules}}; assert not bad, bad"
    )
    done = subprocess.run([sys.executable, "-c", statement], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def code_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines below the signature and the docstring."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_files_and_functions_stay_readable() -> None:
    for file in SOURCE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= LONGEST_FILE, f"{file} is too long to hold in mind"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert code_length(node) <= LONGEST_FUNCTION, f"{file}: {node.name} is too long"
