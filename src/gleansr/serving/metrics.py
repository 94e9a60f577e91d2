"""Metrics, and one log line per request without file names, queries or images."""

import json
import logging
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, generate_latest
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gleansr.serving.middleware import connection_of
from gleansr.serving.problems import PROBLEMS

access = logging.getLogger("gleansr.access")

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """The service's metrics, in their own registry."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        own = {"namespace": "gleansr", "registry": self.registry}
        self.requests = Counter("requests", "Requests by route and status", ("route", "status"), **own)
        self.in_flight = Gauge("in_flight", "Requests in progress", **own)
        self.queue = Gauge("queue_length", "Images waiting for the device", **own)
        self.batches = Histogram("batch_size", "Images in a forward pass", ("model",), buckets=(1, 2, 4, 8, 16, 32, 64, 128), **own)
        self.seconds = Histogram(
            "seconds",
            "Seconds by stage: reading, decoding, preparing, waiting, forward (of a batch), finishing, whole",
            ("stage",),
            buckets=_SECONDS,
            **own,
        )
        self.outcomes = Counter("outcomes", "Requests by outcome; the sum is that of all requests", ("outcome",), **own)
        self.connections = Gauge("connections", "Open connections", **own)
        self.dropped = Counter("connections_dropped", "Connections closed by the service, by reason", ("reason",), **own)

    def text(self) -> bytes:
        """The metrics in Prometheus's text format."""
        return generate_latest(self.registry)


class RequestMetrics:
    """Counts, times and logs each request. The outermost middleware, which sees the final response."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Sequence[BaseRoute]):
        self.app, self.metrics, self.routes = app, metrics, routes
        self.total = self.answered = 0
        """Number of requests, and of those whose client received the complete response."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, complete, started = 500, False, time.perf_counter()

        async def watched_send(message: Message) -> None:
            nonlocal status, complete
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            complete = complete or (message["type"] == "http.response.body" and not message.get("more_body", False))

        connection = connection_of(scope)
        self.total += 1
        self.metrics.in_flight.inc()
        if connection:
            connection.begin()
        try:
            await self.app(scope, receive, watched_send)
            if connection:
                complete = await connection.drained() and complete
        finally:
            if connection:
                connection.end()
            seconds = time.perf_counter() - started
            route = route_of(scope, self.routes)
            self.answered += complete and status != 499
            self.metrics.in_flight.dec()
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.outcomes.labels(outcome_of(status, complete)).inc()
            if scope["method"] == "POST":
                self.metrics.seconds.labels("whole").observe(seconds)
            self._log(scope, route, status, seconds)

    def _log(self, scope: Scope, route: str, status: int, seconds: float) -> None:
        client = scope.get("client")
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "client": client[0][:64] if client else None,  # possibly from X-Forwarded-For
            "method": scope["method"][:16],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
        }
        access.info(json.dumps(line))


_OUTCOMES = {PROBLEMS[name][0]: name for name in ("slow-upload", "superseded", "client-gone", "failed", "timeout")}


def outcome_of(status: int, complete: bool) -> str:
    """The outcome of a request, from its status and whether the client received the complete response."""
    if status in _OUTCOMES:
        return _OUTCOMES[status]
    if not complete:
        return "client-gone"
    return "answered" if status < 400 else "refused"


def route_of(scope: Scope, routes: Sequence[BaseRoute]) -> str:
    """The route of a request, also of one that was refused before it was routed, for want of a token.

    A metric's label cannot be the path, whose values are unlimited.
    """
    if "route" in scope:
        return scope["route"].path
    known = (route.path for route in routes if isinstance(route, Route) and route.path_regex.match(scope["path"]))
    return next(known, "/static" if scope["path"].startswith("/static/") else "other")
