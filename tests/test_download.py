import hashlib
import re
import shutil
import socket
import ssl
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import filelock
import pytest

from gleansr.checkpoints import download as module
from gleansr.checkpoints.download import MAX_TRIES, MAX_WAIT, download
from gleansr.errors import DownloadError, RequestError

BODY = hashlib.shake_128(b"weights").digest(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()
Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    """Serves the server's body with ranges, unless a scripted answer is due."""

    server: "Server"

    def do_GET(self) -> None:
        self.number = len(self.server.sent)  # an interrupted answer may end after the next one began
        self.server.seen.append(dict(self.headers))
        self.server.sent.append(0)
        if self.server.script:
            self.server.script.pop(0)(self)
        else:
            self.serve()

    def serve(self, *, upto: int | None = None, ranges: bool = True, length: bool = True) -> None:
        body, start = self.server.body, 0
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if ranges and match and self.headers.get("If-Range") == self.server.version:
            start = int(match[1])
            if start >= len(body):
                return self.answer(416, {"Content-Range": f"bytes */{len(body)}"})
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if length:
            self.send_header("Content-Length", str(len(body) - start))
        self.send_header(self.server.version_header, self.server.version)
        self.end_headers()
        self.server.sent[self.number] = len(body[start:upto])  # before the client can have it all
        self.wfile.write(body[start:upto])
        return None

    def answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body = BODY
        self.version_header, self.version = "ETag", '"one"'
        self.script: list[Answer] = []
        self.seen: list[dict[str, str]] = []
        self.sent: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}/weights.pth"


def cut(upto: int) -> Answer:
    return lambda handler: handler.serve(upto=upto)


def status(code: int, **headers: str) -> Answer:
    return lambda handler: handler.answer(code, {name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server, tmp_path):
    """Downloads the server's file; `fetch.waits` are the pauses that were asked for."""

    def call(**options):
        options = {"sha256_prefix": SHA256[:8], "sleep": call.waits.append} | options
        return download(options.pop("url", server.url), tmp_path / "sub" / "weights.pth", **options)

    call.waits = []
    return call


def left(tmp_path) -> set[str]:
    return {path.name for path in (tmp_path / "sub").iterdir()}


def test_brings_the_file_and_leaves_nothing_else(server, fetch, tmp_path):
    steps = []
    path = fetch(size=len(BODY), progress=lambda received, total: steps.append((received, total)))
    assert path.read_bytes() == BODY
    assert left(tmp_path) == {"weights.pth"}
    assert steps == sorted(steps)
    assert steps[-1] == (len(BODY), len(BODY))
    assert not fetch.waits
    fetch()
    assert len(server.seen) == 1, "an existing file is not fetched again"


@pytest.mark.parametrize("version", [("ETag", '"one"'), ("Last-Modified", "Mon, 14 Jun 2021 14:55:40 GMT")])
def test_resumes_where_the_connection_broke(server, fetch, version):
    server.version_header, server.version = version
    server.script = [cut(100_000)]
    steps = []
    assert fetch(progress=lambda received, _: steps.append(received)).read_bytes() == BODY
    assert "Range" not in server.seen[0]
    assert server.seen[1]["Range"] == "bytes=100000-"
    assert server.seen[1]["If-Range"] == server.version
    assert server.sent == [100_000, len(BODY) - 100_000]
    assert steps == sorted(steps)


def test_a_later_call_resumes_after_ctrl_c(server, fetch, tmp_path):
    def interrupt(received: int, _: int | None) -> None:
        if received > 100_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(progress=interrupt)
    kept = (tmp_path / "sub" / "weights.pth.part").stat().st_size
    assert 100_000 < kept < len(BODY)
    assert fetch().read_bytes() == BODY
    assert server.sent[1] == len(BODY) - kept
    assert left(tmp_path) == {"weights.pth"}


def test_each_new_byte_renews_the_tries(server, fetch):
    server.script = [cut(upto) for upto in range(10_000, 10_000 * (MAX_TRIES + 3), 10_000)]
    assert fetch().read_bytes() == BODY
    assert set(fetch.waits) == {1.0}


def test_starts_again_where_the_server_knows_no_ranges(server, fetch):
    server.script = [cut(100_000), lambda handler: handler.serve(ranges=False)]
    assert fetch().read_bytes() == BODY
    assert server.sent == [100_000, len(BODY)]


def test_starts_again_where_the_file_has_changed(server, fetch):
    def cut_and_publish(handler: Handler) -> None:
        server.body, old = BODY, server.body
        server.version = '"two"'
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(old)))
        handler.send_header("ETag", '"one"')
        handler.end_headers()
        handler.wfile.write(old[:100_000])

    server.body = BODY[::-1]
    server.script = [cut_and_publish]
    assert fetch().read_bytes() == BODY
    assert server.seen[1]["If-Range"] == '"one"'


def test_does_not_resume_by_a_weak_etag(server, fetch):
    server.version = 'W/"one"'
    server.script = [cut(100_000)]
    assert fetch().read_bytes() == BODY
    assert "Range" not in server.seen[1]


def test_a_part_of_another_url_or_without_readable_metadata_is_not_continued(server, fetch, tmp_path):
    for metadata in ('{"url": "https://other.example/x", "validator": "\\"one\\""}', "[]", "not json"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        (tmp_path / "sub" / "weights.pth.part").write_bytes(b"x" * 1000)
        (tmp_path / "sub" / "weights.pth.part.json").write_text(metadata)
        assert fetch().read_bytes() == BODY
        assert "Range" not in server.seen[-1]
        (tmp_path / "sub" / "weights.pth").unlink()


def test_a_complete_part_needs_no_more_bytes(server, fetch, tmp_path, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(module.Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert fetch().read_bytes() == BODY
    assert server.sent == [len(BODY), 0]


def test_a_part_beyond_the_end_is_thrown_away(server, fetch, tmp_path):
    server.script = [cut(100_000), status(404)]
    with pytest.raises(DownloadError, match="100,000 bytes are kept"):
        fetch()
    with (tmp_path / "sub" / "weights.pth.part").open("ab") as file:
        file.write(b"x" * len(BODY))
    assert fetch().read_bytes() == BODY
    assert "Range" in server.seen[2]
    assert "Range" not in server.seen[3]


def test_a_wrong_range_is_not_appended(server, fetch):
    def from_the_start(handler: Handler) -> None:
        handler.answer(206, {"Content-Range": f"bytes 0-299999/{len(BODY)}"})
        handler.wfile.write(BODY)

    server.script = [cut(100_000), from_the_start]
    assert fetch().read_bytes() == BODY


def test_wrong_contents_leave_nothing(fetch, tmp_path):
    with pytest.raises(DownloadError, match=f"its SHA-256 is {SHA256}, expected 00000000"):
        fetch(sha256_prefix="00000000")
    assert left(tmp_path) == {"weights.pth.lock"}


def test_a_corrupt_part_is_found_out(server, fetch, tmp_path):
    server.script = [cut(100_000), status(404)]
    with pytest.raises(DownloadError):
        fetch()
    (tmp_path / "sub" / "weights.pth.part").write_bytes(b"x" * 100_000)
    with pytest.raises(DownloadError, match="SHA-256"):
        fetch()
    assert fetch().read_bytes() == BODY


@pytest.mark.parametrize("code", [401, 403, 404, 410])
def test_a_refusal_is_final(server, fetch, code):
    server.script = [status(code)]
    with pytest.raises(DownloadError, match=f"answered {code}") as caught:
        fetch()
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)
    assert len(server.seen) == 1


def test_a_busy_server_is_asked_again(server, fetch):
    server.script = [status(503), status(503)]
    assert fetch().read_bytes() == BODY
    assert fetch.waits == [1.0, 2.0]


def test_a_dead_server_is_given_up(server, fetch):
    server.script = [status(500)] * 99
    with pytest.raises(DownloadError, match="answered 500"):
        fetch()
    assert len(server.seen) == MAX_TRIES


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("86400", MAX_WAIT, MAX_WAIT),
        (30, 5, 30),  # a date so many seconds from then
        ("Mon, 01 Jan 2001 00:00:00 GMT", 1, 1),
        ("soon", 1, 1),
    ],
)
def test_honours_retry_after_within_reason(server, fetch, value, low, high):
    when = value if isinstance(value, str) else format_datetime(datetime.now(UTC) + timedelta(seconds=value), usegmt=True)
    server.script = [status(429, Retry_After=when)]
    assert fetch().read_bytes() == BODY
    assert low <= fetch.waits[0] <= high


def test_a_silent_server_times_out(server, fetch):
    server.script = [lambda _: time.sleep(0.3)]
    assert fetch(timeout=0.1).read_bytes() == BODY
    assert len(server.seen) == 2


def test_follows_a_redirect_with_its_range(server, fetch):
    server.script = [cut(100_000), status(302, Location="/elsewhere")]
    assert fetch().read_bytes() == BODY
    assert server.sent[-1] == len(BODY) - 100_000


@pytest.mark.parametrize("target", ["http://weights.example/x.pth", "http://10.0.0.1/x", "ftp://127.0.0.1/x", "file:///x"])
def test_refuses_a_redirect_that_is_not_https(server, fetch, target):
    server.script = [status(302, Location=target)]
    with pytest.raises(DownloadError, match=r"which is not https|answered 302"):
        fetch()
    assert len(server.seen) == 1


@pytest.mark.parametrize("url", ["http://weights.example/x.pth", "ftp://127.0.0.1/x", "file:///etc/passwd", "x.pth"])
def test_refuses_plain_http(fetch, url):
    with pytest.raises(RequestError, match="only https"):
        fetch(url=url)


@pytest.mark.parametrize("prefix", ["", "abc", "ABCDEF01", "0" * 65])
def test_refuses_a_prefix_that_proves_nothing(fetch, prefix):
    with pytest.raises(RequestError, match="hexadecimal"):
        fetch(sha256_prefix=prefix)


def test_the_size_is_checked_before_the_first_byte(server, fetch):
    with pytest.raises(DownloadError, match="300,000 bytes, expected 299,999"):
        fetch(size=len(BODY) - 1)
    assert len(server.seen) == 1


def test_a_file_without_a_length_is_cut_at_the_limit(server, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 200_000)
    with pytest.raises(DownloadError, match="the limit is 200,000"):
        fetch()
    server.script = [lambda handler: handler.serve(length=False)]
    with pytest.raises(DownloadError, match="larger than 200,000"):
        fetch()
    assert left(tmp_path) == {"weights.pth.lock"}


def test_a_file_without_a_length_arrives(server, fetch):
    server.script = [lambda handler: handler.serve(length=False)]
    assert fetch().read_bytes() == BODY


def test_a_full_disk_is_told_before_the_first_byte(fetch, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1000))
    with pytest.raises(DownloadError, match="only 1,000 free"):
        fetch()
    assert left(tmp_path) == {"weights.pth.lock"}


def test_a_folder_that_cannot_be_made_is_told(fetch, tmp_path):
    (tmp_path / "sub").write_text("a file")
    with pytest.raises(DownloadError, match="cannot write"):
        fetch()


@pytest.mark.parametrize(
    ("error", "words", "tries"),
    [
        (socket.gaierror(-2, "Name or service not known"), "host name was not found", 1),
        (ssl.SSLCertVerificationError(1, "self-signed certificate"), "certificate is not trusted", 1),
        (TimeoutError(), "did not respond for 30 s", MAX_TRIES),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer", MAX_TRIES),
    ],
)
def test_the_network_fails_in_one_clear_line(fetch, monkeypatch, error, words, tries):
    calls = []

    def connect(*_, **__):
        calls.append(1)
        raise error

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(DownloadError, match=words) as caught:
        fetch(url="https://weights.example/x.pth")
    assert "\n" not in str(caught.value)
    assert len(calls) == tries


def test_two_at_once_download_once(server, fetch, monkeypatch):
    both = threading.Barrier(2, timeout=60)

    class Lock(filelock.FileLock):
        def acquire(self, *args, **kwargs):
            both.wait()  # neither thread may find the file before it asks for the lock
            return super().acquire(*args, **kwargs)

    monkeypatch.setattr(filelock, "FileLock", Lock)
    threads = [threading.Thread(target=fetch) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.seen) == 1
    assert fetch().read_bytes() == BODY


def test_a_lock_file_of_a_dead_process_stops_nobody(fetch, tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.pth.lock").touch()
    assert fetch().read_bytes() == BODY
    assert left(tmp_path) == {"weights.pth"}
