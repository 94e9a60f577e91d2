"""What is counted, and one line of log for each request: without names of files, queries and images."""

import json
import logging
import time
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gleansr.serving.limits import connection_of
from gleansr.serving.problems import KINDS

access = logging.getLogger("gleansr.access")

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """The service's figures, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        own = {"namespace": "gleansr", "registry": self.registry}
        self.requests = Counter("requests", "Requests by route and status", ("route", "status"), **own)
        self.in_flight = Gauge("in_flight", "Requests that were begun and are not done", **own)
        self.queue = Gauge("queue_length", "Images that wait for the device", **own)
        self.batches = Histogram("batch_size", "Images in a forward pass", ("model",), buckets=(1, 2, 4, 8, 16, 32, 64, 128), **own)
        self.seconds = Histogram(
            "seconds",
            "Seconds by stage: reading, preparing, waiting, forward (of a batch), finishing, whole",
            ("stage",),
            buckets=_SECONDS,
            **own,
        )
        self.outcomes = Counter("outcomes", "Requests by how they ended; the sum is that of all requests", ("outcome",), **own)
        self.connections = Gauge("connections", "Open connections", **own)
        self.dropped = Counter("connections_dropped", "Connections that the service ended, by why", ("reason",), **own)

    def text(self) -> bytes:
        """In Prometheus's text format."""
        return generate_latest(self.registry)


class Observed:
    """Counts, times and logs each request. The outermost layer, so that it sees what was answered in the end."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics
        self.begun = self.answered = 0
        """Requests, and those among them whose answer was handed over whole to a client that was still there."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, whole, started = 500, False, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status, whole
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            whole = whole or (message["type"] == "http.response.body" and not message.get("more_body", False))

        connection = connection_of(scope)
        self.begun += 1
        self.metrics.in_flight.inc()
        if connection:
            connection.begin()
        try:
            await self.app(scope, receive, watched)
            if connection:
                whole = await connection.taken() and whole
        finally:
            if connection:
                connection.end()
            seconds = time.perf_counter() - started
            route = route_of(scope)
            self.answered += whole and status != 499
            self.metrics.in_flight.dec()
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.outcomes.labels(outcome_of(status, whole)).inc()
            if scope["method"] == "POST":
                self.metrics.seconds.labels("whole").observe(seconds)
            self._log(scope, route, status, seconds)

    def _log(self, scope: Scope, route: str, status: int, seconds: float) -> None:
        client = scope.get("client")
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": client[0][:64] if client else None,  # a proxy says it, or who claims to be one
            "method": scope["method"][:16],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        access.info(json.dumps(line))


_OUTCOMES = {KINDS[name][0]: name for name in ("slow-upload", "superseded", "client-gone", "failed", "timeout")}


def outcome_of(status: int, whole: bool) -> str:
    """How a request ended, of the status of its answer and whether its client took all of it."""
    if status in _OUTCOMES:
        return _OUTCOMES[status]
    if not whole:
        return "client-gone"
    return "answered" if status < 400 else "refused"


def route_of(scope: Scope) -> str:
    """The route that a request took, not its path, of which there can be any number."""
    if "route" in scope:
        return scope["route"].path
    if scope["path"].startswith("/static/"):
        return "/static"
    return "/openapi.json" if scope["path"] == "/openapi.json" else "other"
