"""A file's tests of Triton kernels on the CPU, in a process of their own: Triton interprets all of one or nothing."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether this is such a process."""

ON_CUDA = torch.cuda.is_available()

in_the_interpreter = pytest.mark.skipif(
    INTERPRETED or ON_CUDA, reason="this is the process below, or Triton itself is tested"
)


def interpret(file: str, passed: str) -> None:
    """Run a file's tests whose names say interpreter; so many must pass, a regular expression."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file]
    done = subprocess.run(
        [*command, "-k", "interpreter and not in_the"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(rf"^{passed} passed, \d+ deselected", done.stdout, re.MULTILINE), done.stdout[-500:]
