"""The server process: loads models, listens, handles signals."""

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
from gleansr.inference.router import AUTO, Models, bundled_models
from gleansr.inference.upscaler import Upscaler, load
from gleansr.serving.app import App
from gleansr.serving.config import ServingConfig
from gleansr.serving.connections import Connection, Connections, Http


def load_models(config: ServingConfig, fetch: Callable[[str], Path]) -> tuple[dict[str, Upscaler], Models | None]:
    """Loads the models, by the name in their file or else the file's name; for "auto" the bundled ones, also as those to choose from.

    `fetch` returns the file of a model. Raises RequestError for a model that cannot be served.
    """
    upscalers: dict[str, Upscaler] = {}
    models = None
    if AUTO in config.models:
        models = Models(device=config.device, precision=config.precision)
        upscalers = {model.name: models[model.name] for model in bundled_models()}
    for model in config.models:
        if model == AUTO:
            continue
        upscaler = load(fetch(model), device=config.device, precision=config.precision)
        name = upscaler.about.name or Path(model).stem
        if upscaler.input_size is None:
            raise RequestError(
                f"{model}: {upscaler.method.name} takes images of any size; only models with an input size are served, a GLEAN"
            )
        if name in upscalers:
            raise RequestError(f"{model}: another model has the name {name!r} too; remove one from --models")
        upscalers[name] = upscaler
    return upscalers, models


def listen(host: str, port: int) -> socket.socket:
    """Opens a listening socket. Raises RequestError if that fails."""
    try:
        # asyncio disables Nagle's algorithm, which delays each response by 40 ms, only if the protocol is explicit.
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE)
        family, socket_type, protocol, _, address = addresses[0]
        listener = socket.socket(family, socket_type, protocol)
        try:
            if sys.platform != "win32":  # there the option lets other programs take the port
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise RequestError(f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --host or --port") from None
    return listener


def run(
    config: ServingConfig,
    upscalers: Mapping[str, Upscaler],
    models: Models | None,
    listener: socket.socket,
    started: Callable[[str], None],
) -> App:
    """Serves until SIGTERM or SIGINT, then answers the admitted requests. Calls `started` with the address when ready."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    access = logging.getLogger("gleansr.access")
    access.setLevel(logging.INFO)
    access.addHandler(handler)
    # Errors in requests are answered, not logged.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
    logging.getLogger("uvicorn.error").addFilter(_not_a_client_error)
    warnings.filterwarnings("ignore", module="PIL")
    app = App(config, upscalers, models)
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
    # uvicorn raises the signal again at its end, which would kill the process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        _Server(settings, app, lambda: started(url)).run(sockets=[listener])
    finally:
        access.removeHandler(handler)
    return app


def _not_a_client_error(record: logging.LogRecord) -> bool:
    """Filters out uvicorn's messages about invalid requests, whose number is unlimited."""
    return not record.getMessage().startswith(("Invalid HTTP request", "Unsupported upgrade request", "No supported WebSocket library"))


class _Server(uvicorn.Server):
    """Accepts connections itself, calls `started`, and is no longer ready after the first signal."""

    def __init__(self, config: uvicorn.Config, app: App, started: Callable[[], None]):
        super().__init__(config)
        self._app, self._started = app, started
        self._accept_tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # uvicorn's own accepting has no limits
        self._connections = Connections(self._app.service.config, self._app.service.metrics, self._http)
        self._accept_tasks = [asyncio.create_task(self._connections.accept(listener)) for listener in sockets or []]
        self._started()

    def _http(self, connection: Connection) -> asyncio.Protocol:
        return Http(self.config, self.server_state, {**self.lifespan.state, "connection": connection})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._app.service.stopping = True
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accept_tasks:
            task.cancel()
        if self._accept_tasks:
            await asyncio.wait(self._accept_tasks)
        await super().shutdown(sockets)
        await self._connections.close()
        requests = self._app.requests
        print(f"gleansr: stopped; {requests.answered} of {requests.total} requests were answered", file=sys.stderr, flush=True)
