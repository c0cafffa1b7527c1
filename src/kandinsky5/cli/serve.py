"""`kandinsky5 serve`: a model behind OpenAI's image API.

In: the options. Out: a running server, until it is told to stop. Refuses to know: HTTP, pictures, how requests are
carried out.
"""

import logging
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from typer import Option

from kandinsky5.budget import Budget
from kandinsky5.cli import options
from kandinsky5.cli.adapters import check_loras, offered_loras
from kandinsky5.cli.extras import require_extra
from kandinsky5.cli.imports import collecting_later
from kandinsky5.cli.opening import open_engines
from kandinsky5.server.keys import KEYS_VARIABLE, read_keys
from kandinsky5.server.logs import Lines, LogFormat
from kandinsky5.server.settings import Settings
from kandinsky5.variants import EMBEDDED, resolve_model

if TYPE_CHECKING:
    from kandinsky5.engine import Engine
    from kandinsky5.prompts import Task

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""What --host may be for a server that only this machine reaches."""

LOOPBACK_NAMES: Final = frozenset({"127.0.0.1", "localhost", "[::1]"})
"""What such a server is called in a Host header. One with keys may be called anything: a page that reaches it under a
name of its own has none, and a proxy on this machine has its own name."""

EXTRA_MODULES: Final = frozenset(
    {"starlette", "uvicorn", "python_multipart", "prometheus_client", "pydantic", "anyio"}
)
"""What the extra brings."""


Host = Annotated[str, Option(help="Address to listen on; 0.0.0.0 is every one of this machine.")]
Port = Annotated[int, Option(min=0, max=65535, help="0 takes a free one.")]
ApiKeys = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="API keys, one a line, each after a name if it has one. Also $KANDINSKY5_API_KEYS.",
    ),
]
Loras = Annotated[
    list[str] | None,
    Option(
        "--lora",
        metavar="FILE",
        help="Adapter that requests may name, by its file's name: a safetensors file, a folder or a hub id; may be "
        "repeated.",
    ),
]
MaxBatch = Annotated[int, Option(min=1, max=64, help="Pictures in one forward pass.")]
MaxQueue = Annotated[int, Option(min=1, max=100_000, help="Requests that may wait.")]
MaxQueuePerKey = Annotated[
    int | None,
    Option(min=1, help="Of them, those of one API key. Default: half where there are several keys."),
]
MaxPixels = Annotated[int, Option(min=256, help="Pixels of one picture.")]
MaxSteps = Annotated[int, Option(min=1, max=1000, help="Steps of one request.")]
MaxN = Annotated[int, Option(min=1, max=10, help="Pictures of one request.")]
MaxBodyMb = Annotated[float, Option(min=0.01, help="Megabytes of a request, files included.")]
Timeout = Annotated[float, Option(min=1, help="Seconds from acceptance to the last picture.")]
Keep = Annotated[float, Option(min=1, help="Seconds that a picture behind a url, or an ended job, is kept.")]
Grace = Annotated[float, Option(min=0, help="Seconds that accepted requests have to end at shutdown.")]
LogOption = Annotated[LogFormat, Option("--log-format", help="Of the log on standard error.")]


def serve(
    context: typer.Context,
    model: options.Model = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    device: options.Device = "auto",
    dtype: options.Dtype = options.Precision.auto,
    mode: options.Mode = options.ModeName.auto,
    memory: options.Memory = None,
    lora: Loras = None,
    api_keys: ApiKeys = None,
    max_batch: MaxBatch = 4,
    max_queue: MaxQueue = 64,
    max_queue_per_key: MaxQueuePerKey = None,
    max_pixels: MaxPixels = 2048 * 2048,
    max_steps: MaxSteps = 200,
    max_n: MaxN = 10,
    max_body_mb: MaxBodyMb = 50,
    timeout: Timeout = 600,
    keep: Keep = 3600,
    grace: Grace = 30,
    log_format: LogOption = LogFormat.json,
) -> None:
    """Serve a model with OpenAI's image API.

    Prints its address once it listens; /ready answers 200 once the model is loaded. Ctrl-C ends it.
    """
    source = resolve_model(model or EMBEDDED)
    require_extra("serve", "serve", EXTRA_MODULES)
    with collecting_later():
        from kandinsky5.server.running import serve as run
        from kandinsky5.service import Limits

    loras = offered_loras("serve", lora)
    check_loras(loras, mode)
    keys = read_keys(api_keys, os.environ.get(KEYS_VARIABLE))
    _log_to_standard_error(log_format)
    if host not in LOOPBACK and not keys:
        logging.getLogger("kandinsky5.server").warning(
            "anyone who reaches %s may draw here: there are no keys", host
        )
    row = source.variant
    settings = Settings(
        model=row.name if row is not None else source.name,
        aliases=() if row is None else tuple(name for name in (*row.aliases, row.hub_id) if name),
        keys=keys,
        expands=source.name != EMBEDDED,
        loras=tuple(one.name for one in loras),
        max_pixels=max_pixels,
        max_steps=max_steps,
        max_count=max_n,
        max_body_bytes=round(max_body_mb * 1e6),
        keep=keep,
        grace=grace,
        hosts=LOOPBACK_NAMES if host in LOOPBACK and not keys else frozenset(),
    )
    several = max(1, max_queue // 2) if len(keys) > 1 else max_queue
    limits = Limits(
        waiting=max_queue,
        waiting_per_key=max_queue_per_key or several,
        drawing=max_batch,
        seconds=timeout,
    )
    budget = None if memory is None else Budget.of(memory, pictures=max_batch)
    how = {"budget": budget, "mode": mode, "loras": loras}
    opener = partial(_open_in_worker, log_format, model or EMBEDDED, device, dtype.value, **how)
    run(opener, settings, limits, host=host, port=port, say=typer.echo)


def _open_in_worker(
    log_format: LogFormat, model: str, device: str, dtype: str, **how: Any
) -> "dict[Task, Engine]":
    """`open_engines`, in the worker process, whose log looks like the server's."""
    _log_to_standard_error(log_format)
    return open_engines(model, device, dtype, **how)


def _log_to_standard_error(log_format: LogFormat) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(Lines(log_format))
    logging.getLogger().handlers[:] = [handler]
    logging.captureWarnings(True)  # Pillow's, about pictures that clients send
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # warns about every damaged form
    for name in ("kandinsky5.server", "kandinsky5.service"):
        logging.getLogger(name).setLevel(logging.INFO)
    if not logging.getLogger("kandinsky5").isEnabledFor(logging.DEBUG):
        logging.getLogger("kandinsky5.conditioning").setLevel(logging.ERROR)  # its warnings quote prompts
