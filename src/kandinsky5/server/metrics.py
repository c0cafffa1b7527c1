"""What a Prometheus server reads at /metrics.

In: a service, and what handlers observe. Out: the text of the exposition format. Each app has a registry of its own.
Refuses to know: HTTP.
"""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from kandinsky5.service import Begun, Finished, Report, Service, Ticket

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
"""That are counted by their names; a request may name any method, and each would be a series of its own."""

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class _OfService(Collector):
    """Numbers that the service keeps itself, read when they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        service, counts = self._service, self._service.counts
        for name, words, value in (
            ("waiting_requests", "Requests in the line.", service.waiting),
            ("drawing_requests", "Requests that the worker has.", service.drawing),
            ("ready", "1 when a request would be drawn at once.", int(service.ready)),
            ("last_batch_pictures", "Pictures in the last forward pass.", counts.group),
            (
                "memory_bytes",
                "Device memory held by the worker; its peak resident size on a CPU.",
                counts.memory_bytes,
            ),
        ):
            yield GaugeMetricFamily(f"kandinsky5_{name}", words, value=value)
        for name, words, value in (
            ("accepted_requests", "Requests that found a place in the line.", counts.accepted),
            ("refused_requests", "Requests that found the line full.", counts.refused),
            ("pictures", "Pictures drawn.", counts.pictures),
            ("worker_restarts", "Worker processes started after the first.", service.restarts),
            ("cancelled_requests", "Requests ended by their asker.", counts.failures.get("cancelled", 0)),
        ):
            yield CounterMetricFamily(f"kandinsky5_{name}", words, value=value)
        failed = CounterMetricFamily(
            "kandinsky5_failed_requests", "Requests that failed, by kind.", labels=["kind"]
        )
        for kind, number in list(counts.failures.items()):
            if kind != "cancelled":
                failed.add_metric([kind], number)
        yield failed


class Metrics:
    """The registry and what handlers add to it."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_OfService(service))
        self._responses = Counter(
            "kandinsky5_http_responses", "Answers.", ["method", "route", "status"], registry=self.registry
        )
        self._wait = Histogram(
            "kandinsky5_wait_seconds",
            "From acceptance to the first step.",
            buckets=SECONDS,
            registry=self.registry,
        )
        self._stage = Histogram(
            "kandinsky5_stage_seconds",
            "Time of a request in a stage; passes shared with others count in full.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )

    def text(self) -> bytes:
        """The exposition."""
        return generate_latest(self.registry)

    def responded(self, method: str, route: str, status: int) -> None:
        """Count an answer; `route` is a pattern, never a path as it was sent."""
        self._responses.labels(method if method in METHODS else "other", route, str(status)).inc()

    def heard(self, ticket: Ticket, report: Report) -> None:
        """Observe what a report tells of times."""
        if isinstance(report, Begun) and ticket.begun is not None:
            self._wait.observe(ticket.begun - ticket.accepted)
        elif isinstance(report, Finished):
            for stage, seconds in report.seconds.items():
                self._stage.labels(stage).observe(seconds)
