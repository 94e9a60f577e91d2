"""The forward passes: jobs of one model that wait when the device becomes free are its next batch."""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gleansr.inference.method import Model
from gleansr.inference.upscaler import Upscaler
from gleansr.serving.metrics import Metrics
from gleansr.serving.problems import Problem

log = logging.getLogger("gleansr.serving")


_FAILED = "the forward pass failed; the log of the service says why; please report it, unless the device was short of memory"


@dataclass(frozen=True)
class Refined:
    """What a forward pass made of one image."""

    sr: Tensor
    """(3, out, out), RGB in [-1, 1], not clamped, float32 on the CPU."""
    seconds: float
    """Of the forward pass, with all images of its batch."""


@dataclass(frozen=True, eq=False)
class _Job:
    model: str
    lr: Tensor
    taken: Callable[[], None]
    result: asyncio.Future[Refined]
    since: float


class ModelWorker:
    """Runs the models of one device in a thread of its own. The queue is touched on the event loop only, and needs no locks."""

    def __init__(self, models: Mapping[str, Upscaler], batch_size: int | None, metrics: Metrics):
        """`batch_size`: most images in a forward pass, None: what suits the device."""
        self._methods: dict[str, Model] = {name: upscaler.method for name, upscaler in models.items()}
        self._runners = {name: upscaler.runner for name, upscaler in models.items()}
        self._limits = {name: batch_size or suitable_batch(upscaler) for name, upscaler in models.items()}
        self._metrics = metrics
        self._waiting: deque[_Job] = deque()
        self._filled = asyncio.Event()
        self._seconds = 0.0  # per image, of late
        threads = torch.get_num_threads()  # belongs to the thread that sets it
        self._thread = ThreadPoolExecutor(1, "gleansr-forward", lambda: torch.set_num_threads(threads))

    def __len__(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def seconds_for(self, images: int) -> float:
        """How long so many images take, judged by the last ones."""
        return images * self._seconds

    async def warm_up(self) -> None:
        """Runs each model once, since first passes take longer."""
        loop = asyncio.get_running_loop()
        wait_asleep(torch.get_num_threads())
        for name, method in self._methods.items():
            lr = torch.zeros(1, 3, method.in_size or 1, method.in_size or 1)
            for _ in range(2):
                _, seconds = await loop.run_in_executor(self._thread, self._forward, name, list(lr))
            self._seconds = max(self._seconds, seconds)

    async def refine(self, model: str, lr: Tensor, taken: Callable[[], None]) -> Refined:
        """Waits for a turn and runs `lr` (3, in, in), in [-1, 1], through the model. Cancelled, it leaves the queue.

        `taken` is called as its batch begins.
        """
        job = _Job(model, lr, taken, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.append(job)
        self._metrics.queue.set(len(self._waiting))
        self._filled.set()
        try:
            return await job.result
        finally:
            if job in self._waiting:
                self._waiting.remove(job)
                self._metrics.queue.set(len(self._waiting))

    async def run(self) -> None:
        """Works until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                self._filled.clear()
                await self._filled.wait()
            batch = self._next_batch()
            try:
                images, seconds = await loop.run_in_executor(self._thread, self._forward, batch[0].model, [job.lr for job in batch])
            except Exception:  # whatever a driver or an exhausted memory raises: these images fail, the next ones may not
                log.exception("a batch of %d through %s failed", len(batch), batch[0].model)
                for job in batch:
                    if not job.result.done():
                        job.result.set_exception(Problem("failed", _FAILED))
                continue
            self._metrics.seconds.labels("forward").observe(seconds)
            share = seconds / len(batch)
            self._seconds += 0.2 * (share - self._seconds)
            for job, sr in zip(batch, images, strict=True):
                if not job.result.done():
                    job.result.set_result(Refined(sr, seconds))
            del batch, images, job, sr  # while it waits for more nothing is kept

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _next_batch(self) -> list[_Job]:
        """The oldest job, and what waits for the same model."""
        model = self._waiting[0].model
        batch = [job for job in self._waiting if job.model == model][: self._limits[model]]
        now = time.perf_counter()
        for job in batch:
            self._waiting.remove(job)
            job.taken()
            self._metrics.seconds.labels("waiting").observe(now - job.since)
        self._metrics.queue.set(len(self._waiting))
        self._metrics.batches.labels(model).observe(len(batch))
        return batch

    def _forward(self, model: str, lrs: list[Tensor]) -> tuple[list[Tensor], float]:
        """In the worker's thread."""
        started = time.perf_counter()
        sr = self._runners[model](lrs).images.float()
        seconds = time.perf_counter() - started
        # Of a batch each gets a copy, so that none keeps the others' memory.
        return [sr[0]] if len(sr) == 1 else [image.clone() for image in sr], seconds


@cache
def wait_asleep(threads: int) -> None:
    """Lets the threads of forward passes sleep, not spin, while they wait for each other.

    Where other programs or the work on images want the cores too, a thread that spins keeps the one it waits for from its core: with two
    busy neighbours on two cores passes took three times as long, and single ones seconds. libgomp, by which torch spreads work on Linux,
    spins unless it has more threads than there are cores. So it is given some more here, which sleep for ever.
    """

    def idle() -> None:
        torch.set_num_threads(threads)
        torch.zeros(2**20).add_(1)  # large enough to be spread
        begun.set()
        threading.Event().wait()

    if threads > 1:
        begun = threading.Event()
        threading.Thread(target=idle, name="gleansr-idle", daemon=True).start()
        begun.wait()


def suitable_batch(upscaler: Upscaler) -> int:
    """As many images as are faster together. On a CPU the Upscaler's own number is too high: larger batches gain nothing, and keep the
    first image waiting for the last."""
    size = upscaler.default_batch_size()
    return max(1, size // 2) if upscaler.device.type == "cpu" else size
