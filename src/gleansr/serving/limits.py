"""Who may ask, and how much: names of the host, other sites' pages, the token, the bytes of a request; and what browsers are told."""

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

SMALL_CHUNKS = 2**14
"""Bytes that a body in chunks may take on the way beside a tenth of its own."""

PROBES = ("/healthz", "/readyz")
"""Who watches the service asks for these by any name and without a token; they tell nothing."""

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
"""Nothing comes from or goes to another host, and no other page frames this one."""

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
    """Puts HEADERS on every answer, and forbids to store what is not a file of the page."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(HEADERS)
                # The page and its modules are asked for anew each time, and answered 304 where they are the same.
                headers.setdefault(
                    "Cache-Control", "no-cache" if scope["path"] == "/" or scope["path"].startswith("/static/") else "no-store"
                )
            await send(message)

        await self.app(scope, receive, with_headers if scope["type"] == "http" else send)


class Unread:
    """Ends the connection with an answer that comes before the request was read whole, so that nobody has to read the rest."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not _has_body(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        unread = True

        async def watched() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message.get("more_body", False)
            return message

        async def ending(message: Message) -> None:
            if unread and message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Connection"] = "close"
                if connection := connection_of(scope):
                    connection.unread = True
            await send(message)

        await self.app(scope, watched, ending)


def _has_body(headers: Headers) -> bool:
    return "transfer-encoding" in headers or headers.get("content-length", "0").strip("0") != ""


class Guard:
    """Answers requests that come by a foreign name, from another site's page, or without the token."""

    def __init__(self, app: ASGIApp, config: ServingConfig):
        self.app = app
        self.names = {name.lower() for name in config.allow_hosts}
        # Of a service that only this machine can reach, a web page elsewhere could make its own name point to it (DNS rebinding).
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
            raise Problem(
                "foreign-host", f"the service is asked as {host[:100]!r}; start it with --allow-hosts if that is one of its names"
            )
        for origin in headers.getlist("origin"):
            asked = origin.partition("://")[2].lower()  # of "null", as of what is no origin, nothing
            if not asked or (asked != host.lower() and _name(asked) not in self.names):
                mend = "use the service's own page; behind a proxy, pass the Host header on or start with --allow-hosts"
                raise Problem(
                    "foreign-origin", f"the page {origin[:100]!r} is not of this service, which is asked as {host[:100]!r}: {mend}"
                )
        if self.token is not None and path != "/" and not path.startswith("/static/"):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(_digest(given.strip()), self.token):
                wrong = "the token is wrong" if given else "a token is needed"
                raise Problem("unauthorized", f"{wrong}; send `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})

    def _known(self, host: str) -> bool:
        return (name := _name(host)) in self.names or is_loopback(name)


def _check_framing(headers: Headers, version: str) -> None:
    """Refuses what a proxy in front may take to end elsewhere, and so take the rest of a body for a request, or the reverse."""
    if "transfer-encoding" in headers and ("content-length" in headers or version == "1.0"):
        raise Problem("bad-request", "it has Transfer-Encoding beside Content-Length, or in HTTP/1.0; send Content-Length alone")
    if version not in ("1.0", "1.1"):
        raise Problem("bad-request", f"it is in HTTP/{version}; send HTTP/1.1")


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("latin-1", "replace")).digest()  # of equal length, whatever is given


def _name(host: str) -> str:
    """Of "name:port"."""
    return re.sub(r":[0-9]*$", "", host).lower()


async def bounded(request: Request, most: int, ticket: Ticket) -> AsyncGenerator[bytes, None]:
    """The body of a request as it comes in. Raises Problem "too-many-bytes" as soon as it is known, before the rest has come, and
    "bad-request" where it comes in so small chunks that finding their ends is most of the work."""
    connection = connection_of(request.scope)
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdecimal() and int(length[:20]) > most:
        raise _too_large(most)
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > most:
            raise _too_large(most)
        if connection and connection.received > 1.1 * received + SMALL_CHUNKS:
            raise Problem("bad-request", "the chunks of its body are too small; send chunks of at least 1 KiB, or a Content-Length")
        ticket.take(len(chunk))
        yield chunk


class Wire(Protocol):
    """What is known of the connection that a request came by."""

    received: int
    """Bytes since its head, with the marks between chunks."""
    unread: bool
    """Whether the client may still be sending what nobody will read."""

    def begin(self) -> None: ...
    def end(self) -> None: ...
    async def taken(self) -> bool: ...


def connection_of(scope: Scope) -> Wire | None:
    """None where there is no socket."""
    return scope.get("state", {}).get("connection")


def _too_large(most: int) -> Problem:
    return Problem("too-many-bytes", f"the request is larger than {most} bytes; send a smaller image, or a JPEG instead of a PNG")
