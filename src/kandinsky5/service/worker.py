"""The process that owns the pipeline: it takes commands from one pipe and draws what they ask for.

In: `Begin`, `Drop`, `Ping` and `Stop`. Out: reports. A request that fails takes nothing else with it; a device that no
longer answers ends the process, and the service starts another. Refuses to know: queues, deadlines, who asks.

One thread draws; another takes commands as they come and answers pings, so that a long step is no silence.
"""

import logging
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from queue import Queue
from typing import TYPE_CHECKING, Any, Final

from kandinsky5.errors import CapacityError, CheckpointError, RequestError
from kandinsky5.prompts import Task
from kandinsky5.request import ImageRequest
from kandinsky5.service.messages import (
    Begin,
    Card,
    Command,
    Drop,
    Dropped,
    Failed,
    FailureKind,
    Ping,
    Pong,
    Pulse,
    Ready,
    Stop,
)

if TYPE_CHECKING:
    from kandinsky5.engine import Engine
    from kandinsky5.service.stepwise import Stepwise

log = logging.getLogger(__name__)

OpenEngines = Callable[[], Mapping[Task, "Engine"]]
"""Loads a model and gives an engine for each task it is served for. It is called in the worker, so it is pickled."""

WARM_UP: Final = "warming up"


class Voice:
    """The worker's end of the pipe, for several threads to speak through: a message is sent whole."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Any) -> None:
        """Send one of `messages`. Raises OSError where the service is gone."""
        with self._lock:
            self._connection.send(message)


def work(connection: Connection, open_engines: OpenEngines, most: int, log_level: int) -> None:
    """Run until told to stop, or until the service is gone."""
    for told in (signal.SIGINT, signal.SIGTERM):
        signal.signal(told, signal.SIG_IGN)  # Ctrl-C and systemd tell the whole group; the service decides
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("kandinsky5").setLevel(log_level)
    voice = Voice(connection)
    try:
        engines = open_engines()
        from kandinsky5.service.stepwise import (
            Stepwise,  # what it imports speaks; the opener may have quietened it
        )

        stepwise = Stepwise(engines, most=most)
        _warm_up(stepwise)
    except Exception as error:
        voice.send(Failed(id="", kind=_kind(error), reason=str(error) or repr(error)))
        if _kind(error) == "internal":
            log.exception("the model cannot be loaded")
        return
    voice.send(Ready(card=_card(engines)))
    commands: Queue[Command] = Queue()
    threading.Thread(target=_listen, args=(connection, voice, commands), daemon=True).start()
    try:
        _serve(voice, commands, stepwise)
    except (BrokenPipeError, ConnectionResetError):
        return  # the service is gone


def _listen(connection: Connection, voice: Voice, commands: "Queue[Command]") -> None:
    """Take commands as they come, and answer pings: the service hears from a process that is in a long step."""
    try:
        while True:
            command = connection.recv()
            if isinstance(command, Ping):
                voice.send(Pong())
            else:
                commands.put(command)
    except (EOFError, OSError):
        commands.put(Stop())  # the service is gone


def _serve(voice: Voice, commands: "Queue[Command]", stepwise: "Stepwise") -> None:
    while True:
        while not stepwise.busy or not commands.empty():
            command = commands.get()
            if isinstance(command, Begin):
                report = stepwise.begin(command)
                if report is not None:
                    voice.send(report)
            elif isinstance(command, Drop):
                if stepwise.drop(command.id):
                    voice.send(Dropped(id=command.id))
            else:
                return
        failed = False
        for report in stepwise.step():
            voice.send(report)
            failed = failed or isinstance(report, Failed)
        voice.send(Pulse(pictures=stepwise.last_group, memory_bytes=_memory_bytes()))
        if failed:
            _check_device()


def _warm_up(stepwise: "Stepwise") -> None:
    """Draw one step of one picture, so that the first request does not wait for what is only done once."""
    stepwise.begin(Begin(id=WARM_UP, request=ImageRequest(prompt=WARM_UP, steps=1, seed=0)))
    while stepwise.busy:
        for report in stepwise.step():
            if isinstance(report, Failed):
                raise CapacityError(f"The model cannot draw at its own size: {report.reason}")


def _card(engines: Mapping[Task, "Engine"]) -> Card:
    pipeline = next(iter(engines.values())).pipeline
    return Card(
        model=next(iter(engines.values())).source,
        tasks=tuple(engines),
        size=pipeline.default_size,
        sizes=tuple(pipeline.resolutions),
        steps=pipeline.default_steps,
        guidance=pipeline.default_guidance,
        device=str(pipeline._execution_device),
        dtype=str(pipeline.transformer.dtype).removeprefix("torch."),
    )


def _kind(error: Exception) -> FailureKind:
    for kind, name in (
        (RequestError, "request"),
        (CheckpointError, "checkpoint"),
        (CapacityError, "capacity"),
    ):
        if isinstance(error, kind):
            return name  # type: ignore[return-value]
    return "internal"


def _check_device() -> None:
    """Raise where the device no longer answers; this process is of no use then."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory_bytes() -> int:
    """What the device holds for this process; without one of its own, the most that this process held."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.memory_reserved()
    try:
        import resource
    except ImportError:
        return 0  # not on Windows
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
