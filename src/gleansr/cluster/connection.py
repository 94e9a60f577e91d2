"""To a Ray cluster and back: one that answers, quietly, and not for longer than needed."""

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

PATIENCE = 5.0
"""Seconds for a cluster's port to answer. One that does answers in milliseconds."""
_JOINING = 60.0
"""Seconds to become a member of a cluster that answers."""

_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""How a client of HTTP/2 begins (RFC 9113, section 3.4), as gRPC does: the preface and an empty frame of settings."""
_SETTINGS = 4
"""The type of a server's first frame."""

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its C++ parts write to our stderr whatever Python's loggers say
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # otherwise a thread of its own that outlives the connection starts a cluster
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the coming behaviour, of which it would warn
}


def ray_module() -> ModuleType:
    """Ray with Ray Data, silent unless the environment says otherwise. Raises RequestError where it is not installed."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RequestError(f"clusters need Ray, which cannot be imported ({error}): pip install 'gleansr[ray]'") from error
    return ray


def find(address: str | None) -> str:
    """What `ray.init` is to be given for this address; "local" for a new cluster.

    Raises:
        RequestError: nothing answers there, within `PATIENCE`.
    """
    given = address or os.environ.get("RAY_ADDRESS", "")
    if given == "local":
        return given
    if given and given != "auto":
        if problem := _silence(given):
            source = "" if address else " (of the environment variable RAY_ADDRESS)"
            raise RequestError(f"no Ray cluster can be used at {given}{source}: {problem}; --ray without an address starts one here")
        return given
    here = _here()
    if here and not _silence(here):
        return "auto"  # not its address: Ray shows its token only to a cluster that it finds itself
    if given == "auto":
        raise RequestError("no Ray cluster runs on this machine; --ray without an address starts one")
    return "local"


@contextmanager
def connected(address: str | None, **more: Any) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at an address (see `ClusterConfig.address`), or to a new one that ends with the block.

    A connection that the process has already is used, and left as it is. `more`: for `ray.init`.

    Raises:
        RequestError: Ray is not installed, or the cluster does not answer or does not take us.
    """
    ray = ray_module()
    if ray.is_initialized():
        yield ray
        return
    found = find(address)
    options: dict[str, Any] = {"address": found, "log_to_driver": False, "logging_level": logging.CRITICAL, **more}
    if found == "local":
        options["include_dashboard"] = False
    try:
        with _handlers_kept(), _hushed():
            if found == "local":
                ray.init(**options)
            else:
                _ask(ray, found)
                _within(_JOINING, lambda: ray.init(**options))
    except Exception as error:  # Ray has many, and Python's
        where = "of this machine" if found in ("auto", "local") else f"at {found}"
        raise RequestError(f"the Ray cluster {where} cannot be used: {_first_line(error)}") from error
    try:
        with _without_reports():
            yield ray
    finally:
        with _handlers_kept():
            ray.shutdown()


def _silence(address: str) -> str | None:
    """What is wrong with an address; None if a gRPC server answers there. `ray.init` itself may wait for it for ever."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    if parts.scheme == "ray":
        return "Ray Data does not work through Ray's client; run gleansr on a machine of the cluster, such as by ray job submit"
    try:
        host, port = parts.hostname, parts.port or 6379
    except ValueError:
        host, port = None, 0
    if not host or parts.scheme:
        return "an address is HOST:PORT"
    try:
        with socket.create_connection((host, port), timeout=PATIENCE / 2) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return None
            connection.settimeout(PATIENCE / 2)
            connection.sendall(_GREETING)
            frame = b""
            while len(frame) < 4 and (more := connection.recv(9)):
                frame += more
    except OSError as error:
        return f"{error.strerror or error}"
    return None if frame[3:4] == bytes([_SETTINGS]) else "what answers there is not Ray"


def _ask(ray: ModuleType, address: str) -> None:
    """Raises what is wrong with a cluster, of which `ray.init` says after 20 seconds only that it failed."""
    client = getattr(getattr(ray, "_raylet", None), "GcsClient", None)
    if client is None or address == "auto":
        return
    try:
        _within(PATIENCE, lambda: client(address=address))
    except Exception as error:
        if "authentication" in type(error).__name__.lower():
            needed = "set RAY_AUTH_MODE=token, and have its token in ~/.ray/auth_token or RAY_AUTH_TOKEN"
            raise ConnectionError(f"it does not take this machine's token, if there is one: {needed}") from error
        raise ConnectionError(f"no Ray cluster answers there: {_first_line(error)}") from error


def _here() -> str:
    """The address of the cluster that was last started or joined on this machine, whether it still runs or not; empty if there is none."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108, where Ray has its sessions
    with suppress(OSError):
        return Path(folder, "ray", "ray_current_cluster").read_text().strip()
    return ""


def _within(seconds: float, call: Callable[[], object]) -> None:
    """Calls in a thread, which is left behind if it takes longer. Raises TimeoutError then, otherwise what the call raises."""
    ended: list[BaseException | None] = []

    def work() -> None:
        try:
            call()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work, name="gleansr-ray", daemon=True)
    thread.start()
    thread.join(seconds)
    if not ended:
        raise TimeoutError(f"it answers, but has not taken us within {seconds:g} s")
    if ended[0]:
        raise ended[0]


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray puts its own handlers of signals in the place of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    kept = {kind: signal.getsignal(kind) for kind in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for kind, handler in kept.items():
            signal.signal(kind, handler)


@contextmanager
def _hushed() -> Iterator[None]:
    """Without stderr: that a level of its log was asked for is the first thing that Ray's C++ parts log, at any level."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _without_reports() -> Iterator[None]:
    """Without the paragraphs that Ray prints on the death of each worker, which no option of its own turns off; we tell of it ourselves."""
    worker = sys.modules.get("ray._private.worker")
    shown = getattr(worker, "print_to_stdstream", None)
    if worker is None or shown is None:  # another version, which may print them
        yield
        return

    def told(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if data.get("pid") == "raylet":
            log.debug("%s", "\n".join(data.get("lines", ())))
        else:
            shown(data, *args, **options)

    worker.print_to_stdstream = told  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        worker.print_to_stdstream = shown  # pyright: ignore[reportAttributeAccessIssue]


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
