"""Processes requests: admission, reading, preparation, a batched forward pass, finishing; aborts them at any stage."""

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote

import torch
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gleansr.errors import GleansrError
from gleansr.inference.router import GENERAL, Models
from gleansr.inference.upscaler import Upscaler
from gleansr.serving import endpoints, forms
from gleansr.serving.admission import PROGRESS_BYTES, Admission, Progress, Ticket
from gleansr.serving.config import ServingConfig
from gleansr.serving.metrics import Metrics
from gleansr.serving.middleware import limited_body
from gleansr.serving.problems import Problem
from gleansr.serving.worker import ForwardResult, ModelWorker

log = logging.getLogger("gleansr.serving")


_GONE = "the connection was closed before the response was ready"

RESULT_SHARE = 4
"""A result may have so many times the pixels of an image."""
LARGE = 2**22
"""Pixels of a request above which its memory is returned to the system at once."""


class Service:
    """Serves models. Runs on the event loop, except for the work on images, which must not block it."""

    def __init__(self, config: ServingConfig, upscalers: Mapping[str, Upscaler], models: Models | None = None):
        """As `make_endpoints`."""
        self.config, self.upscalers, self.models = config, upscalers, models
        self.upscaling, self.retouching = endpoints.make_endpoints(upscalers, models, RESULT_SHARE * config.max_pixels)
        self.metrics = Metrics()
        self.worker = ModelWorker(config.batch_size, self.metrics)
        self.admission = Admission(config.queue, config.max_bytes, config.max_pixels, self._estimate_seconds)
        self._recent_seconds = 0.0  # moving average per request
        self._named: dict[str, Ticket] = {}  # requests that have a name, by which their progress is asked for
        # Each thread uses one core, beside the forward pass.
        threads = max(2, min(16, torch.get_num_threads()))
        self._pool = ThreadPoolExecutor(threads, "gleansr-images", lambda: torch.set_num_threads(1))
        # Photos take minutes: one at a time, in another thread, so that thumbnails never wait for them.
        self._photo_pool = ThreadPoolExecutor(1, "gleansr-photos", lambda: torch.set_num_threads(1))
        self._worker_task: asyncio.Task[None] | None = None
        self.stopping = False
        """Whether the service ends once all admitted requests are answered."""

    @property
    def ready(self) -> bool:
        """Whether the service accepts requests."""
        return self._worker_task is not None and not self._worker_task.done() and not self.stopping

    async def start(self) -> None:
        general = [self.models[GENERAL]] if self.models else []
        await self.worker.warm_up([*self.upscalers.values(), *general])
        name, upscaler = next(iter(self.upscalers.items()))
        await asyncio.get_running_loop().run_in_executor(self._pool, endpoints.warm_up, self.retouching, name, upscaler)
        self._worker_task = asyncio.create_task(self.worker.run())

    async def stop(self) -> None:
        """Stops the worker, after all requests are answered."""
        self.stopping = True
        if self._worker_task:
            self._worker_task.cancel()
            await asyncio.wait({self._worker_task})
        self.worker.close()
        for pool in (self._pool, self._photo_pool):
            pool.shutdown(cancel_futures=True)

    async def answer(self, request: Request, endpoint: endpoints.Endpoint) -> Response:
        """Raises Problem."""
        forms.check_content_type(request)
        name = _random_name(request, "Gleansr-Progress")
        with self.admission.enter(_random_name(request, "Gleansr-Editor")) as ticket:
            if name:
                self._named[name] = ticket
            task = asyncio.create_task(self._process(request, endpoint, ticket))
            timer = asyncio.get_running_loop().call_later(self.config.timeout, self._abort, ticket)
            started = time.perf_counter()
            self._check_upload(ticket)
            try:
                await asyncio.wait({task, ticket.stopped}, return_when=asyncio.FIRST_COMPLETED)
                if ticket.stopped.done():  # the cause, if the task failed too
                    raise ticket.stopped.result()
                response = task.result()
                self._recent_seconds += 0.2 * (time.perf_counter() - started - self._recent_seconds)
                return response
            finally:
                timer.cancel()
                if name and self._named.get(name) is ticket:
                    del self._named[name]
                if ticket.n_pixels > LARGE:
                    self._pool.submit(endpoints.release_memory)
                task.cancel()
                await asyncio.wait({task})
                if not task.cancelled():
                    task.exception()  # asyncio logs exceptions that are never retrieved

    def progress(self, name: str) -> Progress:
        """How far the request of that name is."""
        ticket = self._named.get(name)
        return ticket.progress if ticket else Progress("unknown")

    def _estimate_seconds(self, requests: int) -> float:
        """Estimated time for a number of requests: their forward passes, or, if longer, the duration of recent requests."""
        return max(self.worker.estimate_seconds(requests), self._recent_seconds)

    async def _process(self, request: Request, endpoint: endpoints.Endpoint, ticket: Ticket) -> Response:
        started = time.perf_counter()
        try:
            form = await forms.read(request, limited_body(request, self.config.max_bytes, ticket), endpoint.fields)
        except ClientDisconnect:
            raise Problem("client-gone", _GONE) from None
        ticket.received = True
        self.metrics.seconds.labels("reading").observe(time.perf_counter() - started)
        values = form.values
        watch = asyncio.create_task(self._watch(request, ticket))
        try:
            images = await self._in(self._pool, "decoding", self._decode, form, endpoint, ticket)
            del form
            photo = endpoint.is_photo(images, values)
            pool = self._photo_pool if photo else self._pool
            ticket.progress = Progress("waiting")
            prepared = await self._in(pool, "preparing", self._prepare, endpoint, images, values, ticket)
            del images
            outputs = await self._forward(prepared, ticket)
            tiled = photo and _objects(prepared) == len(prepared.lrs)
            ticket.progress = Progress("background" if tiled else "finishing")
            result = await self._in(pool, "finishing", self._finish, prepared, outputs, values, _accepts_json(request))
        finally:
            watch.cancel()
        return Response(result.contents, headers=result.headers, media_type=result.media_type)

    def _decode(self, form: forms.Form, endpoint: endpoints.Endpoint, ticket: Ticket) -> endpoints.Images:
        """Also reserves memory for the result, whose pixels take a quarter of those of an image that is processed."""
        images = endpoints.decode_all(form, self.config.max_pixels, partial(ticket.hold, 0))
        pixels, limit = endpoint.result_pixels(images, form.values), RESULT_SHARE * self.config.max_pixels
        if pixels > limit:
            raise Problem("too-many-pixels", f"the result would have {pixels} pixels, more than {limit}; send a lower scale")
        ticket.hold(0, pixels // RESULT_SHARE)
        return images

    def _prepare(
        self, endpoint: endpoints.Endpoint, images: endpoints.Images, values: endpoints.Values, ticket: Ticket
    ) -> endpoints.PreparedRequest:
        ticket.progress = Progress("searching")
        prepared = endpoint.prepare(images, values, partial(_tell, ticket))
        if prepared.lrs:
            objects = _objects(prepared)
            ticket.progress = Progress("objects", 0, objects) if objects else Progress("background")
        return prepared

    async def _forward(self, prepared: endpoints.PreparedRequest, ticket: Ticket) -> list[ForwardResult]:
        """The forward passes of a request, which may share batches with each other and with those of other requests."""
        inputs = zip(prepared.upscalers, prepared.lrs, strict=True)
        done = itertools.count(1)

        async def forward(upscaler: Upscaler, lr: torch.Tensor) -> ForwardResult:
            result = await self.worker.forward(upscaler, lr, ticket.start_forward)
            if objects := _objects(prepared):
                ticket.progress = Progress("objects", next(done), objects)
            return result

        try:
            async with asyncio.TaskGroup() as group:
                passes = [group.create_task(forward(upscaler, lr)) for upscaler, lr in inputs]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [one.result() for one in passes]

    def _finish(
        self, prepared: endpoints.PreparedRequest, outputs: Sequence[ForwardResult], values: endpoints.Values, as_json: bool
    ) -> endpoints.EncodedResult:
        model = values["model"]
        try:
            result = prepared.finish([output.sr for output in outputs], [output.note for output in outputs])
            seconds = sum({output.batch: output.seconds for output in outputs}.values())
            own = self.upscalers.get(model)
            names = result.models or ([own.name] if own else [])
            used = ", ".join(model if own and name == own.name else name for name in names)  # a file's model may have no name of its own
            encoded = endpoints.encode(result, prepared, values["format"], used or None, seconds=seconds, as_json=as_json)
        except GleansrError as error:
            log.exception("the result of %s cannot be written", model)
            raise Problem("failed", f"the result cannot be written: {error}") from None
        headers = {**encoded.headers, "Gleansr-Model": quote(used or model)}
        if outputs:
            headers["Gleansr-Seconds"] = f"{seconds:.4f}"
        return replace(encoded, headers=headers)

    async def _in(self, pool: ThreadPoolExecutor, stage: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            result = await asyncio.get_running_loop().run_in_executor(pool, call, *arguments)
        except MemoryError:
            log.exception("out of memory")
            raise Problem("failed", "the service is out of memory; send a smaller image, or try later") from None
        self.metrics.seconds.labels(stage).observe(time.perf_counter() - started)
        return result

    async def _watch(self, request: Request, ticket: Ticket) -> None:
        """Aborts the request when its client disconnects."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.stop(Problem("client-gone", _GONE))

    def _check_upload(self, ticket: Ticket) -> None:
        """Aborts a request whose upload has stalled; otherwise schedules the next check."""
        loop = asyncio.get_running_loop()
        remaining = ticket.last_progress + self.config.stall_timeout - loop.time()
        if ticket.received or not ticket.active:
            return
        if remaining <= 0:
            seconds = f"{self.config.stall_timeout:g} s"
            ticket.stop(Problem("slow-upload", f"less than {PROGRESS_BYTES} bytes of the request came within {seconds}; send it faster"))
        else:
            loop.call_later(remaining, self._check_upload, ticket)

    def _abort(self, ticket: Ticket) -> None:
        limit = f"{self.config.timeout:g} s"
        if ticket.received:
            ticket.stop(Problem("timeout", f"the image was not finished within {limit}; try again when the service is less busy"))
        else:
            ticket.stop(Problem("slow-upload", f"the request did not arrive within {limit}; send a smaller image"))


def _objects(prepared: endpoints.PreparedRequest) -> int:
    """Number of objects that wait for their models; an image that the general model enlarges in one pass is none."""
    return sum(upscaler.input_size is not None for upscaler in prepared.upscalers)


def _tell(ticket: Ticket, done: int, total: int) -> None:
    """Notes that a tile of a photo is finished; ends the work between two tiles, once nobody waits for it."""
    if not ticket.active:
        raise Problem("client-gone", _GONE)
    ticket.progress = Progress("background", done, total) if done < total else Progress("finishing")


def _accepts_json(request: Request) -> bool:
    """Whether the client asks for JSON rather than for the image."""
    kinds = [kind.partition(";")[0].strip().lower() for kind in request.headers.get("accept", "").split(",")]
    return "application/json" in kinds


def _random_name(request: Request, header: str) -> str | None:
    """The name in a header: of an editor, of whose requests only the newest counts, or of a request, to ask for its progress."""
    name = request.headers.get(header)
    if name is not None and not re.fullmatch("[A-Za-z0-9-]{1,64}", name):
        raise Problem("bad-field", f"{header} is {name[:80]!r}, but must be up to 64 letters, digits and hyphens")
    return name
