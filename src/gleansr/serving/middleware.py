"""Middleware: checks of the host, the origin, the token and the size of a request; security headers for browsers."""

import hashlib
import hmac
import re
from collections.abc import AsyncGenerator
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gleansr.serving.admission import Ticket
from gleansr.serving.config import ServingConfig, is_loopback
from gleansr.serving.problems import Problem

CHUNK_OVERHEAD = 2**14
"""Bytes of framing that a chunked body may have, besides a tenth of its length."""

PROBES = ("/healthz", "/readyz")
"""Exempt from the checks of host and token; they reveal nothing."""

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' blob: data:",
        "font-src 'self'",
        "connect-src 'self'",
        "manifest-src 'self'",
        "worker-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""The page loads from and sends to this host only, and cannot be framed."""

HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class BrowserHeaders:
    """Adds HEADERS to every response, and `no-store` to all but the files of the page."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                # Browsers revalidate the page and its modules, and get 304 if they are unchanged.
                headers.setdefault(
                    "Cache-Control", "no-cache" if scope["path"] == "/" or scope["path"].startswith("/static/") else "no-store"
                )
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class CloseUnread:
    """Closes the connection after a response that precedes the end of the request, instead of reading the rest."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        unread = True

        async def watched_receive() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def closing_send(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
                if connection := connection_of(scope):
                    connection.unread = True
            await send(message)

        await self.app(scope, watched_receive, closing_send)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


class Guard:
    """Refuses requests with a foreign host name, from another site's page, or without the token."""

    def __init__(self, app: ASGIApp, config: ServingConfig):
        self.app = app
        self.names = {name.lower() for name in config.allow_hosts}
        # A page elsewhere could point its own name to a service that only this machine can reach (DNS rebinding).
        self.check_host = is_loopback(config.host) or bool(config.allow_hosts)
        self.token = None if config.secret is None else _digest(config.secret)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["type"] == "http":
                headers = Headers(scope=scope)
                _check_framing(headers, scope["http_version"])
                if scope["path"] not in PROBES:
                    self._check(headers, scope["path"])
        except Problem as problem:
            await problem.response()(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check(self, headers: Headers, path: str) -> None:
        host = headers.get("host", "")
        if self.check_host and not self._known(host):
            raise Problem("foreign-host", f"unknown host {host[:100]!r}; start the service with --allow-hosts if that is one of its names")
        for origin in headers.getlist("origin"):
            origin_host = origin.partition("://")[2].lower()  # empty for "null" and malformed origins
            if not origin_host or (origin_host != host.lower() and _name(origin_host) not in self.names):
                remedy = "use the service's own page; behind a proxy, forward the Host header or start with --allow-hosts"
                raise Problem("foreign-origin", f"the page {origin[:100]!r} is not one of this service ({host[:100]!r}): {remedy}")
        if self.token is not None and path != "/" and not path.startswith("/static/"):
            scheme, _, token = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(token.strip()), self.token):
                reason = "the token is wrong" if token else "a token is required"
                raise Problem("unauthorized", f"{reason}; send `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})

    def _known(self, host: str) -> bool:
        return (name := _name(host)) in self.names or is_loopback(name)


def _check_framing(headers: Headers, version: str) -> None:
    """Refuses ambiguous framing, which a proxy may interpret differently (request smuggling)."""
    if "transfer-encoding" in headers and ("content-length" in headers or version == "1.0"):
        raise Problem("bad-request", "it has Transfer-Encoding with Content-Length, or in HTTP/1.0; send only Content-Length")
    if version not in ("1.0", "1.1"):
        raise Problem("bad-request", f"it uses HTTP/{version}; send HTTP/1.1")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("latin-1", "replace")).digest()  # of equal length for any token


def _name(host: str) -> str:
    """The name in "name:port"."""
    return re.sub(r":[0-9]*$", "", host).lower()


async def limited_body(request: Request, max_bytes: int, ticket: Ticket) -> AsyncGenerator[bytes, None]:
    """Streams the body of a request. Raises Problem "too-many-bytes" at the first excess byte, and "bad-request" for chunks so small
    that parsing them dominates."""
    connection = connection_of(request.scope)
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and int(length[:20]) > max_bytes:
        raise _too_large(max_bytes)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > max_bytes:
            raise _too_large(max_bytes)
        if connection and connection.received > 1.1 * received + CHUNK_OVERHEAD:
            raise Problem("bad-request", "the chunks of its body are too small; send chunks of at least 1 KiB, or a Content-Length")
        ticket.receive(len(chunk))
        yield chunk


class RequestConnection(Protocol):
    """The connection of a request."""

    received: int
    """Bytes since the request's head, including the framing of chunks."""
    unread: bool
    """Whether the client may still be sending data that will not be read."""

    def begin(self) -> None: ...
    def end(self) -> None: ...
    async def drained(self) -> bool: ...


def connection_of(scope: Scope) -> RequestConnection | None:
    """The connection of a request; None without a socket."""
    return scope.get("state", {}).get("connection")


def _too_large(max_bytes: int) -> Problem:
    return Problem("too-many-bytes", f"the request is larger than {max_bytes} bytes; send a smaller image, or a JPEG instead of a PNG")
