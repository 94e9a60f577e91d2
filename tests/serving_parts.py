"""Shared by the tests of the service: a model, images, requests without a server."""

import asyncio
import io
import json
import threading
from collections.abc import Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image, ImageDraw

import gleansr
from gleansr.checkpoints import native
from gleansr.inference.method import ModelOutput, StepReport
from gleansr.inference.upscaler import Upscaler
from gleansr.models.glean import GLEAN, GLEANConfig
from gleansr.models.stylegan2 import StyleGAN2Config
from gleansr.serving.app import App
from gleansr.serving.config import ServingConfig


def save_vivid(path: Path) -> Path:
    """A GLEAN 8 -> 32 as a native file. It is untrained, but its results differ visibly between images."""
    torch.manual_seed(0)
    model = GLEAN(GLEANConfig(8, StyleGAN2Config((8, 8, 6, 4), code_dim=8, mapping_layers=1), n_rrdb=1, features=4, growth=3))
    model.decoder.out.weight.data.mul_(10)
    native.save(path, {"generator": model}, native.About("vivid", "blobs", "CC0-1.0", "nobody"))
    return path


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(contents: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(contents)) as image:
        return np.asarray(image)


def blotchy(seed: int, size: int = 64) -> Image.Image:
    """An image of random smooth colours."""
    seeds = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(seeds).resize((size, size), Image.Resampling.BICUBIC)


def thumbnail(seed: int) -> Image.Image:
    """As `blotchy`, of the model's input size."""
    return blotchy(seed, 8)


def painted(image: Image.Image) -> Image.Image:
    """The image with a spot painted on it."""
    edited = image.copy()
    ImageDraw.Draw(edited).ellipse((20, 24, 34, 36), fill=(250, 20, 40))
    return edited


class Gated:
    """A model whose forward passes wait for a gate and are recorded."""

    def __init__(self, upscaler: Upscaler):
        self._method = upscaler.method
        self.name, self.in_size, self.scale, self.device = "gated", upscaler.input_size, upscaler.scale, upscaler.device
        self.open = threading.Event()
        self.open.set()
        self.begun = threading.Event()
        self.batches: list[int] = []
        self.error: Exception | None = None

    def __call__(self, lr: torch.Tensor, report: StepReport | None = None) -> ModelOutput:
        self.begun.set()
        assert self.open.wait(10)
        self.batches.append(len(lr))
        if self.error:
            raise self.error
        return self._method(lr, report)


def gated(model: Path) -> tuple[Upscaler, Gated]:
    upscaler = gleansr.load(model)
    method = Gated(upscaler)
    return Upscaler(method, upscaler.about), method


@dataclass
class Asked:
    """The service without a socket."""

    app: App
    client: httpx.AsyncClient
    method: Gated

    async def upscale(self, image: Image.Image, **headers: str) -> httpx.Response:
        return await self.client.post("/v1/upscale", files={"image": encoded(image)}, headers=headers)

    async def until(self, waiting: int) -> None:
        """Returns once the given number of images waits for the device."""
        async with asyncio.timeout(10):
            while len(self.app.service.worker) != waiting:
                await asyncio.sleep(0.002)

    async def busy(self, **headers: str) -> "asyncio.Task[httpx.Response]":
        """Sends an image and returns once its forward pass has started; the pass waits for the gate."""
        self.method.open.clear()
        self.method.begun.clear()
        first = asyncio.create_task(self.upscale(thumbnail(99), **headers))
        assert await asyncio.to_thread(self.method.begun.wait, 10)
        self.method.batches.clear()
        return first


@asynccontextmanager
async def asking(model: Path, **config: Any):
    """The service with one gated model, as `Asked`."""
    upscaler, method = gated(model)
    app = App(ServingConfig(**config), {"vivid": upscaler})
    service, transport = app.service, httpx.ASGITransport(app)
    await service.start()
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8008") as client:
            yield Asked(app, client, method)
    finally:
        method.open.set()
        await service.stop()


class Client:
    """The service without a socket, for synchronous tests."""

    def __init__(self, app: App):
        self.app = app
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8008")

    def __enter__(self) -> "Client":
        self._thread.start()
        self._do(self.app.service.start())
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._client.aclose())
        self._do(self.app.service.stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self._do(self._client.get(path, **options))

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self._do(self._client.post(path, **options))

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Calls a function in the service's event loop."""
        self._loop.call_soon_threadsafe(function, *arguments)

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)


def form(files: dict[str, bytes], boundary: str = "edge") -> bytes:
    """The body of a request with these files."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="a.png"\r\n\r\n'.encode() + contents + b"\r\n"
        for name, contents in files.items()
    ]
    return b"".join(parts) + f"--{boundary}--\r\n".encode()


def problem(response: httpx.Response) -> tuple[int, str, str]:
    """Status, name and detail of a response, which must be a problem."""
    assert response.headers["content-type"] == "application/problem+json", response.text
    body = json.loads(response.content)
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == response.status_code
    return response.status_code, body["type"].removeprefix("urn:gleansr:problem:"), body["detail"]
