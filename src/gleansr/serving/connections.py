"""The connections of the service: how many there may be, and how long each may take to ask and to be answered.

uvicorn accepts without a limit, waits without end for a client that sends half a request or does not read its answer, and reads on what
follows an answer that came early. So connections are accepted here, and each stands between its socket and uvicorn's protocol.
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

from gleansr.serving.admission import PIECE
from gleansr.serving.config import ServingConfig
from gleansr.serving.limits import HEADERS
from gleansr.serving.metrics import Metrics
from gleansr.serving.problems import Problem

log = logging.getLogger("gleansr.serving")

LINGER_SECONDS, LINGER_BYTES = 2.0, 2**20
"""How long, and how much of what a client still sends, is thrown away unread after an answer that came early. Closing at once would have
the system tell the client of a broken connection, which mostly loses the answer."""

UNSENT = 2**28
"""Bytes of answers that may wait for slow clients, all together."""

_READ = 2**14
"""Bytes that are read and parsed at a time, in which nobody else is served: few, since chunks of one byte are slow to parse."""

_SPARE_FILES = 48
"""Files that the service opens beside its connections: models, pages, threads' pipes."""

_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Http(H11Protocol):
    """uvicorn's protocol, which tells what is no HTTP as a problem too, without a line of log for each."""

    def send_400_response(self, msg: str) -> None:
        if isinstance(self.transport, Connection):
            self.transport.metrics.dropped.labels("malformed").inc()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(raw_answer(Problem("bad-request", f"this is no valid HTTP/1.1 request ({msg.rstrip('.')})")))
        if isinstance(self.transport, Connection):
            self.transport.unread = True
        self.transport.close()


class Connection(asyncio.BufferedProtocol, asyncio.Transport):
    """One connection: the protocol of its socket's transport (`wire`), and the transport of uvicorn's protocol (`http`)."""

    def __init__(self, all_of: "Connections", address: str, http: Callable[["Connection"], asyncio.Protocol]):
        self._all, self.address, self.metrics = all_of, address, all_of.metrics
        self._http = http(self)
        self._buffer = bytearray(_READ)
        self._timer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._written = self._taken = self._thrown = 0
        self._quiet = True
        self._lingers = self._closing = False
        self._requests = 0
        self._room = asyncio.Event()
        self._room.set()
        self.unread = False
        """Whether the client may still be sending what nobody will read."""
        self.stalled_since = 0.0
        """On the loop's clock."""
        self.received = 0
        """Bytes since the head of the request."""
        self.lost = False
        """Whether the client is gone, or was hung up on."""

    # ------------------------------------------------------------------------------------------- called by the socket's transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101, nothing else is a stream
        self.wire = transport
        self._http.connection_made(self)
        self._wait(self._all.config.header_timeout, self._no_head)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002, the protocol's signature
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._lingers:
            self._thrown += nbytes
            if self._thrown > LINGER_BYTES:
                self.wire.pause_reading()
            return
        self.received += nbytes
        if self._quiet and not self._requests:  # the first of a new request: its time begins
            self._wait(self._all.config.header_timeout, self._no_head)
        self._quiet = False
        self._http.data_received(bytes(memoryview(self._buffer)[:nbytes]))

    def eof_received(self) -> bool:
        self._http.eof_received()
        self._wait(LINGER_SECONDS, self._end)
        return False  # closes the socket once what was written is sent; who closes one side only is taken to be gone

    def pause_writing(self) -> None:
        self._http.pause_writing()
        self._room.clear()
        self._taken = self._sent()
        if not self._stall:
            self.stalled_since = asyncio.get_running_loop().time()
            self._stall = self._later(self._all.config.stall_timeout, self._check_taken)
        self._all.bound_unsent()

    def resume_writing(self) -> None:
        self._http.resume_writing()
        self._room.set()
        self._stall = _cancel(self._stall)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self._closing = True
        self._room.set()
        self._timer, self._stall = _cancel(self._timer), _cancel(self._stall)
        self._all.forget(self)
        if not self._lingers:
            self._http.connection_lost(exc)

    # --------------------------------------------------------------------------------------------- called by uvicorn's protocol

    def write(self, data: Any) -> None:
        if not self.is_closing():
            self._written += len(data)
            self.wire.write(data)

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._all.changed.set()
        self._wait(LINGER_SECONDS, self._end)
        if self.unread and not self.wire.is_closing():
            try:
                self.wire.write_eof()
            except OSError:  # the client is gone, of which the loop has not told yet
                self.wire.abort()
                return
            self._lingers = True
            self.wire.resume_reading()
            asyncio.get_running_loop().call_soon(self._http.connection_lost, None)
        else:
            self.wire.close()

    def abort(self) -> None:
        self.wire.abort()

    def is_closing(self) -> bool:
        return self._closing or self.wire.is_closing()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.wire.get_extra_info(name, default)

    def pause_reading(self) -> None:
        if not self._closing:
            self.wire.pause_reading()

    def resume_reading(self) -> None:
        if not self._closing:
            self.wire.resume_reading()

    # ------------------------------------------------------------------------------------------------ called by the application

    def begin(self) -> None:
        """A request has come, but for its body."""
        self._requests, self.received = self._requests + 1, 0
        self._timer = _cancel(self._timer)

    def end(self) -> None:
        """Its answer is written. The next one may have begun already."""
        self._requests -= 1
        if not self._requests:
            self._quiet = True
            self._all.idle(self)
            if not self._closing:
                self._wait(self._all.config.header_timeout, self._no_head)

    async def taken(self) -> bool:
        """Waits until the client has taken the answer, but for what the system keeps for it. Returns whether it did."""
        await self._room.wait()
        return not self.lost

    # ------------------------------------------------------------------------------------------------------------ ends

    @property
    def unsent(self) -> int:
        return self.wire.get_write_buffer_size()

    @property
    def stalled(self) -> bool:
        """Whether its client has to take what was written before there is more."""
        return self._stall is not None

    @property
    def spare(self) -> bool:
        """Whether it may be dropped for another one: nothing is worked on."""
        return not self._requests and not self.unsent

    def drop(self, reason: str) -> None:
        self.metrics.dropped.labels(reason).inc()
        self._all.forget(self)
        self.abort()

    def refuse(self, reason: str, problem: Problem) -> None:
        """Answers whatever is asked."""
        self.metrics.dropped.labels(reason).inc()
        self.unread = True
        self.write(raw_answer(problem))
        self.close()

    def _no_head(self) -> None:
        seconds = f"{self._all.config.header_timeout:g} s"
        if self._quiet:  # as browsers open connections on suspicion
            self.close()
        else:
            self.refuse("header-timeout", Problem("slow-upload", f"the head of the request did not arrive within {seconds}"))

    def _check_taken(self) -> None:
        if self._sent() - self._taken < min(PIECE, self.unsent):
            self.drop("stalled")
        else:
            self._taken = self._sent()
            self._stall = self._later(self._all.config.stall_timeout, self._check_taken)

    def _end(self) -> None:
        if self.stalled:  # its client gets more time for as long as it takes what there is
            self._wait(LINGER_SECONDS, self._end)
        else:
            self.abort()

    def _sent(self) -> int:
        return self._written - self.unsent

    def _wait(self, seconds: float, call: Callable[[], None]) -> None:
        _cancel(self._timer)
        self._timer = self._later(seconds, call)

    def _later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(seconds, call)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()


class Connections:
    """Accepts connections, in all and of each address as many as may be. At a limit the one that has been without a request the longest is
    dropped; where all have one, those of an address are refused, and in all no more are accepted until one ends."""

    def __init__(self, config: ServingConfig, metrics: Metrics, http: Callable[[Connection], asyncio.Protocol]):
        self.config, self.metrics, self._http = config, metrics, http
        self._most = min(config.connections, most_connections())
        if self._most < config.connections:
            log.warning("at most %d connections are taken, since the process may open no more files (ulimit -n)", self._most)
        self._open: dict[Connection, None] = {}  # those without a request in the order in which that began
        self._of: Counter[str] = Counter()
        self._complained = False
        self.changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    async def accept(self, listener: socket.socket) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            try:
                accepted, peer = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    await self._no_room(error)
                continue
            self._complained = False
            connection = Connection(self, address_of(peer), self._http)
            try:
                await loop.connect_accepted_socket(lambda one=connection: one, accepted)
            except OSError:  # gone already
                accepted.close()
                continue
            self._enter(connection)
            while len(self._open) > self._most and not self._drop_one(connection):
                self.changed.clear()
                await self.changed.wait()

    def idle(self, connection: Connection) -> None:
        """It waits for its next request."""
        if connection in self._open:
            del self._open[connection]
            self._open[connection] = None
            self.changed.set()

    def forget(self, connection: Connection) -> None:
        if connection in self._open:
            del self._open[connection]
            self._of[connection.address] -= 1
            self._of += Counter()  # without those that have none
            self.metrics.connections.set(len(self._open))
            self.changed.set()

    def bound_unsent(self) -> None:
        """Where too much waits for slow clients, drops those that have been slow for the longest."""
        stalled = sorted((one for one in self._open if one.stalled), key=lambda one: one.stalled_since, reverse=True)
        unsent = sum(one.unsent for one in stalled)
        while unsent > UNSENT and len(stalled) > 1:
            slowest = stalled.pop()
            unsent -= slowest.unsent
            slowest.drop("stalled")

    async def close(self) -> None:
        """Waits for what is still being sent, and ends what lingers."""
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
        self._of[connection.address] += 1
        self.metrics.connections.set(len(self._open))
        most = self.config.connections_per_address
        if self._of[connection.address] > most and not self._drop_one(connection, connection.address):
            problem = Problem("busy", f"{most} connections of this address are open; close some, or try again in 1 s", {"Retry-After": "1"})
            connection.refuse("refused", problem)

    def _drop_one(self, besides: Connection | None, address: str | None = None) -> bool:
        """Whether one could be dropped."""
        spare = (one for one in self._open if one.spare and one is not besides and address in (None, one.address))
        if one := next(spare, None):
            one.drop("crowded")
        return one is not None

    async def _no_room(self, error: OSError) -> None:
        """The system gives no more sockets, which others of its programs may have taken."""
        if not self._complained:
            self._complained = True
            log.warning("no connection can be accepted for now: %s", error.strerror)
        self._drop_one(None)
        await asyncio.sleep(0.1)


def raw_answer(problem: Problem) -> bytes:
    """A problem as HTTP/1.1, where there is no request to answer."""
    response = problem.response()
    response.headers.update({**HEADERS, "Cache-Control": "no-store", "Connection": "close"})
    lines = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}".encode(),
        *(b": ".join(pair) for pair in response.raw_headers),
    ]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def address_of(peer: Any) -> str:
    """By which connections are counted: an IPv4 address, or the network of an IPv6 one, of which anybody has any number."""
    try:
        address = ipaddress.ip_address(str(peer[0]).partition("%")[0])
    except (ValueError, IndexError):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address.packed[:8] + bytes(8), 64)))
    return str(address)


def most_connections() -> int:
    """How many the system lets this process have. Raises the limit of open files as far as it may."""
    if sys.platform == "win32":
        return 2**16
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2**16 if hard == resource.RLIM_INFINITY else hard
    with contextlib.suppress(ValueError, OSError):  # macOS allows less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
        soft = max(soft, wanted)
    folder = Path("/proc/self/fd")
    taken = len(list(folder.iterdir())) if folder.is_dir() else 16
    return max(1, soft - taken - _SPARE_FILES)
