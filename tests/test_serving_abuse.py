"""`gleansr serve` under clients that hold connections, send without end, do not read, or send what is no HTTP."""

import asyncio
import errno
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_parts import encoded, form, problem, save_vivid, thumbnail

from benchmarks.service import Running, running
from gleansr.serving import connections
from gleansr.serving.config import ServingConfig
from gleansr.serving.connections import Connection, Connections, address_of, max_connections
from gleansr.serving.metrics import Metrics
from gleansr.serving.problems import Problem
from gleansr.serving.server import listen

MOST, OF_ONE = 24, 12
FORM = form({"image": encoded(thumbnail(1))})


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = save_vivid(tmp_path_factory.mktemp("model") / "vivid.safetensors")
    limits = f"--max-bytes 1000000 --connections {MOST} --connections-per-address {OF_ONE} --header-timeout 1 --stall-timeout 1"
    with running("--models", model, *limits.split(), OMP_NUM_THREADS="1") as service:
        yield service


def head(line: str = "POST /v1/upscale", /, **headers: Any) -> bytes:
    given = {"Host": "127.0.0.1"} | ({"Content-Type": "multipart/form-data; boundary=edge"} if line == "POST /v1/upscale" else {})
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in (given | headers).items() if value != ""]
    return "\r\n".join([f"{line} HTTP/1.1", *lines, "", ""]).encode()


def connected(service: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), 10)


def received(connection: socket.socket) -> bytes:
    """All bytes until the other side closes."""
    contents = b""
    while part := connection.recv(2**16):
        contents += part
    return contents


def answer(contents: bytes) -> httpx.Response:
    """Of the one answer that was received."""
    top, _, body = contents.partition(b"\r\n\r\n")
    first, *headers = top.decode().split("\r\n")
    found = httpx.Response(int(first.split()[1]), headers=dict(line.split(": ", 1) for line in headers), content=body)
    assert len(body) == int(found.headers["content-length"])
    return found


def asked(service: Running, data: bytes) -> httpx.Response:
    with connected(service) as connection:
        connection.sendall(data)
        return answer(received(connection))


def sent_until_refused(connection: socket.socket, piece: bytes) -> int:
    """The number of bytes sent."""
    sent = 0
    try:
        while sent < 2**28:
            connection.sendall(piece)
            sent += len(piece)
    except OSError:
        return sent
    return sent


def served(service: Running) -> int:
    """The status that a client with an image gets."""
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        return client.post("/v1/upscale", files={"image": encoded(thumbnail(1))}).status_code


def figures(service: Running) -> dict[str, float]:
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        lines = client.get("/metrics").text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line.startswith("gleansr_"))}


def until(service: Running, reached: Callable[[dict[str, float]], bool]) -> dict[str, float]:
    for _ in range(200):
        if reached(found := figures(service)):
            return found
        time.sleep(0.05)
    raise AssertionError(found)


# ------------------------------------------------------------------------------------------------------------- deadlines


def test_half_a_head_has_a_deadline(service: Running):
    with connected(service) as silent, connected(service) as half:
        half.sendall(b"GET / HTTP/1.1\r\nX")
        response = answer(received(half))
        assert problem(response)[:2] == (408, "slow-upload")
        assert response.headers["connection"] == "close"
        assert received(silent) == b""  # browsers open connections in advance


def test_a_head_that_trickles_has_a_deadline(service: Running):
    with connected(service) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        while not select.select([connection], [], [], 0.05)[0]:
            connection.sendall(b"a:b\r\n")
        assert problem(answer(received(connection)))[1] == "slow-upload"


def test_the_second_head_of_a_connection_has_a_deadline(service: Running):
    with connected(service) as connection:
        connection.sendall(head("GET /healthz"))
        contents = b""
        while not contents.endswith(b"ok"):
            contents += connection.recv(2**16)
        connection.sendall(b"GET / HT")
        assert problem(answer(received(connection)))[1] == "slow-upload"


@pytest.mark.parametrize("size", [{"Content_Length": len(FORM)}, {"Transfer_Encoding": "chunked"}], ids=["length", "chunks"])
def test_a_body_that_trickles_has_a_deadline(service: Running, size: dict[str, Any]):
    with connected(service) as connection:
        connection.sendall(head(**size))
        for byte in FORM:
            connection.sendall(bytes([byte]) if "Content_Length" in size else b"1\r\n%c\r\n" % byte)
            if select.select([connection], [], [], 0.05)[0]:
                break
        response = answer(received(connection))
    assert problem(response)[:2] == (408, "slow-upload")
    assert response.headers["connection"] == "close"


def test_clients_that_do_not_read_are_dropped(service: Running):
    before = figures(service)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", service.port))
        assert sent_until_refused(connection, head("GET /static/style.css") * 10) < 2**28
    dropped, gone = 'gleansr_connections_dropped_total{reason="stalled"}', 'gleansr_outcomes_total{outcome="client-gone"}'
    until(service, lambda now: now.get(dropped, 0) > before.get(dropped, 0) and now[gone] > before.get(gone, 0))
    assert served(service) == 200


# -------------------------------------------------------------------------------------------------- how many connections


def test_idle_connections_make_room(service: Running):
    before = figures(service)
    with ExitStack() as held:
        for number in range(3 * MOST):
            held.enter_context(connected(service)).sendall(b"" if number % 2 else b"GET / HTTP/1.1\r\nX")
            if number % MOST == 0:
                assert served(service) == 200
        assert served(service) == 200
        now = figures(service)
        assert now["gleansr_connections"] <= OF_ONE
        dropped = 'gleansr_connections_dropped_total{reason="crowded"}'
        assert now[dropped] - before.get(dropped, 0) >= 2 * MOST


def test_further_connections_of_a_busy_address_are_refused(service: Running):
    with ExitStack() as held:
        for _ in range(OF_ONE):
            connection = held.enter_context(connected(service))
            connection.sendall(head(Content_Length=100, Expect="100-continue"))
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # it is worked on
        response = asked(service, head("GET /healthz"))
        assert problem(response)[:2] == (429, "busy")
        assert response.headers["retry-after"] == "1"
    until(service, lambda now: now["gleansr_in_flight"] == 1)
    assert served(service) == 200


class Begun(asyncio.Protocol):
    """Takes all data for a request that never ends."""

    def __init__(self, connection: Connection):
        self.connection = connection

    def data_received(self, data: bytes) -> None:  # noqa: ARG002, the protocol's signature
        self.connection.begin()
        self.connection.write(b"begun")


async def hang_up(*clients: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    for _, writer in clients:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


def test_at_the_limit_no_more_are_accepted_until_one_ends():
    async def test() -> None:
        those = Connections(ServingConfig(connections=2), Metrics(), Begun)
        with listen("127.0.0.1", 0) as listener:
            accepting = asyncio.create_task(those.accept(listener))
            clients = []
            for _ in range(3):  # one is accepted to see that it is too much
                clients.append(await asyncio.open_connection(*listener.getsockname()))
                clients[-1][1].write(b"x")
                assert await clients[-1][0].read(5) == b"begun"
            reader, writer = await asyncio.open_connection(*listener.getsockname())  # the system has, but we do not
            writer.write(b"x")
            answer = asyncio.create_task(reader.read(5))
            assert not (await asyncio.wait({answer}, timeout=0.1))[0]
            assert len(those) == 3
            clients[0][1].close()
            clients[1][1].close()
            assert await answer == b"begun"
            accepting.cancel()
            await asyncio.wait({accepting})
            await hang_up(*clients, (reader, writer))
            await those.close()

    asyncio.run(asyncio.wait_for(test(), 20))


def test_unsent_data_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "UNSENT", 2**22)

    class Large(asyncio.Protocol):
        """Responds to any data with 20 MB."""

        def __init__(self, connection: Connection):
            self.connection = connection

        def data_received(self, data: bytes) -> None:  # noqa: ARG002, the protocol's signature
            self.connection.begin()
            self.connection.write(bytes(20_000_000))

    async def test() -> None:
        those = Connections(ServingConfig(), Metrics(), Large)
        with listen("127.0.0.1", 0) as listener:
            accepting = asyncio.create_task(those.accept(listener))
            clients = []
            for _ in range(2):
                clients.append(await asyncio.open_connection(*listener.getsockname(), limit=1000))
                clients[-1][1].write(b"x")
                assert await clients[-1][0].read(1) == b"\0"
                assert len(those) == 1  # the second is too much, so the first is dropped
            accepting.cancel()
            await asyncio.wait({accepting})
            await hang_up(*clients)
            await those.close()

    asyncio.run(asyncio.wait_for(test(), 20))


def test_a_client_that_disconnects_before_the_loop_reports_it_is_dropped():
    class Gone(asyncio.Transport):
        """A socket that was reset."""

        aborted = False

        def write_eof(self) -> None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

        def write(self, data: bytes | bytearray | memoryview) -> None:
            pass

        def is_closing(self) -> bool:
            return self.aborted

        def get_write_buffer_size(self) -> int:
            return 0

        def abort(self) -> None:
            self.aborted = True

    async def test() -> None:
        wire = Gone()
        connection = Connection(Connections(ServingConfig(), Metrics(), Begun), "127.0.0.1", Begun)
        connection.connection_made(wire)
        connection.refuse("header-timeout", Problem("slow-upload", "it did not arrive"))
        assert wire.aborted
        connection.connection_lost(None)

    asyncio.run(asyncio.wait_for(test(), 20))


@pytest.mark.skipif(sys.platform != "linux", reason="sets the limit of another process")
def test_without_files_left_the_log_stays_small(service: Running):
    import resource

    assert served(service) == 200
    said, process = len(service.said), service.process.pid
    limits = resource.prlimit(process, resource.RLIMIT_NOFILE)
    taken = len(list(Path(f"/proc/{process}/fd").iterdir()))
    resource.prlimit(process, resource.RLIMIT_NOFILE, (taken + 3, limits[1]))
    with ExitStack() as held:
        for _ in range(20):
            held.enter_context(connected(service)).sendall(b"GET / HTTP/1.1\r\nX")
        assert served(service) == 200
    assert served(service) == 200
    resource.prlimit(process, resource.RLIMIT_NOFILE, limits)
    assert "no connection can be accepted for now: Too many open files\n" in service.said
    assert len(service.said) < said + 3000


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limit")
def test_the_limit_of_open_files_is_raised():
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0] // 2, limits[1]))
        most = max_connections()
        raised = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert raised >= limits[0]
    assert 0 < most < raised - 40


def test_addresses_are_counted_by_network():
    assert address_of(("127.0.0.1", 5)) == address_of(("::ffff:127.0.0.1", 5, 0, 0)) == "127.0.0.1"
    assert address_of(("2001:db8::1", 5, 0, 0)) == address_of(("2001:db8::ffff:2", 5, 0, 0)) == "2001:db8::/64"
    assert address_of(("fe80::1%eth0", 5, 0, 1)) == "fe80::/64"


# ---------------------------------------------------------------------------------------------------------- early answers

EARLY = {
    "a wrong type": (head("POST /v1/upscale?", Content_Type="application/json", Content_Length=900_000), b"[" * 1000, 415),
    "a declared length": (head(Content_Length=10**12), b"", 413),
    "an unknown field": (head(Content_Length=900_000), FORM.replace(b"image", b"images"), 400),
    "a field of megabytes": (head(Content_Length=900_000), form({"fit": bytes(2000)}).replace(b'; filename="a.png"', b""), 400),
    "a foreign host": (head(Host="evil.example", Content_Length=900_000), b"", 403),
    "a body where none belongs": (head("GET /healthz", Content_Length=900_000), b"x", 200),
    "no such address": (head("POST /nothing", Content_Length=900_000), b"x", 404),
    "another method": (head("PUT /v1/upscale", Content_Length=900_000), b"x", 405),
    "a name of an editor": (head(Content_Length=900_000, Gleansr_Editor="a b"), b"x", 400),
    "two lengths": (head(Content_Length=3, Transfer_Encoding="chunked"), b"0\r\n\r\n" + head("GET /healthz"), 400),
    "chunks of HTTP/1.0": (head(Transfer_Encoding="chunked").replace(b"HTTP/1.1", b"HTTP/1.0"), b"0\r\n\r\n", 400),
    "tiny chunks": (head(Transfer_Encoding="chunked"), b"".join(b"1\r\n%c\r\n" % byte for byte in FORM[:200] + bytes(9000)), 400),
}


@pytest.fixture(scope="module")
def early(service: Running) -> dict[str, tuple[httpx.Response, int]]:
    """The response to each, and the bytes that the client could send after it; several at a time, as each lingers for seconds."""

    def ask(name: str) -> tuple[httpx.Response, int]:
        request, body, _ = EARLY[name]
        with connected(service) as connection:
            connection.sendall(request + body)
            return answer(received(connection)), sent_until_refused(connection, bytes(2**16))

    with ThreadPoolExecutor(OF_ONE // 2) as clients:
        return dict(zip(EARLY, clients.map(ask, EARLY), strict=True))


@pytest.mark.parametrize("name", EARLY)
def test_an_early_answer_ends_the_connection(early: dict[str, tuple[httpx.Response, int]], name: str):
    response, sent = early[name]
    status = EARLY[name][2]
    assert (response.status_code, response.headers["connection"]) == (status, "close")
    assert sent < 2**24  # a megabyte, and what sockets hold
    if status != 200:
        problem(response)


def test_clients_that_send_everything_before_reading_get_the_response(service: Running):
    with connected(service) as connection:
        with pytest.raises(OSError):  # noqa: PT011, reset or broken pipe
            connection.sendall(head(Content_Length=10**8) + bytes(10**8))
        assert problem(answer(received(connection)))[:2] == (413, "too-many-bytes")


def test_a_request_that_was_read_keeps_the_connection(service: Running):
    with connected(service) as connection:
        for _ in range(2):
            connection.sendall(head(Content_Length=3) + b"abc")
            contents = b""
            while not contents.endswith(b"}"):  # of the problem in JSON
                part = connection.recv(2**16)
                assert part
                contents += part
            assert contents.startswith(b"HTTP/1.1 400 ")
            assert b"connection: close" not in contents.lower()


# ------------------------------------------------------------------------------------------------------------ what is no HTTP

NO_HTTP = {
    "TLS": b"\x16\x03\x01\x00\xff" * 10,
    "a long head": b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000,
    "many headers": b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:b\r\n" * 30_000,
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "another version": head("GET /").replace(b"1.1", b"9.9").replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
    "two lengths that differ": head(Content_Length=3).replace(b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\nabc"),
    "a negative length": head(Content_Length=-1),
    "a length of many digits": head(Content_Length="9" * 5000),
    "no chunk": head(Transfer_Encoding="chunked") + b"zz\r\n",
    "another coding": head(Transfer_Encoding="gzip, chunked"),
}


@pytest.mark.parametrize("name", NO_HTTP)
def test_malformed_http_gets_a_problem(service: Running, name: str):
    response = asked(service, NO_HTTP[name])
    assert problem(response)[:2] == (400, "bad-request")
    assert response.headers["connection"] == "close"
    assert response.headers["x-content-type-options"] == "nosniff"


def test_malformed_http_and_upgrades_are_not_logged_separately(service: Running):
    said = len(service.said)
    upgrade = head("GET /healthz", Upgrade="websocket", Connection="Upgrade, close", Sec_WebSocket_Version=13)
    assert asked(service, upgrade).status_code == 200
    assert asked(service, b"\0\r\n\r\n").status_code == 400
    assert all(line.startswith("{") for line in service.said[said:].splitlines())


def test_log_lines_are_short(service: Running):
    asked(service, head("GET /healthz", X_Forwarded_For="1" * 9000, Connection="close"))
    asked(service, head("A" * 9000 + " /healthz", Connection="close"))
    assert max(map(len, service.said.splitlines())) < 300


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v1/models", "/metrics", "/openapi.json", "/static/main.js"])
def test_head_equals_get_without_a_body(service: Running, path: str):
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        asked, got = client.head(path), client.get(path)
    assert asked.status_code == got.status_code == 200
    assert asked.headers["content-type"] == got.headers["content-type"]
    assert asked.content == b""


def test_the_outcomes_add_up_to_the_requests(service: Running):
    """Must be the last test of this service."""
    now = until(service, lambda now: now["gleansr_in_flight"] == 1)
    requests = sum(value for name, value in now.items() if name.startswith("gleansr_requests_total"))
    outcomes = {name: value for name, value in now.items() if name.startswith("gleansr_outcomes_total")}
    assert sum(outcomes.values()) == requests > 0
    assert now["gleansr_connections"] <= 2
    assert served(service) == 200
