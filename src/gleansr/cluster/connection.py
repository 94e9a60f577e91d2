"""Connects to a Ray cluster, with a time limit."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from gleansr.errors import RequestError

_ANSWER_SECONDS = 5.0
"""Seconds for a cluster's port to accept a connection. It usually takes milliseconds."""
_JOIN_SECONDS = 60.0
"""Seconds to join a cluster. Ray itself searches 20 seconds for this machine among its members."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # Ray's C++ code writes to stderr whatever Python's log level
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # otherwise a thread that outlives the connection starts a cluster
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # the future default; otherwise Ray warns
}


def ray_module() -> ModuleType:
    """Imports Ray with Ray Data, with the settings of `_ENVIRONMENT` as defaults. Raises RequestError if Ray is not installed."""
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
        RequestError: nothing accepts connections at the address within `_ANSWER_SECONDS` seconds.
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
    options = {"log_to_driver": False, "logging_level": logging.CRITICAL, **options}
    try:
        if resolved == "local":
            _start(ray, options)
        else:
            _join(ray, resolved, options)
    except Exception as error:  # Ray has many, and Python's
        where = "of this machine" if resolved in ("auto", "local") else f"at {resolved}"
        raise RequestError(f"the Ray cluster {where} cannot be used: {_first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _start(ray: ModuleType, options: dict[str, Any]) -> None:
    """Starts a cluster. In this thread, because the cluster ends with the thread that starts it; Ray has time limits for it."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init("local", include_dashboard=False, **options)
    finally:
        if signal.getsignal(signal.SIGTERM) != handler:  # Ray replaces it in the main thread
            signal.signal(signal.SIGTERM, handler)


def _join(ray: ModuleType, address: str, options: dict[str, Any]) -> None:
    """Joins a cluster. In a thread, which is left behind after `_JOIN_SECONDS`: Ray waits for minutes where a server is not Ray."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            ray.init(address, **options)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="gleansr-ray", daemon=True)
    elsewhere = os.environ.pop("RAY_ADDRESS", None) if address == "auto" else None  # Ray would join that cluster instead
    try:
        thread.start()
        thread.join(_JOIN_SECONDS)
    finally:
        if elsewhere is not None:
            os.environ["RAY_ADDRESS"] = elsewhere
    if thread.is_alive():
        raise TimeoutError(f"joining it took more than {_JOIN_SECONDS:g} s; is the server there the head of a Ray cluster?")
    if errors:
        raise ConnectionError(f"{_first_line(errors[0])}; if it requires a token, set RAY_AUTH_MODE=token") from errors[0]


def _problem(address: str) -> str | None:
    """The problem with an address; None if something accepts connections there. `ray.init` itself waits for minutes."""
    if address.startswith("ray://"):
        return "Ray Data does not support Ray's client; run gleansr on a machine of the cluster, for example by ray job submit"
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        return "an address is HOST:PORT"
    try:
        socket.create_connection((host, port), timeout=_ANSWER_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _local_cluster() -> str:
    """Address of the cluster last started or joined on this machine, running or not; empty if none."""
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108, Ray's session folder
    with suppress(OSError):
        return Path(folder, "ray", "ray_current_cluster").read_text().strip()
    return ""


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
