"""Hostile clients of `gleansr serve`, against a process of its own on the loopback.

Must hold: the process lives, whatever is answered is whole HTTP with a known status, a client that does nothing wrong is answered within
seconds, and in the end the service holds no more files, memory or log than before.
"""

import random
import re
import select
import socket
import struct
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import h11
from PIL import Image

from benchmarks.service import Running, running
from gleansr.serving.problems import PROBLEMS
from tests.fuzz import finding
from tests.serving_parts import blotchy, encoded, form, save_vivid

PATIENCE = 10.0
"""Seconds within which a good client is answered, and a hostile one answered or hung up on."""

HELD = 40
"""Connections that are kept open at once."""

_LIMITS = [
    *("--connections", "64", "--connections-per-address", "32", "--queue", "24", "--max-bytes", "2000000"),
    *("--header-timeout", "1", "--stall-timeout", "1", "--timeout", "4"),
]
_STATUSES = {status for status, _ in PROBLEMS.values()} | {100, 200, 206, 304, 416}
_FORM = form({"image": encoded(blotchy(1))}, "B")
_NOISE = form({"image": encoded(Image.effect_noise((300, 300), 60).convert("RGB"))}, "B")
_PATHS = ["/", "/v1/upscale", "/v1/retouch", "/v1/models", "/metrics", "/healthz", "/readyz", "/openapi.json", "/static/main.js", "/x", "*"]
_METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE", "TRACE", "CONNECT", "PATCH", "BREW"]
_HEADERS = [
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip",
    "Content-Length: 5",
    "Content-Length: -1",
    "Content-Length: 99999999999999999999",
    "Expect: 100-continue",
    "Connection: close",
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk",
    "Content-Type: application/json",
    "Content-Type: multipart/form-data",
    "Content-Type: multipart/form-data; boundary=" + "-" * 300,
    "Gleansr-Editor: a b",
    "Origin: http://evil.example",
    "Host: evil.example",
    "Range: bytes=" + "0-1," * 500 + "9-",
    "If-None-Match: " + '"x",' * 500,
    "Cookie: " + "a=b;" * 2000,
    "X-Forwarded-For: " + "1" * 4000,
    "A: \xff\xfe",
    "A:\r\n B",
    "A" * 4000 + ": b",
]


def run(chances: Iterable[random.Random]) -> Counter[str]:
    """Starts the service, is hostile, and looks at what is left of it."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        model = save_vivid(Path(folder, "vivid.safetensors"))
        with running("--models", model, *_LIMITS, OMP_NUM_THREADS="1") as service:
            for _ in range(3):
                _be_good(service)
            files, memory, log = _files(service), _memory(service), len(service.said)
            hostile = _Hostile(service, counts)
            for count, rng in enumerate(chances):
                hostile.attack(rng)
                if count % 10 == 0:
                    _check_good(service, counts)
                if service.process.poll() is not None:
                    finding(counts, f"the service ended with {service.process.returncode}", service.said.encode())
                    return counts
            hostile.close()
            _check_good(service, counts)
            _check_rest(service, counts, files, memory)
            if len(service.said) - log > 20_000 + 2_000 * hostile.sent:
                finding(counts, "the log grew beyond what was asked", service.said.encode())
            if "Traceback" in service.said:
                finding(counts, "a traceback is in the log", service.said.encode())
    return counts


class _Hostile:
    """Attacks, one at a time, but for the connections that stay open."""

    def __init__(self, service: Running, counts: Counter[str]):
        self.service, self.counts = service, counts
        self.held: list[socket.socket] = []
        self.sent = 0
        """Requests, or what goes for one."""
        self._kinds: list[Callable[[random.Random], None]] = [
            self._damaged_head,
            self._garbage,
            self._odd_request,
            self._damaged_form,
            self._damaged_chunks,
            self._pipeline,
            self._half,
            self._trickle,
            self._vanish,
            self._never_read,
            self._editor,
        ]

    def attack(self, rng: random.Random) -> None:
        kind = rng.choice(self._kinds)
        self.counts[kind.__name__.strip("_").replace("_", " ")] += 1
        kind(rng)
        for one in self.held[:-HELD]:
            one.close()
        self.held = self.held[-HELD:]

    def close(self) -> None:
        for one in self.held:
            one.close()

    def _damaged_head(self, rng: random.Random) -> None:
        whole = _request("GET", rng.choice(_PATHS), ["Connection: close"])
        self._ask("GET", _damaged(rng, whole), end=True)

    def _garbage(self, rng: random.Random) -> None:
        self._ask("GET", rng.randbytes(rng.choice([1, 20, 500, 50_000])), end=True)

    def _odd_request(self, rng: random.Random) -> None:
        method = rng.choice(_METHODS)
        headers = rng.sample(_HEADERS, rng.randint(0, 4))
        version = rng.choice(["1.1", "1.1", "1.1", "1.0", "2.0", "0.9"])
        self._ask(method, _request(method, rng.choice(_PATHS), headers, version) + rng.randbytes(rng.choice([0, 5, 3000])), end=True)

    def _damaged_form(self, rng: random.Random) -> None:
        body = _damaged(rng, rng.choice([_FORM, _NOISE]) if rng.random() < 0.7 else _odd_form(rng))
        length = len(body) + rng.choice([0, 0, 0, 0, 5, 10**9, -min(5, len(body))])
        headers = ["Content-Type: multipart/form-data; boundary=B", f"Content-Length: {length}", "Connection: close"]
        self._ask("POST", _request("POST", rng.choice(["/v1/upscale", "/v1/retouch"]), headers) + body, end=length > len(body))

    def _damaged_chunks(self, rng: random.Random) -> None:
        size, body = rng.choice([1, 3, 100, 5000]), b""
        for start in range(0, len(_FORM), size):
            part = _FORM[start : start + size]
            body += b"%x\r\n%s\r\n" % (len(part), part)
        body += b"0\r\n\r\n"
        if rng.random() < 0.7:
            body = _damaged(rng, body)
        headers = ["Content-Type: multipart/form-data; boundary=B", "Transfer-Encoding: chunked", "Connection: close"]
        self._ask("POST", _request("POST", "/v1/upscale", headers) + body, end=True)

    def _pipeline(self, rng: random.Random) -> None:
        method = rng.choice(["GET", "HEAD"])
        one = _request(method, rng.choice(["/healthz", "/nothing", "/static/style.css"]), [])
        self.sent += 20
        self._ask(method, one * rng.randint(2, 20) + _request(method, "/", ["Connection: close"]))

    def _half(self, rng: random.Random) -> None:
        """Half a head on each of some connections, which stay open."""
        for _ in range(rng.randint(1, 12)):
            self._hold(_request("GET", "/", [])[: rng.randint(0, 20)])

    def _trickle(self, rng: random.Random) -> None:
        """A body of which a byte comes now and then."""
        if rng.random() < 0.5:
            self._hold(_request("POST", "/v1/upscale", ["Content-Type: multipart/form-data; boundary=B", "Content-Length: 9000"]))
        for one in self.held:
            self._send(one, b"-")

    def _vanish(self, rng: random.Random) -> None:
        body = _request("POST", "/v1/upscale", ["Content-Type: multipart/form-data; boundary=B", f"Content-Length: {len(_NOISE)}"]) + _NOISE
        with _connected(self.service) as connection:
            self._send(connection, body[: rng.choice([10, 200, len(body) - 1, len(body)])])
            if rng.random() < 0.3:
                select.select([connection], [], [], 1)
            if rng.random() < 0.5:  # with a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _never_read(self, rng: random.Random) -> None:
        connection = self._hold(b"", 4096)
        for _ in range(rng.randint(1, 20)):
            self.sent += 10
            self._send(connection, _request("GET", "/static/style.css", []) * 10)

    def _editor(self, rng: random.Random) -> None:
        """Strokes of one editor, each of which replaces the one before."""
        headers = ["Content-Type: multipart/form-data; boundary=B", f"Content-Length: {len(_NOISE)}", f"Gleansr-Editor: tab-{rng.random()}"]
        data = _request("POST", "/v1/upscale", [*(one.replace(".", "") for one in headers), "Connection: close"]) + _NOISE
        connections = [_connected(self.service) for _ in range(rng.randint(2, 6))]
        for connection in connections:
            self._send(connection, data)
        for connection in connections:
            status = self._answer(connection, "POST", data)
            if status not in (200, 408, 409, 429, None):
                finding(self.counts, f"a replaced stroke is answered {status}", data)
            connection.close()

    def _ask(self, method: str, data: bytes, *, end: bool = False) -> None:
        with _connected(self.service) as connection:
            self._send(connection, data)
            if end and select.select([connection], [], [], 0.05)[0] == []:
                connection.shutdown(socket.SHUT_WR)
            self._answer(connection, method, data)

    def _send(self, connection: socket.socket, data: bytes) -> None:
        self.sent += 1
        connection.settimeout(0.2)  # whoever does not read is not read from
        try:
            connection.sendall(data)
        except OSError:
            self.counts["(hung up on while sending)"] += 1

    def _hold(self, data: bytes, buffer: int = 0) -> socket.socket:
        connection = _connected(self.service, buffer)
        self._send(connection, data)
        self.held.append(connection)
        return connection

    def _answer(self, connection: socket.socket, method: str, data: bytes) -> int | None:
        """The status of the first answer. All have to be whole, and the connection has to end."""
        contents, reset = b"", False
        connection.settimeout(PATIENCE)
        try:
            while part := connection.recv(2**16):
                contents += part
        except TimeoutError:
            finding(self.counts, "neither answered nor hung up on", data)
        except OSError:
            reset = True
        try:
            statuses = _parsed(method, contents)
        except (h11.RemoteProtocolError, ValueError) as error:
            if not reset:
                finding(self.counts, f"an answer is not whole: {error}", data)
            return None
        for status in statuses:
            self.counts[f"({status})"] += 1
            if status not in _STATUSES or status == PROBLEMS["failed"][0]:
                finding(self.counts, f"an answer of status {status}", data)
        return next((status for status in statuses if status != 100), None)


def _parsed(method: str, contents: bytes) -> list[int]:
    """The statuses of all answers in `contents`, or the error of the first that is not whole. After one for what was no request, or for
    another one than was meant, the rest may be of any kind."""
    statuses = []
    while contents:
        head, _, rest = contents.partition(b"\r\n\r\n")
        client = h11.Connection(h11.CLIENT)
        client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
        client.receive_data(head + b"\r\n\r\n")
        response = client.next_event()
        if not isinstance(response, h11.Response | h11.InformationalResponse):
            raise ValueError(f"half a head: {head[:100]!r}")
        statuses.append(response.status_code)
        lengths = [int(value) for name, value in response.headers if name == b"content-length"]
        bodiless = isinstance(response, h11.InformationalResponse) or response.status_code == 304
        if not bodiless and not lengths:
            raise ValueError("no Content-Length")
        length = 0 if bodiless or (method == "HEAD" and rest[:1] != b"{") else lengths[0]
        if len(rest) < length and method != "HEAD":
            raise ValueError(f"{len(rest)} of {length} bytes")
        contents = rest[length:]
    return statuses


def _request(method: str, path: str, headers: list[str], version: str = "1.1") -> bytes:
    host = [] if any(line.startswith("Host") for line in headers) else ["Host: 127.0.0.1"]
    return "\r\n".join([f"{method} {path} HTTP/{version}", *host, *headers, "", ""]).encode("latin-1")


def _damaged(rng: random.Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        start = rng.randrange(len(damaged) + 1)
        end = min(len(damaged), start + rng.choice([1, 1, 4, 50]))
        damaged[start:end] = rng.choice([b"", rng.randbytes(end - start), damaged[start:end] * 2, b"\r\n", b"\0"])
    return bytes(damaged[: rng.randrange(len(damaged) + 1)] if rng.random() < 0.2 else damaged)


def _odd_form(rng: random.Random) -> bytes:
    """Many parts, parts with many or long headers, long values, of names that are known or not."""
    body = b""
    for _ in range(rng.choice([1, 2, 500])):
        name = rng.choice([b"fit", b"model", b"format", b"image", b"edited", b"strength", b"box", b"x" * rng.choice([1, 5000, 100_000])])
        file = rng.choice([b"", b'; filename="a.png"', b"; filename*=UTF-8''a"])
        more = b"A: b\r\n" * rng.choice([0, 0, 3, 1000])
        value = rng.choice([b"", b"1", b"crop", b"0,0,64", b"\xff", b"\r" * 500, b"\r\n--" * 500, b"[" * 100_000, b"9" * 900])
        body += b"--B\r\n" + more + b'Content-Disposition: form-data; name="' + name + b'"' + file + b"\r\n\r\n" + value + b"\r\n"
    return body + rng.choice([b"--B--\r\n", b"--B--", b"", b"--B--\r\nmore" * 100])


def _connected(service: Running, buffer: int = 0) -> socket.socket:
    connection = socket.socket()
    if buffer:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(PATIENCE)
    connection.connect(("127.0.0.1", service.port))
    return connection


def _be_good(service: Running) -> int | None:
    """The status that a client gets that does nothing wrong."""
    headers = ["Content-Type: multipart/form-data; boundary=B", f"Content-Length: {len(_FORM)}", "Connection: close"]
    with _connected(service) as connection:
        contents = b""
        try:
            connection.sendall(_request("POST", "/v1/upscale", headers) + _FORM)
            while part := connection.recv(2**16):
                contents += part
            return next(iter(_parsed("POST", contents)), None)
        except (OSError, h11.RemoteProtocolError, ValueError):
            return None


def _check_good(service: Running, counts: Counter[str]) -> None:
    """It may be refused for a moment, as "busy"."""
    end = time.monotonic() + PATIENCE
    while (status := _be_good(service)) != 200 and time.monotonic() < end:
        counts[f"(a good client first got {status})"] += 1
        time.sleep(0.2)
    if status != 200:
        finding(counts, f"a good client is not served but gets {status}", service.said.encode())


def _check_rest(service: Running, counts: Counter[str], files: int, memory: int) -> None:
    end = time.monotonic() + PATIENCE
    while _files(service) > files + 4 and time.monotonic() < end:
        time.sleep(0.1)
    if _files(service) > files + 4:
        finding(counts, f"{_files(service)} files are open, before {files}")
    if _memory(service) > memory + 200 * 2**10:
        finding(counts, f"{_memory(service)} KiB of memory are taken, before {memory}")


def _files(service: Running) -> int:
    folder = Path(f"/proc/{service.process.pid}/fd")
    return len(list(folder.iterdir())) if folder.is_dir() else 0


def _memory(service: Running) -> int:
    """KiB."""
    status = Path(f"/proc/{service.process.pid}/status")
    found = re.search(r"VmRSS:\s+(\d+)", status.read_text()) if status.exists() else None
    return int(found[1]) if found else 0
