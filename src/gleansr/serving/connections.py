"""Limits on connections: their number, and the time to send a request and to receive its response.

uvicorn accepts any number of connections, waits forever for clients that send half a request or do not read the response, and keeps
reading after an early response. Therefore this module accepts the connections, and each sits between its socket and uvicorn's protocol.
"""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import sys
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from gleansr.serving.admission import PROGRESS_BYTES
from gleansr.serving.config import ServingConfig
from gleansr.serving.metrics import Metrics
from gleansr.serving.middleware import HEADERS
from gleansr.serving.problems import Problem

log = logging.getLogger("gleansr.serving")

LINGER_SECONDS, LINGER_BYTES = 2.0, 2**20
"""How long, and how many bytes, a client's data is discarded after an early response. After an immediate close, the system would reset the
connection, and the client would mostly lose the response."""

UNSENT = 2**28
"""Maximum total size in bytes of responses that wait for slow clients."""

_READ = 2**14
"""Bytes read and parsed at a time, which blocks the event loop: few, since chunks of one byte are slow to parse."""

_RESERVED_FILES = 48
"""Files besides the connections: models, pages, threads' pipes."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Http(H11Protocol):
    """uvicorn's protocol, except that it answers malformed HTTP with a problem document, and does not log it."""

    def send_400_response(self, msg: str) -> None:
        if isinstance(self.transport, Connection):
            self.transport.metrics.dropped.labels("malformed").inc()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(raw_response(Problem("bad-request", f"this is not a valid HTTP/1.1 request ({msg.rstrip('.')})")))
        if isinstance(self.transport, Connection):
            self.transport.unread = True
        self.transport.close()


class Connection(asyncio.BufferedProtocol, asyncio.Transport):
    """One connection: the protocol of its socket's transport, and the transport of uvicorn's protocol (`http`)."""

    def __init__(self, connections: "Connections", address: str, http: Callable[["Connection"], asyncio.Protocol]):
        self._connections, self.address, self.metrics = connections, address, connections.metrics
        self._http = http(self)
        self._buffer = bytearray(_READ)
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._written = self._acknowledged = self._discarded = 0
        self._idle = True
        self._lingering = self._closing = False
        self._requests = 0
        self._writable = asyncio.Event()
        self._writable.set()
        self.unread = False
        """Whether the client may still be sending data that will not be read."""
        self.stalled_since = 0.0
        """On the loop's clock."""
        self.received = 0
        """Bytes since the head of the request."""
        self.lost = False
        """Whether the connection is closed."""

    # ------------------------------------------------------------------------------------------- called by the socket's transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101, nothing else is a stream
        self._transport = transport
        self._http.connection_made(self)
        self._set_timer(self._connections.config.header_timeout, self._header_timeout)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002, the protocol's signature
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._lingering:
            self._discarded += nbytes
            if self._discarded > LINGER_BYTES:
                self._transport.pause_reading()
            return
        self.received += nbytes
        if self._idle and not self._requests:  # a new request starts
            self._set_timer(self._connections.config.header_timeout, self._header_timeout)
        self._idle = False
        self._http.data_received(bytes(memoryview(self._buffer)[:nbytes]))

    def eof_received(self) -> bool:
        self._http.eof_received()
        self._set_timer(LINGER_SECONDS, self._end)
        return False  # closes the socket after sending the written data; a half-closed connection counts as closed

    def pause_writing(self) -> None:
        self._http.pause_writing()
        self._writable.clear()
        self._acknowledged = self._sent()
        if not self._stall:
            self.stalled_since = asyncio.get_running_loop().time()
            self._stall = self._later(self._connections.config.stall_timeout, self._check_stall)
        self._connections.limit_unsent()

    def resume_writing(self) -> None:
        self._http.resume_writing()
        self._writable.set()
        self._stall = _cancel(self._stall)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self._closing = True
        self._writable.set()
        self._timer, self._stall = _cancel(self._timer), _cancel(self._stall)
        self._connections.forget(self)
        if not self._lingering:
            self._http.connection_lost(exc)

    # --------------------------------------------------------------------------------------------- called by uvicorn's protocol

    def write(self, data: Any) -> None:
        if not self.is_closing():
            self._written += len(data)
            self._transport.write(data)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._connections.changed.set()
        self._set_timer(LINGER_SECONDS, self._end)
        if self.unread and not self._transport.is_closing():
            try:
                self._transport.write_eof()
            except OSError:  # the client has disconnected, but the loop has not reported it yet
                self._transport.abort()
                return
            self._lingering = True
            self._transport.resume_reading()
            asyncio.get_running_loop().call_soon(self._http.connection_lost, None)
        else:
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        if not self._closing:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        if not self._closing:
            self._transport.resume_reading()

    # ------------------------------------------------------------------------------------------------ called by the application

    def begin(self) -> None:
        """The head of a request is complete."""
        self._requests, self.received = self._requests + 1, 0
        self._timer = _cancel(self._timer)

    def end(self) -> None:
        """The response is written. The next request may have started already."""
        self._requests -= 1
        if not self._requests:
            self._idle = True
            self._connections.set_idle(self)
            if not self._closing:
                self._set_timer(self._connections.config.header_timeout, self._header_timeout)

    async def drained(self) -> bool:
        """Waits until the response has left for the system's buffers. Returns whether the connection is still open."""
        await self._writable.wait()
        return not self.lost

    # ------------------------------------------------------------------------------------------------------------ closing

    @property
    def unsent(self) -> int:
        """Bytes in the write buffer."""
        return self._transport.get_write_buffer_size()

    @property
    def stalled(self) -> bool:
        """Whether writing is paused until the client receives more."""
        return self._stall is not None

    @property
    def droppable(self) -> bool:
        """Whether it has neither a request nor unsent data, and may be dropped for another connection."""
        return not self._requests and not self.unsent

    def drop(self, reason: str) -> None:
        self.metrics.dropped.labels(reason).inc()
        self._connections.forget(self)
        self.abort()

    def refuse(self, reason: str, problem: Problem) -> None:
        """Responds without reading a request, and closes."""
        self.metrics.dropped.labels(reason).inc()
        self.unread = True
        self.write(raw_response(problem))
        self.close()

    def _header_timeout(self) -> None:
        seconds = f"{self._connections.config.header_timeout:g} s"
        if self._idle:  # browsers open connections in advance
            self.close()
        else:
            self.refuse("header-timeout", Problem("slow-upload", f"the head of the request did not arrive within {seconds}"))

    def _check_stall(self) -> None:
        if self._sent() - self._acknowledged < min(PROGRESS_BYTES, self.unsent):
            self.drop("stalled")
        else:
            self._acknowledged = self._sent()
            self._stall = self._later(self._connections.config.stall_timeout, self._check_stall)

    def _end(self) -> None:
        if self.stalled:  # `_check_stall` decides
            self._set_timer(LINGER_SECONDS, self._end)
        else:
            self.abort()

    def _sent(self) -> int:
        return self._written - self.unsent

    def _set_timer(self, seconds: float, call: Callable[[], None]) -> None:
        _cancel(self._timer)
        self._timer = self._later(seconds, call)

    def _later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, call)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()


class Connections:
    """Accepts connections up to a limit in total and per address.

    At a limit, drops the connection that has been idle the longest. If none is idle, refuses further ones from the same address, and stops
    accepting at the total limit until one closes.
    """

    def __init__(self, config: ServingConfig, metrics: Metrics, http: Callable[[Connection], asyncio.Protocol]):
        self.config, self.metrics, self._http = config, metrics, http
        self._limit = min(config.connections, max_connections())
        if self._limit < config.connections:
            log.warning("limited to %d connections by the number of files that the process may open (ulimit -n)", self._limit)
        self._open: dict[Connection, None] = {}  # idle ones in the order in which they became idle
        self._per_address: Counter[str] = Counter()
        self._warned = False
        self.changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    async def accept(self, listener: socket.socket) -> None:
        """Accepts connections until cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                accepted, peer = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    await self._handle_exhaustion(error)
                continue
            self._warned = False
            connection = Connection(self, address_of(peer), self._http)
            try:
                await loop.connect_accepted_socket(lambda connection=connection: connection, accepted)
            except OSError:  # closed already
                accepted.close()
                continue
            self._enter(connection)
            while len(self._open) > self._limit and not self._drop_idle(connection):
                self.changed.clear()
                await self.changed.wait()

    def set_idle(self, connection: Connection) -> None:
        """Records that a connection waits for its next request."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None
            self.changed.set()

    def forget(self, connection: Connection) -> None:
        if connection in self._open:
            del self._open[connection]
            self._per_address[connection.address] -= 1
            self._per_address += Counter()  # removes zeros
            self.metrics.connections.set(len(self._open))
            self.changed.set()

    def limit_unsent(self) -> None:
        """Drops the connections that have been stalled the longest while they have too much unsent data in total."""
        stalled = sorted((each for each in self._open if each.stalled), key=lambda each: each.stalled_since, reverse=True)
        unsent = sum(connection.unsent for connection in stalled)
        while unsent > UNSENT and len(stalled) > 1:
            slowest = stalled.pop()
            unsent -= slowest.unsent
            slowest.drop("stalled")

    async def close(self) -> None:
        """Waits until open connections have sent their data, then aborts the others."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._open:
                    self.changed.clear()
                    await self.changed.wait()
        for connection in list(self._open):
            connection.abort()

    def _enter(self, connection: Connection) -> None:
        if connection.lost:
            return
        self._open[connection] = None
        self._per_address[connection.address] += 1
        self.metrics.connections.set(len(self._open))
        limit = self.config.connections_per_address
        if self._per_address[connection.address] > limit and not self._drop_idle(connection, connection.address):
            problem = Problem(
                "busy", f"{limit} connections from this address are open; close one, or try again in 1 s", {"Retry-After": "1"}
            )
            connection.refuse("refused", problem)

    def _drop_idle(self, exclude: Connection | None, address: str | None = None) -> bool:
        """Drops the connection that has been idle the longest. Returns whether there was one."""
        for connection in self._open:
            if connection.droppable and connection is not exclude and address in (None, connection.address):
                connection.drop("crowded")
                return True
        return False

    async def _handle_exhaustion(self, error: OSError) -> None:
        """Warns once, drops an idle connection and waits: the system, possibly due to other programs, has no more sockets."""
        if not self._warned:
            self._warned = True
            log.warning("no connection can be accepted for now: %s", error.strerror)
        self._drop_idle(None)
        await asyncio.sleep(0.1)


def raw_response(problem: Problem) -> bytes:
    """A problem as a raw HTTP/1.1 response, for connections without a request."""
    response = problem.response()
    response.headers.update({**HEADERS, "Cache-Control": "no-store", "Connection": "close"})
    lines = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}".encode(),
        *(b": ".join(pair) for pair in response.raw_headers),
    ]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def address_of(peer: Any) -> str:
    """The key for counting connections: an IPv4 address, or the /64 network of an IPv6 address, since a client may use all of it."""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (ValueError, IndexError):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))
    return str(address)


def max_connections() -> int:
    """The maximum number of connections for this process. Raises the soft limit on open files to the hard one."""
    if sys.platform == "win32":
        return 2**16
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = max(soft, 2**16 if hard == resource.RLIM_INFINITY else hard)
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than its hard limit
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        soft = target
    folder = Path("/proc/self/fd")
    n_open = len(list(folder.iterdir())) if folder.is_dir() else 16
    return max(1, soft - n_open - _RESERVED_FILES)
