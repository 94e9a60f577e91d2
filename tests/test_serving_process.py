"""`gleansr serve` as a process, over sockets: start, signals, clients that go away or never end, load."""

import asyncio
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from serving_parts import blotchy, decoded, encoded, form, painted, problem, save_vivid, thumbnail

import gleansr.serving
from benchmarks import serving as load
from benchmarks.service import Running, running
from gleansr.cli import main
from gleansr.serving.server import listen


@pytest.fixture(scope="module")
def vivid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vivid(tmp_path_factory.mktemp("model") / "vivid.safetensors")


@pytest.fixture(scope="module")
def service(vivid: Path) -> Iterator[Running]:
    with running("--models", vivid, "--max-bytes", "1000000", OMP_NUM_THREADS="1") as service:
        yield service


def head(length: int | None, path: str = "/v1/upscale") -> bytes:
    """Of a request whose body is a form, in chunks where there is no length."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=edge\r\n{size}\r\n\r\n".encode()


def received(connection: socket.socket) -> bytes:
    """All bytes until the other side closes."""
    contents = b""
    while part := connection.recv(2**16):
        contents += part
    return contents


def begun(service: Running) -> None:
    """Returns once a request is in progress besides the one that asks."""
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        deadline = time.monotonic() + 30
        while "gleansr_in_flight 2.0" not in client.get("/metrics").text.splitlines():
            assert time.monotonic() < deadline, "the request never began"
            time.sleep(0.01)


def listens(service: Running) -> bool:
    try:
        socket.create_connection(("127.0.0.1", service.port), 1).close()
    except OSError:
        return False
    return True


def test_images_over_a_socket(service: Running, vivid: Path):
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        response = client.post("/v1/upscale", files={"image": encoded(thumbnail(1))})
        assert np.array_equal(decoded(response.content), np.asarray(gleansr.load(vivid)(thumbnail(1))))
        assert problem(client.post("/v1/upscale", files={"image": b"x"}))[0] == 400
        assert problem(client.get("/v1/models", headers={"host": "evil.example"}))[1] == "foreign-host"
        assert problem(client.get("/v1/models", headers={"origin": "https://evil.example"}))[1] == "foreign-origin"
        assert client.get("/v1/models", headers={"origin": service.url}).status_code == 200
        assert "server" not in response.headers


def test_responses_are_not_delayed():
    """Nagle's algorithm would delay the end of each response by 40 ms."""

    async def without_nagle() -> int:
        accepted = asyncio.get_running_loop().create_future()
        with listen("127.0.0.1", 0) as listener:
            address = listener.getsockname()
            async with await asyncio.start_server(lambda _, writer: accepted.set_result(writer), sock=listener):
                _, client = await asyncio.open_connection(*address)
                writer = await accepted
                option = writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                for end in (client, writer):
                    end.close()
                    await end.wait_closed()
        return option

    assert asyncio.run(without_nagle())


def test_an_endless_body_is_answered_while_it_comes(service: Running):
    with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
        connection.sendall(head(None))
        start = form({"image": encoded(thumbnail(1))})[:-12]
        connection.sendall(f"{len(start):x}\r\n".encode() + start + b"\r\n")
        sent = len(start)
        connection.setblocking(False)
        answer, chunk = b"", b"10000\r\n" + bytes(2**16) + b"\r\n"
        while not answer and sent < 2**26:
            try:
                connection.setblocking(True)
                connection.sendall(chunk)
                sent += 2**16
                connection.setblocking(False)
                answer = connection.recv(2**16)
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):  # it was answered, and closed once a megabyte more had come
                break
        connection.setblocking(True)
        while not answer.endswith(b"}") and (more := connection.recv(2**16)):
            answer += more
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"too-many-bytes" in answer
    assert sent < 2**24  # a megabyte, and what sockets hold


def test_disconnected_clients_are_forgotten(service: Running):
    body = form({"image": encoded(thumbnail(1))})
    with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
        connection.sendall(head(len(body)) + body[:100])
        begun(service)
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        for _ in range(1000):
            lines = client.get("/metrics").text.splitlines()
            if 'gleansr_outcomes_total{outcome="client-gone"} 1.0' in lines:
                break
            time.sleep(0.02)
        assert 'gleansr_requests_total{route="/v1/upscale",status="499"} 1.0' in lines
        assert client.post("/v1/upscale", files={"image": encoded(thumbnail(2))}).status_code == 200


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl")
def test_examples_of_the_documentation_work(service: Running, tmp_path: Path):
    mask = Image.new("L", (256, 256))
    mask.paste(255, (60, 60, 120, 120))
    for name, image in {"small": blotchy(1, 8), "original": blotchy(2, 256), "edited": painted(blotchy(2, 256)), "mask": mask}.items():
        image.save(tmp_path / f"{name}.png")
    blotchy(3, 16).save(tmp_path / "photo.jpg")
    text = (Path(__file__).parents[1] / "docs" / "serving.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(commands) >= 7
    for command in commands:
        here = command.replace("http://127.0.0.1:8008", service.url).replace("cats-16x", "vivid")
        subprocess.run([*shlex.split(here), "--silent", "--noproxy", "*"], cwd=tmp_path, check=True, capture_output=True)
    for name, size in {"large.png": (32, 32), "large.jpg": (32, 32), "retouched.png": (256, 256), "shown.png": (256, 256)}.items():
        with Image.open(tmp_path / name) as image:
            assert image.size == size


def test_wrong_options_are_one_line_errors(vivid: Path, service: Running, capsys: pytest.CaptureFixture[str]):
    for options, word in (
        (["--port", str(service.port)], "cannot listen on 127.0.0.1"),
        (["--host", "0.0.0.0", "--port", "0"], "give a token with --token or GLEANSR_TOKEN"),  # noqa: S104
        (["--port", "0", "--models", str(vivid), str(vivid)], "another model has the name 'vivid'"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["serve", "--models", str(vivid), *options])
        said = capsys.readouterr().err
        assert end.value.code == 2
        assert word in said
        assert len(said.splitlines()) == 1


def test_without_the_extra_the_error_names_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "gleansr.serving.server", raising=False)
    monkeypatch.delattr(gleansr.serving, "server", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as end:
        main(["serve", "--port", "0"])
    assert end.value.code == 2
    assert "serving needs uvicorn: pip install 'gleansr[serve]'" in capsys.readouterr().err


def test_load(vivid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """With fewer slots than clients, every response is correct and none is lost at the end."""
    arguments = ["--clients", "5", "--seconds", "1.5", "--queue", "3", "--model", str(vivid), "--json", str(tmp_path / "report.json")]
    monkeypatch.setattr(sys, "argv", ["serving", *arguments])
    with pytest.raises(SystemExit) as end:
        load.main()
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["failures"] == []
    assert end.value.code == 0
    assert report["statuses"]["200"] > 0
    assert report["statuses"]["429"] > 0
    assert set(report["statuses"]) == {"200", "429"}
    assert "| wrong or swapped, lost answers | 0, 0 |" in capsys.readouterr().out


def test_sigterm_waits_for_a_request_in_progress(vivid: Path, service: Running):
    """Must be the last test of this service."""
    body = form({"image": encoded(thumbnail(3))})
    with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
        connection.sendall(head(len(body)) + body[:100])
        begun(service)
        service.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        while listens(service):
            assert time.monotonic() < deadline, "it still listens"
            time.sleep(0.01)
        assert service.process.poll() is None
        connection.sendall(body[100:])
        answer = received(connection)
        assert service.process.wait(20) == 0
    assert answer.startswith(b"HTTP/1.1 200 ")
    image = answer.partition(b"\r\n\r\n")[2]
    assert np.array_equal(decoded(image), np.asarray(gleansr.load(vivid)(thumbnail(3))))
