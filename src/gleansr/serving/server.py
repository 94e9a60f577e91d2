"""The process: models, socket, signals."""

import asyncio
import logging
import signal
import socket
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

import uvicorn

from gleansr.errors import RequestError
from gleansr.inference.upscaler import Upscaler, load
from gleansr.serving.app import App
from gleansr.serving.config import ServingConfig
from gleansr.serving.connections import Connection, Connections, Http


def load_models(config: ServingConfig, fetch: Callable[[str], Path]) -> dict[str, Upscaler]:
    """The models by the names that requests give: that of a named model, or what a file says of itself.

    `fetch` finds the file of a model. Raises RequestError for a model that cannot be served.
    """
    models: dict[str, Upscaler] = {}
    for given in config.models:
        upscaler = load(fetch(given), device=config.device, precision=config.precision)
        name = upscaler.about.name or Path(given).stem
        if upscaler.input_size is None:
            raise RequestError(
                f"{given}: {upscaler.method.name} takes images of any size; only models with an input size are served, a GLEAN"
            )
        if name in models:
            raise RequestError(f"{given}: another model is called {name!r} too; leave one out of --models")
        models[name] = upscaler
    return models


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises RequestError where that is not possible."""
    try:
        # The protocol is named so that asyncio switches Nagle's algorithm off, which delays each answer by 40 ms.
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            if sys.platform != "win32":  # where it would let others take the port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise RequestError(f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --host or --port") from None
    return listener


def run(config: ServingConfig, models: Mapping[str, Upscaler], listener: socket.socket, started: Callable[[str], None]) -> App:
    """Serves until SIGTERM or SIGINT, then answers what was let in. `started` is told the address when requests are welcome."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    access = logging.getLogger("gleansr.access")
    access.setLevel(logging.INFO)
    access.addHandler(handler)
    # What is sent comes from anybody, and what is wrong with it is told to them.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").addFilter(_not_of_clients)
    warnings.filterwarnings("ignore", module="PIL")
    app = App(config, models)
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    settings = uvicorn.Config(
        app,
        loop="asyncio",
        http=Http,
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=int(config.timeout) + 5,
    )
    # uvicorn raises the signal again when it is done, which would count as having been killed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _Server(settings, app, lambda: started(url)).run(sockets=[listener])
    finally:
        access.removeHandler(handler)
    return app


def _not_of_clients(record: logging.LogRecord) -> bool:
    """Without uvicorn's lines on what clients send, of which there can be any number."""
    return not record.getMessage().startswith(("Invalid HTTP request", "Unsupported upgrade request", "No supported WebSocket library"))


class _Server(uvicorn.Server):
    """Says when it has started, and is no longer ready as soon as it is told to stop."""

    def __init__(self, config: uvicorn.Config, app: App, started: Callable[[], None]):
        super().__init__(config)
        self._app, self._tell = app, started
        self._accepting: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # which would accept any number of connections
        self._connections = Connections(self._app.service.config, self._app.service.metrics, self._http)
        self._accepting = [asyncio.create_task(self._connections.accept(listener)) for listener in sockets or []]
        self._tell()

    def _http(self, connection: Connection) -> asyncio.Protocol:
        return Http(self.config, self.server_state, {**self.lifespan.state, "connection": connection})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.service.stopping = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for accepting in self._accepting:
            accepting.cancel()
        if self._accepting:
            await asyncio.wait(self._accepting)
        await super().shutdown(sockets)
        await self._connections.close()
        observed = self._app.observed
        print(f"gleansr: stopped; {observed.answered} of {observed.begun} requests were answered", file=sys.stderr, flush=True)
