"""A server to be measured: `kandinsky5 serve` in a process of its own.

In: its options. Out: its address, its counters, its memory, and a way to kill its worker. Refuses to know: requests.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Self

import httpx2
import psutil

PATIENCE = 900.0
"""Seconds that a model may take to be loaded and to draw once."""


class Server:
    """Started when it is entered, ready when `wait_ready` returns, ended when it is left."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the server
        self.address = ""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "kandinsky5", "serve", "--port", "0", "--log-format", "text"]
        self._process = subprocess.Popen(
            [*command, *self._options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        if not self.address:
            raise RuntimeError(self.log[-2000:])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.wait()
            self._log.close()

    @property
    def log(self) -> str:
        """What it has written to standard error."""
        self._log.seek(0)
        return self._log.read()

    def client(self, timeout: float = PATIENCE) -> httpx2.Client:
        """A client with connections of its own."""
        return httpx2.Client(base_url=self.address, timeout=timeout)

    def wait_ready(self) -> float:
        """Wait until it would draw; seconds that took. Raises RuntimeError if it ends instead."""
        started = time.monotonic()
        with self.client(5) as client:
            while client.get("/ready").status_code != 200:
                if self._process.poll() is not None or time.monotonic() - started > PATIENCE:
                    raise RuntimeError(f"the server is not ready: {self.log[-2000:]}")
                time.sleep(0.02)
        return time.monotonic() - started

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with self.client(30) as client:
            text = client.get("/metrics").text
        found = re.findall(rf"^kandinsky5_{re.escape(name)}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)
        return sum(map(float, found))

    def stage_seconds(self) -> dict[str, float]:
        """Seconds of all requests so far, by stage."""
        with self.client(30) as client:
            text = client.get("/metrics").text
        pattern = r'^kandinsky5_stage_seconds_sum\{stage="(\w+)"\} (\S+)$'
        return {stage: float(seconds) for stage, seconds in re.findall(pattern, text, re.MULTILINE)}

    def wait_idle(self, seconds: float = 60) -> None:
        """Wait until nothing waits and nothing is drawn. Raises TimeoutError."""
        until = time.monotonic() + seconds
        while self.metric("waiting_requests") + self.metric("drawing_requests"):
            if time.monotonic() > until:
                raise TimeoutError(f"requests are left after {seconds} s of nobody waiting for them")
            time.sleep(0.05)

    def memory(self) -> dict[str, float]:
        """Resident megabytes of both processes, and open files of the one that speaks HTTP."""
        process = psutil.Process(self._process.pid)
        return {
            "server_mb": round(process.memory_info().rss / 1e6, 1),
            "worker_mb": round(self._worker().memory_info().rss / 1e6, 1),
            "server_files": process.num_fds(),
        }

    def kill_worker(self) -> None:
        """As the system's out-of-memory killer would."""
        self._worker().kill()

    def _worker(self) -> psutil.Process:
        children = psutil.Process(self._process.pid).children()
        return next(child for child in children if "resource_tracker" not in " ".join(child.cmdline()))
