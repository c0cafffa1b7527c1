"""`benchmarks/memory.py` runs through on a small model: a process for each row, and one JSON line at the end."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "memory.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags", [["--only", "resident", "8 GB", "resident, editing", "8 GB, editing"], ["--cpu"]]
)
def test_every_row_has_its_figures(tmp_path, flags):
    command = [
        sys.executable,
        str(PROGRAM),
        "--tiny",
        "--device",
        "cpu",
        "--file",
        str(tmp_path / "rows.jsonl"),
    ]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    rows = list(told["rows"].values()) if "rows" in told else [told["row"]]
    assert rows and all("error" not in row and row["seconds"] > 0 for row in rows), rows
    assert all(row["drawing"]["host_anonymous_gb"] > 0 for row in rows)
    streamed = [row for row in rows if row["forced"]]
    assert all(row["moved_bytes"] > 0 and row["plan"]["resident_blocks"] == 0 for row in streamed)
