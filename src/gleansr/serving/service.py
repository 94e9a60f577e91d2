"""A request's way: let in, read, prepared, through the model with others, put together, answered; or given up at any of these."""

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import quote

import torch
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gleansr.errors import GleansrError
from gleansr.inference.upscaler import Upscaler
from gleansr.serving import forms, jobs
from gleansr.serving.admission import PIECE, Admission, Ticket
from gleansr.serving.config import ServingConfig
from gleansr.serving.limits import bounded
from gleansr.serving.metrics import Metrics
from gleansr.serving.problems import Problem
from gleansr.serving.worker import ModelWorker, Refined

log = logging.getLogger("gleansr.serving")


_GONE = "the connection was closed before the answer was ready"

LARGE = 2**22
"""Pixels of a request above which its memory is returned to the system at once."""


class Service:
    """Serves models. Everything but the work on images happens on the event loop, which is never kept."""

    def __init__(self, config: ServingConfig, models: Mapping[str, Upscaler]):
        self.config, self.models = config, models
        self.metrics = Metrics()
        self.worker = ModelWorker(models, config.batch_size, self.metrics)
        self.admission = Admission(config.queue, config.max_bytes, config.max_pixels, self._seconds_for)
        self._lately = 0.0  # seconds that a request takes
        # Each keeps to one core: the others are for the forward pass.
        threads = max(2, min(16, torch.get_num_threads()))
        self._pool = ThreadPoolExecutor(threads, "gleansr-images", lambda: torch.set_num_threads(1))
        self._working: asyncio.Task[None] | None = None
        self.stopping = False
        """Whether the service ends as soon as everything that was let in is answered."""

    @property
    def ready(self) -> bool:
        """Whether more requests are welcome."""
        return self._working is not None and not self._working.done() and not self.stopping

    async def start(self) -> None:
        await self.worker.warm_up()
        await asyncio.get_running_loop().run_in_executor(self._pool, jobs.warm_up, next(iter(self.models.values())))
        self._working = asyncio.create_task(self.worker.run())

    async def stop(self) -> None:
        """To be called when all requests are answered."""
        self.stopping = True
        if self._working:
            self._working.cancel()
            await asyncio.wait({self._working})
        self.worker.close()
        self._pool.shutdown(cancel_futures=True)

    async def answer(self, request: Request, kind: jobs.RequestKind) -> Response:
        """Raises Problem."""
        forms.check_content_type(request)
        with self.admission.enter(_editor(request)) as ticket:
            work = asyncio.create_task(self._work(request, kind, ticket))
            timer = asyncio.get_running_loop().call_later(self.config.timeout, self._give_up, ticket)
            started = time.perf_counter()
            self._check_upload(ticket)
            try:
                await asyncio.wait({work, ticket.stopped}, return_when=asyncio.FIRST_COMPLETED)
                if ticket.stopped.done():  # first, since the work may have failed because of it
                    raise ticket.stopped.result()
                response = work.result()
                self._lately += 0.2 * (time.perf_counter() - started - self._lately)
                return response
            finally:
                timer.cancel()
                if ticket.pixels > LARGE:
                    self._pool.submit(jobs.give_back_memory)
                work.cancel()
                await asyncio.wait({work})
                if not work.cancelled():
                    work.exception()  # or asyncio complains that nobody asked

    def _seconds_for(self, requests: int) -> float:
        """How long so many requests take: their forward passes, or, where other work takes longer, as long as the last ones took."""
        return max(self.worker.seconds_for(requests), self._lately)

    async def _work(self, request: Request, kind: jobs.RequestKind, ticket: Ticket) -> Response:
        started = time.perf_counter()
        try:
            form = await forms.read(request, bounded(request, self.config.max_bytes, ticket), kind.fields)
        except ClientDisconnect:
            raise Problem("client-gone", _GONE) from None
        ticket.arrived = True
        self.metrics.seconds.labels("reading").observe(time.perf_counter() - started)
        model, kind_of_file = form.values["model"], form.values["format"]
        watching = asyncio.create_task(self._watch(request, ticket))
        try:
            hold = partial(ticket.hold, 0)
            ready = await self._in_pool("preparing", kind.prepare, form, self.models[model], self.config.max_pixels, hold)
            del form
            refined = None if ready.lr is None else await self.worker.refine(model, ready.lr, ticket.refining)
            answer = await self._in_pool("finishing", self._finish, ready, refined, kind_of_file, model)
        finally:
            watching.cancel()
        headers = {**answer.headers, "Gleansr-Model": quote(model)}
        if refined:
            headers["Gleansr-Seconds"] = f"{refined.seconds:.4f}"
        return Response(answer.contents, headers=headers, media_type=answer.media_type)

    def _finish(self, ready: jobs.Ready, refined: Refined | None, kind_of_file: jobs.Format, model: str) -> jobs.Answer:
        try:
            image = ready.finish(refined and refined.sr)
            return jobs.write(image, ready, kind_of_file, self.models[model].about.name)
        except GleansrError as error:
            log.exception("the result of %s cannot be written", model)
            raise Problem("failed", f"the result cannot be written: {error}") from None

    async def _in_pool(self, stage: str, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._pool, call, *arguments)
        except MemoryError:
            log.exception("the memory did not suffice")
            raise Problem("failed", "the service is short of memory; send a smaller image, or try later") from None
        self.metrics.seconds.labels(stage).observe(time.perf_counter() - started)
        return result

    async def _watch(self, request: Request, ticket: Ticket) -> None:
        """Gives the request up when its client goes away."""
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.stop(Problem("client-gone", _GONE))

    def _check_upload(self, ticket: Ticket) -> None:
        """Gives a request up whose body has stalled, and looks again when it may have."""
        loop = asyncio.get_running_loop()
        left = ticket.moved + self.config.stall_timeout - loop.time()
        if ticket.arrived or not ticket.inside:
            return
        if left <= 0:
            seconds = f"{self.config.stall_timeout:g} s"
            ticket.stop(Problem("slow-upload", f"of the request less than {PIECE} bytes came within {seconds}; send it faster"))
        else:
            loop.call_later(left, self._check_upload, ticket)

    def _give_up(self, ticket: Ticket) -> None:
        limit = f"{self.config.timeout:g} s"
        if ticket.arrived:
            ticket.stop(Problem("timeout", f"the image was not done within {limit}; try again when the service is less busy"))
        else:
            ticket.stop(Problem("slow-upload", f"the request did not arrive within {limit}; send a smaller image"))


def _editor(request: Request) -> str | None:
    """Who sends one request after the other, of which only the newest counts."""
    given = request.headers.get("gleansr-editor")
    if given is not None and not re.fullmatch("[A-Za-z0-9-]{1,64}", given):
        raise Problem("bad-field", f"Gleansr-Editor is {given[:80]!r}, but must be up to 64 letters, digits and hyphens")
    return given
