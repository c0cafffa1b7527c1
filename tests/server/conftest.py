"""Real servers: `kandinsky5 serve` in a process of its own, over the embedded model and over a tiny editing model."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from kandinsky5.lora import LoraFormat, write_lora
from tests.lora.conftest import make_lora
from tests.pipelines.conftest import (
    components,
    editing,
    editing_components,
    editing_network,
    generator,
    pipeline,
    saved_editing_folder,
    saved_folder,
)

__all__ = [
    "components",
    "editing",
    "editing_components",
    "editing_network",
    "generator",
    "pipeline",
    "saved_editing_folder",
    "saved_folder",
]

START_SECONDS = 300


@dataclass
class RunningServer:
    """A started server. `lines` is what it has written to standard error."""

    process: subprocess.Popen[str]
    address: str
    lines: list[str] = field(default_factory=list)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Events of that name in its log."""
        told = [json.loads(line) for line in list(self.lines) if line.startswith("{")]
        return [line for line in told if line["event"] == name]

    @property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0, timeout=60)

    def client(self, **kwargs: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.address, timeout=60, **kwargs)

    def metric(self, name: str) -> float:
        """The value of a metric without labels, or of one given with its labels."""
        with self.client() as client:
            text = client.get("/metrics").text
        found = re.search(rf"^kandinsky5_{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_ready(self) -> None:
        wait_until(lambda: self._ready() or self.process.poll() is not None, START_SECONDS)
        assert self.process.poll() is None, "\n".join(self.lines)

    def _ready(self) -> bool:
        with self.client() as client:
            return client.get("/ready").status_code == 200

    def end(self) -> int:
        """Ask it to end, as a service manager does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"still not so after {seconds} s"
        time.sleep(0.02)


def start(*arguments: str, **environment: str) -> RunningServer:
    """A server that listens on a free port; it may still be loading its model."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kandinsky5", "serve", "--port", "0", "--precision", "fp32", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    lines: list[str] = []
    threading.Thread(target=lambda: lines.extend(process.stderr or ()), daemon=True).start()
    address = process.stdout.readline().strip()
    if not address:
        process.wait(30)
        time.sleep(0.1)
    return RunningServer(process, address, lines)


LORA = "style.safetensors"
"""The adapter that requests to the tiny model may name."""


@pytest.fixture(scope="session")
def style(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of an adapter for the tiny models."""
    path = tmp_path_factory.mktemp("adapters") / LORA
    write_lora(make_lora(), path, LoraFormat.diffusers)
    return path


@pytest.fixture(scope="session")
def started(saved_editing_folder: str, style: Path) -> Iterator[tuple[RunningServer, RunningServer]]:
    """Both servers, which load side by side."""
    tiny = ("--model", saved_editing_folder, "--lora", str(style), "--max-queue", "6", "--max-body-mb", "2")
    servers = start(), start(*tiny)
    yield servers
    for server in servers:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def embedded(started: tuple[RunningServer, RunningServer]) -> RunningServer:
    """Serves the embedded model."""
    started[0].wait_ready()
    return started[0]


@pytest.fixture(scope="session")
def served(started: tuple[RunningServer, RunningServer]) -> RunningServer:
    """Serves a tiny editing model with random weights: pictures of 128 x 128 unless asked otherwise, 3 steps."""
    started[1].wait_ready()
    return started[1]


@pytest.fixture(scope="session")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source of 128 x 128."""
    from tests.pipelines.conftest import picture

    path = tmp_path_factory.mktemp("pictures") / "source.png"
    picture(128, 128, seed=3).save(path)
    return path
