"""The service over a real worker process and a tiny model: deadlines, keys, ends."""

import os
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest

from kandinsky5.errors import CapacityError
from kandinsky5.pictures import content_hash
from kandinsky5.request import EditRequest, ImageRequest
from kandinsky5.service import Begun, Failed, Finished, Limits, Report, Service, Stepped
from kandinsky5.service.messages import Drop, Ping, Pong
from kandinsky5.service.process import Ended, _read
from kandinsky5.service.watch import PATIENCE, PINGS, STILL_PATIENCE, LoadingWatch, Vitals, Watch, vitals_of
from kandinsky5.service.worker import Voice, _listen
from tests.pipelines.conftest import picture

from .conftest import wait_until
from .slow import open_slow, open_stuck, open_working

ENDLESS = ImageRequest(prompt="a", width=128, height=128, steps=1000)
QUICK = ImageRequest(prompt="a", width=64, height=64, steps=1)


class Heard:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.ended = threading.Event()

    def __call__(self, report: Report) -> None:
        self.reports.append(report)
        if isinstance(report, Finished | Failed):
            self.ended.set()

    @property
    def end(self) -> Report:
        assert self.ended.wait(60)
        time.sleep(0.05)
        ends = [report for report in self.reports if isinstance(report, Finished | Failed)]
        assert len(ends) == 1 and self.reports[-1] is ends[0], "one end, and nothing after it"
        return ends[0]


@pytest.fixture(scope="module")
def step_seconds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that makes the service's steps slow while it is there."""
    return tmp_path_factory.mktemp("slow") / "seconds"


@pytest.fixture(scope="module")
def service(saved_editing_folder: str, step_seconds: Path) -> Iterator[Service]:
    os.environ["OMP_NUM_THREADS"] = "1"
    opener = partial(open_slow, saved_editing_folder, step_seconds)
    service = Service(
        opener, Limits(drawing=1, waiting=50, waiting_per_key=50, source_bytes=300_000, seconds=60)
    )
    service.start()
    wait_until(lambda: service.ready, 120)
    yield service
    service.close()
    assert service.worker_pid is None


def ask(service: Service, request: ImageRequest, **settings) -> tuple[Heard, object]:
    heard = Heard()
    return heard, service.submit(request, listener=heard, **settings)


def test_reports_come_in_order_and_end_once(service: Service) -> None:
    heard, _ = ask(service, ImageRequest(prompt="a", width=64, height=64, steps=3))
    assert isinstance(heard.end, Finished)
    assert [type(report) for report in heard.reports] == [Begun, Stepped, Stepped, Stepped, Finished]
    assert set(heard.end.seconds) == {"encode", "denoise", "decode"}


def test_a_deadline_ends_what_is_drawn_and_what_waits(service: Service) -> None:
    drawn, _ = ask(service, ENDLESS, seconds=0.6)
    wait_until(lambda: service.drawing == 1)
    waiting, _ = ask(service, ENDLESS, seconds=0.3)
    after, _ = ask(service, QUICK)
    assert isinstance(drawn.end, Failed) and isinstance(waiting.end, Failed)
    assert (drawn.end.kind, waiting.end.kind) == ("deadline", "deadline")
    assert "still being drawn" in drawn.end.reason and "still waiting" in waiting.end.reason
    assert isinstance(after.end, Finished)


def test_cancelling_frees_the_place_within_a_step(service: Service) -> None:
    heard, ticket = ask(service, ENDLESS)
    wait_until(lambda: any(isinstance(report, Stepped) for report in heard.reports))
    started = time.monotonic()
    assert service.cancel(ticket) and not service.cancel(ticket)
    assert isinstance(heard.end, Failed) and heard.end.kind == "cancelled"
    wait_until(lambda: service.drawing == 0, 5)
    assert time.monotonic() - started < 2, "a step takes milliseconds"


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_leaves_the_end_to_the_service(service: Service, sent: int) -> None:
    """A terminal's Ctrl-C reaches the worker too, and systemd tells every process of a unit to end."""
    heard, _ = ask(service, ImageRequest(prompt="a", width=64, height=64, steps=100))
    wait_until(lambda: any(isinstance(report, Stepped) for report in heard.reports))
    assert service.worker_pid is not None
    os.kill(service.worker_pid, sent)
    assert isinstance(heard.end, Finished)


def test_keys_are_served_in_turn(service: Service) -> None:
    """While one request is drawn, a key with many waits beside a key with few."""
    block, ticket = ask(service, ENDLESS)
    wait_until(lambda: service.drawing == 1)
    order: list[str] = []

    def told(name: str):
        return lambda report: order.append(name) if isinstance(report, Finished) else None

    for number in range(4):
        service.submit(QUICK, listener=told(f"many{number}"), key="many")
    for number in range(2):
        service.submit(QUICK, listener=told(f"few{number}"), key="few", priority=number)
    service.cancel(ticket)
    assert isinstance(block.end, Failed)
    wait_until(lambda: len(order) == 6)
    assert order == ["many0", "few1", "many1", "few0", "many2", "many3"]


def test_sources_that_wait_are_bounded_by_their_memory(service: Service) -> None:
    """Two of 256 x 256 pass the bound of 300,000 bytes; a request without one still finds a place."""
    block, ticket = ask(service, ENDLESS)
    source = picture(256, 256)
    edit = EditRequest(prompt="a", source=content_hash(source), steps=1)
    first, refused = Heard(), service.counts.refused
    service.submit(edit, source, listener=first)
    with pytest.raises(CapacityError, match="source pictures that wait"):
        service.submit(edit, source, listener=Heard())
    assert service.counts.refused == refused + 1
    after, _ = ask(service, QUICK)
    service.cancel(ticket)
    assert isinstance(block.end, Failed)
    assert isinstance(first.end, Finished) and isinstance(after.end, Finished)
    again = Heard()
    service.submit(edit, source, listener=again)
    assert isinstance(again.end, Finished), "what has ended holds nothing"


def test_what_the_model_refuses_fails_with_its_reason(service: Service) -> None:
    source = picture(128, 128)
    edit = EditRequest(prompt="a", source=content_hash(source), max_sequence_length=1)
    heard = Heard()
    service.submit(edit, source, listener=heard)
    assert isinstance(heard.end, Failed) and heard.end.kind == "request"
    assert "leaves no room" in heard.end.reason


# -- A worker that does not answer ------------------------------------------------------------------------------------

SHORT_PATIENCE = 2.0
"""Seconds; a healthy worker on a busy machine answers a ping sooner than that."""


@pytest.fixture
def impatient(service: Service, monkeypatch: pytest.MonkeyPatch) -> Service:
    """The service, which soon takes a silent worker to hang."""
    monkeypatch.setattr("kandinsky5.service.watch.PATIENCE", SHORT_PATIENCE)
    return service


@contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    """A process that does nothing at all, as one that is swapped out."""
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # it was ended, as it should be
            os.kill(pid, signal.SIGCONT)


def quickly(call: Callable[[], Any]) -> Any:
    """What the call returns, which must not wait for the worker."""
    found: Queue[Any] = Queue()
    threading.Thread(target=lambda: found.put(call()), daemon=True).start()
    try:
        return found.get(timeout=1)
    except Empty:
        raise AssertionError("it waits for a worker that does not read") from None


def test_a_worker_whose_step_takes_longer_than_a_request_may_is_replaced(
    service: Service, step_seconds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers pings; and nobody's request could be done in time by it."""
    pid, restarts = service.worker_pid, service.restarts
    step_seconds.write_text("100")
    try:
        with monkeypatch.context() as soon:
            soon.setattr("kandinsky5.service.service.PATIENCE", 0.5)
            soon.setattr(service, "limits", replace(service.limits, seconds=0.5))
            heard, _ = ask(service, ENDLESS)
            assert isinstance(heard.end, Failed) and heard.end.kind == "deadline"
            wait_until(lambda: service.worker_pid != pid)
    finally:
        step_seconds.unlink()
    after, _ = ask(service, QUICK)
    assert isinstance(after.end, Finished)
    assert service.restarts == restarts + 1


def test_a_worker_that_reads_nothing_stops_nobody_and_its_requests_are_answered(impatient: Service) -> None:
    """A source of 3 MB is more than a pipe holds, so that sending it waits for the worker."""
    pid, restarts = impatient.worker_pid, impatient.restarts
    source = picture(1024, 1024)
    edit = EditRequest(prompt="a", source=content_hash(source), width=64, height=64, steps=1)
    heard, dropped, after = Heard(), Heard(), Heard()
    with stopped(pid):
        quickly(lambda: impatient.submit(edit, source, listener=heard))
        wait_until(lambda: impatient.drawing == 1)
        ticket = quickly(lambda: impatient.submit(QUICK, listener=dropped))
        assert quickly(lambda: impatient.place(ticket)) == 0
        assert quickly(lambda: impatient.cancel(ticket))
        quickly(lambda: impatient.submit(QUICK, listener=after))
        assert isinstance(heard.end, Failed) and heard.end.kind == "worker"
        assert isinstance(dropped.end, Failed) and dropped.end.kind == "cancelled"
        assert isinstance(after.end, Finished)
    assert impatient.restarts == restarts + 1 and impatient.worker_pid != pid


def test_a_worker_in_a_step_that_takes_longer_is_left_alone(impatient: Service, step_seconds: Path) -> None:
    pid, restarts = impatient.worker_pid, impatient.restarts
    heard, ticket = ask(impatient, ENDLESS)
    wait_until(lambda: any(isinstance(report, Stepped) for report in heard.reports))
    step_seconds.write_text(str(2 * SHORT_PATIENCE))
    try:
        time.sleep(0.5)  # into a step of that length
        impatient.cancel(ticket)
        wait_until(lambda: impatient.drawing == 0)
    finally:
        step_seconds.unlink()
    after, _ = ask(impatient, QUICK)
    assert isinstance(after.end, Finished)
    assert (impatient.worker_pid, impatient.restarts) == (pid, restarts)


def test_a_message_that_never_comes_whole_keeps_only_its_reader_waiting() -> None:
    ours, theirs = Pipe()
    heard: Queue[Any] = Queue()
    threading.Thread(target=_read, args=(ours, heard.put), daemon=True).start()
    theirs.send(Pong())
    os.write(theirs.fileno(), struct.pack("!i", 1000) + b"half")
    assert isinstance(heard.get(timeout=5), Pong)
    with pytest.raises(Empty):
        heard.get(timeout=0.1)
    theirs.close()
    assert isinstance(heard.get(timeout=5), Ended)


def test_pings_are_answered_by_the_thread_that_listens() -> None:
    """Nobody takes the commands out: the thread that draws is in a long step."""
    ours, theirs = Pipe()
    commands: Queue[Any] = Queue()
    threading.Thread(target=_listen, args=(theirs, Voice(theirs), commands), daemon=True).start()
    ours.send(Drop(id="a"))
    ours.send(Ping())
    assert ours.poll(5) and isinstance(ours.recv(), Pong)
    assert commands.get(timeout=5) == Drop(id="a")
    ours.close()


def test_silence_is_counted_in_pings_of_a_worker_with_work() -> None:
    watch = Watch()
    for number in range(PINGS):
        assert not watch.silent
        watch.pinged(now=100.0 * number)
    assert watch.silent and watch.due == 100.0 * (PINGS - 1) + PATIENCE / PINGS
    watch.heard()
    assert not watch.silent
    watch.pinged(now=10_000.0)  # the service itself was stopped for hours: one ping, and it may be answered
    assert not watch.silent
    watch.rest()
    assert watch.due == 0.0


# -- A worker that hangs while it loads -------------------------------------------------------------------------------

watched_from_outside = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of processes")


def loading(opener: Callable[[], Any]) -> tuple[Service, Queue[Failed]]:
    """A started service, and what it ends with when its model cannot be loaded."""
    fatal: Queue[Failed] = Queue()
    service = Service(opener, Limits(), on_fatal=fatal.put)
    service.start()
    return service, fatal


@watched_from_outside
@pytest.mark.parametrize(
    ("how", "words"), [("stopped", "it was stopped for"), ("waiting", "it did nothing for")]
)
def test_a_worker_that_hangs_while_it_loads_is_replaced_with_a_word(
    how: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kandinsky5.service.watch.PATIENCE", 0.4)
    monkeypatch.setattr("kandinsky5.service.watch.STILL_PATIENCE", 2)
    once = tmp_path / "once"
    once.touch()
    service, fatal = loading(partial(open_stuck, how, once))
    try:
        assert fatal.get(timeout=20).reason == "asked again"
    finally:
        service.close(seconds=0.5)
    assert service.restarts == 1 and not service.ready
    assert f"signal 9: {words}" in service.loading and service.loading.endswith("being loaded again.")
    assert "ending worker" in caplog.text and words in caplog.text


@watched_from_outside
def test_a_worker_that_loads_slowly_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """For three times as long as one that hangs would be."""
    monkeypatch.setattr("kandinsky5.service.watch.PATIENCE", 0.4)
    monkeypatch.setattr("kandinsky5.service.watch.STILL_PATIENCE", 2)
    service, fatal = loading(partial(open_working, 2.5))
    try:
        assert fatal.get(timeout=20).reason == "left alone"
    finally:
        service.close(seconds=0.5)
    assert service.restarts == 0


def test_a_look_finds_a_worker_that_loads_dead_only_after_many_without_a_sign_of_life() -> None:
    watch = LoadingWatch()
    still, stopped = (Vitals(stopped=it, done=(1, 2)) for it in (False, True))
    for number in range(PINGS):
        assert watch.look(stopped, now=0.0) is None, number
    assert watch.look(still, now=0.0) is None, "it goes on"
    looks = [watch.look(Vitals(stopped=False, done=(1, 3 + n // 2)), now=0.0) for n in range(100)]
    assert looks == [None] * 100, "now and then it does something"
    assert watch.look(None, now=5.0) is None, "a system that does not tell"
    assert watch.due == 5.0 + PATIENCE / PINGS
    found = [watch.look(still, now=0.0) for _ in range(PINGS * STILL_PATIENCE + 1)]
    assert found[:-1] == [None] * (PINGS * STILL_PATIENCE)
    assert found[-1] == "it did nothing for 600 s while it loaded the model"
    watch.rest()
    assert watch.due == 0.0 and [watch.look(stopped, now=0.0) for _ in range(PINGS)] == [None] * PINGS
    assert watch.look(stopped, now=0.0) == "it was stopped for 120 s while it loaded the model"


@watched_from_outside
def test_what_a_system_says_of_a_process() -> None:
    before = vitals_of(os.getpid())
    sum(range(2_000_000))
    after = vitals_of(os.getpid())
    assert before is not None and after is not None
    assert not after.stopped and before.done != after.done and len(after.done) == 8
    assert vitals_of(2**30) is None


FORGETFUL = """
import time
from functools import partial
from kandinsky5.service import Limits, Service
from tests.server.slow import open_working

service = Service(partial(open_working, 300), Limits())
service.start()
time.sleep(3)
print(service.worker_pid)
"""


def test_a_process_that_ends_without_closing_leaves_no_worker_and_waits_for_none() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL], capture_output=True, text=True, timeout=60, check=True
    )
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_closing_answers_for_everything_it_has_accepted() -> None:
    """Before the model is loaded: what waits is told, nothing more is taken, and no process is left or waited for."""
    service = Service(partial(open_working, 60), Limits())
    service.start()
    wait_until(lambda: service.worker_pid is not None)
    pid = service.worker_pid
    heard, _ = ask(service, QUICK)
    started = time.monotonic()
    service.close()
    assert time.monotonic() - started < 8, "one that loads does not hear that it is to end"
    assert isinstance(heard.end, Failed) and heard.end.kind == "closing"
    with pytest.raises(CapacityError, match="shutting down"):
        ask(service, QUICK)
    with pytest.raises(ProcessLookupError):
        os.kill(pid or 0, 0)
