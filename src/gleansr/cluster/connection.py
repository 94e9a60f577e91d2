"""Connects to a Ray cluster: quietly, and with a time limit."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from gleansr.errors import RequestError

log = logging.getLogger("gleansr.cluster")

ANSWER_SECONDS = 5.0
"""Seconds for a cluster's port to answer. It usually answers in milliseconds."""
_JOIN_SECONDS = 60.0
"""Seconds to join a cluster that answers."""

_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""Start of an HTTP/2 connection (RFC 9113, section 3.4), as gRPC sends it: the preface and an empty SETTINGS frame."""
_SETTINGS = 4
"""Type of a server's first frame."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's C++ code writes to stderr whatever Python's log level
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # otherwise a thread that outlives the connection starts a cluster
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the future default; otherwise Ray warns
}


def ray_module() -> ModuleType:
    """Imports Ray with Ray Data, silenced unless the environment sets otherwise. Raises RequestError if Ray is not installed."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RequestError(f"clusters require Ray, which cannot be imported ({error}); pip install 'gleansr[ray]'") from error
    return ray


def resolve_address(address: str | None) -> str:
    """The `address` for `ray.init`; "local" for a new cluster.

    Raises:
        RequestError: nothing answers within `ANSWER_SECONDS` seconds.
    """
    requested = address or os.environ.get("RAY_ADDRESS", "")
    if requested == "local":
        return requested
    if requested and requested != "auto":
        if problem := _problem(requested):
            source = "" if address else " (of the environment variable RAY_ADDRESS)"
            raise RequestError(f"no Ray cluster can be used at {requested}{source}: {problem}; --ray without an address starts one local")
        return requested
    local = _local_cluster()
    if local and not _problem(local):
        return "auto"  # Ray sends its token only to a cluster that it finds itself
    if requested == "auto":
        raise RequestError("no Ray cluster runs on this machine; --ray without an address starts one")
    return "local"


@contextmanager
def connect(address: str | None, **options: Any) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at an address (see `ClusterConfig.address`) or to a new one, which ends with the block.

    An existing connection of the process is used and stays open. `options`: for `ray.init`.

    Raises:
        RequestError: Ray is not installed, or the cluster does not answer or rejects the connection.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    resolved = resolve_address(address)
    arguments: dict[str, Any] = {"address": resolved, "log_to_driver": False, "logging_level": logging.CRITICAL, **options}
    if resolved == "local":
        arguments["include_dashboard"] = False
    try:
        with _signal_handlers_kept(), _stderr_discarded():
            if resolved == "local":
                ray.init(**arguments)
            else:
                _check_reachable(ray, resolved)
                _with_timeout(_JOIN_SECONDS, lambda: ray.init(**arguments))
    except Exception as error:  # Ray has many, and Python's
        where = "of this machine" if resolved in ("auto", "local") else f"at {resolved}"
        raise RequestError(f"the Ray cluster {where} cannot be used: {_first_line(error)}") from error
    try:
        with _death_reports_suppressed():
            yield ray
    finally:
        with _signal_handlers_kept():
            ray.shutdown()


def _problem(address: str) -> str | None:
    """The problem with an address; None if a gRPC server answers. `ray.init` itself can wait for ever."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme == "ray":
        return "Ray Data does not support Ray's client; run gleansr on a machine of the cluster, for example by ray job submit"
    try:
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        host, port = None, 0
    if not host or parts.scheme:
        return "an address is HOST:PORT"
    try:
        with socket.create_connection((host, port), timeout=ANSWER_SECONDS / 2) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return None
            connection.settimeout(ANSWER_SECONDS / 2)
            connection.sendall(_HTTP2_PREFACE)
            frame = b""
            while len(frame) < 4 and (more := connection.recv(9)):
                frame += more
    except OSError as error:
        return f"{error.strerror or error}"
    return None if frame[3:4] == bytes([_SETTINGS]) else "the server there is not Ray"


def _check_reachable(ray: ModuleType, address: str) -> None:
    """Raises ConnectionError with the reason, which `ray.init` does not give: it only says, after 20 seconds, that it failed."""
    client = getattr(getattr(ray, "_raylet", None), "GcsClient", None)
    if client is None or address == "auto":
        return
    try:
        _with_timeout(ANSWER_SECONDS, lambda: client(address=address))
    except Exception as error:
        if "authentication" in type(error).__name__.lower():
            remedy = "set RAY_AUTH_MODE=token, and put its token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
            raise ConnectionError(f"it rejects this machine's token, or there is none: {remedy}") from error
        raise ConnectionError(f"no Ray cluster answers there: {_first_line(error)}") from error


def _local_cluster() -> str:
    """Address of the cluster last started or joined on this machine, running or not; empty if none."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108, Ray's session folder
    with suppress(OSError):
        return Path(folder, "ray", "ray_current_cluster").read_text().strip()
    return ""


def _with_timeout(seconds: float, call: Callable[[], object]) -> None:
    """Runs `call` in a thread. Raises its error, or TimeoutError after `seconds`, leaving the thread behind."""
    outcome: list[BaseException | None] = []

    def work() -> None:
        try:
            call()
            outcome.append(None)
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=work, name="gleansr-ray", daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"it answers, but joining it took more than {seconds:g} s")
    if outcome[0]:
        raise outcome[0]


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restores the signal handlers that Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for kind, handler in handlers.items():
            signal.signal(kind, handler)


@contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discards stderr: at any log level, Ray's C++ code first logs the level itself."""
    try:
        stderr = os.dup(2)
    except OSError:  # no stderr
        yield
        return
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


@contextmanager
def _death_reports_suppressed() -> Iterator[None]:
    """Suppresses the paragraphs that Ray prints on the death of each worker, which no option turns off; gleansr reports it itself."""
    worker = sys.modules.get("ray._private.worker")
    original = getattr(worker, "print_to_stdstream", None)
    if worker is None or original is None:  # another version of Ray, which may print them
        yield
        return

    def print_filtered(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if data.get("pid") == "raylet":
            log.debug("%s", "\n".join(data.get("lines", ())))
        else:
            original(data, *args, **options)

    worker.print_to_stdstream = print_filtered  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        worker.print_to_stdstream = original  # pyright: ignore[reportAttributeAccessIssue]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
