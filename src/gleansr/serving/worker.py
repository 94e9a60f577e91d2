"""Forward passes with dynamic batching: when the device becomes free, all waiting inputs of one model form the next batch.

Unlike `jobs.pipeline`, never delays an input to fill a batch: requests need low latency.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from gleansr.inference.upscaler import Upscaler
from gleansr.serving.metrics import Metrics
from gleansr.serving.problems import Problem

log = logging.getLogger("gleansr.serving")


_FAILED = "the forward pass failed; see the log of the service, and please report it, unless the device was out of memory"


@dataclass(frozen=True)
class ForwardResult:
    """The model's output for one image."""

    sr: Tensor
    """(3, out, out), RGB in [-1, 1], not clamped, float32 on the CPU."""
    note: str
    """A note of the runner, "" for none."""
    seconds: float
    """Duration of the forward pass of the whole batch."""
    batch: int
    """Number of the batch, the same for all its images."""


@dataclass(frozen=True, eq=False)
class _QueuedInput:
    upscaler: Upscaler
    lr: Tensor
    on_start: Callable[[], None]
    result: asyncio.Future[ForwardResult]
    since: float

    def fits(self, other: "_QueuedInput") -> bool:
        """Whether both can share a batch."""
        return self.upscaler is other.upscaler and self.lr.shape == other.lr.shape


class ModelWorker:
    """Runs the models of one device in a thread. The queue belongs to the event loop and needs no locks."""

    def __init__(self, batch_size: int | None, metrics: Metrics):
        """`batch_size` is the maximum number of images in a forward pass; None: depends on the device and the model."""
        self._batch_size, self._metrics = batch_size, metrics
        self._batches = itertools.count()
        self._queue: deque[_QueuedInput] = deque()
        self._filled = asyncio.Event()
        self._seconds = 0.0  # moving average per image
        threads = torch.get_num_threads()  # a setting of the current thread
        self._thread = ThreadPoolExecutor(1, "gleansr-forward", lambda: torch.set_num_threads(threads))

    def __len__(self) -> int:
        """Length of the queue."""
        return len(self._queue)

    def estimate_seconds(self, images: int) -> float:
        """Estimated time for a number of images, from recent ones."""
        return images * self._seconds

    async def warm_up(self, models: Iterable[Upscaler]) -> None:
        """Runs each model twice, since first passes take longer."""
        loop = asyncio.get_running_loop()
        disable_spinning(torch.get_num_threads())
        for upscaler in models:
            size = upscaler.input_size or 1
            for _ in range(2):
                *_, seconds = await loop.run_in_executor(self._thread, self._forward, upscaler, [torch.zeros(3, size, size)])
            self._seconds = max(self._seconds, seconds)

    async def forward(self, upscaler: Upscaler, lr: Tensor, on_start: Callable[[], None]) -> ForwardResult:
        """Queues `lr` (3, h, w), in [-1, 1], and returns the model's output. Leaves the queue if cancelled.

        Calls `on_start` when its batch starts.
        """
        queued = _QueuedInput(upscaler, lr, on_start, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._queue.append(queued)
        self._metrics.queue.set(len(self._queue))
        self._filled.set()
        try:
            return await queued.result
        finally:
            if queued in self._queue:
                self._queue.remove(queued)
                self._metrics.queue.set(len(self._queue))

    async def run(self) -> None:
        """Processes the queue until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            while not self._queue:
                self._filled.clear()
                await self._filled.wait()
            batch, number = self._next_batch(), next(self._batches)
            upscaler, lrs = batch[0].upscaler, [queued.lr for queued in batch]
            try:
                images, notes, seconds = await loop.run_in_executor(self._thread, self._forward, upscaler, lrs)
            except Exception:  # drivers raise errors of any type; the next batch may succeed
                log.exception("a batch of %d through %s failed", len(batch), upscaler.name)
                for queued in batch:
                    if not queued.result.done():
                        queued.result.set_exception(Problem("failed", _FAILED))
                continue
            self._metrics.seconds.labels("forward").observe(seconds)
            self._seconds += 0.2 * (seconds / len(batch) - self._seconds)
            for queued, sr, note in zip(batch, images, notes, strict=True):
                if not queued.result.done():
                    queued.result.set_result(ForwardResult(sr, note, seconds, number))
            del batch, lrs, images, queued, sr  # frees their memory while waiting

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _next_batch(self) -> list[_QueuedInput]:
        """The oldest input, and others of the same model and size."""
        oldest = self._queue[0]
        limit = self._batch_size or default_batch_size(oldest.upscaler)
        batch = [queued for queued in self._queue if queued.fits(oldest)][:limit]
        now = time.perf_counter()
        for queued in batch:
            self._queue.remove(queued)
            queued.on_start()
            self._metrics.seconds.labels("waiting").observe(now - queued.since)
        self._metrics.queue.set(len(self._queue))
        self._metrics.batches.labels(oldest.upscaler.name).observe(len(batch))
        return batch

    def _forward(self, upscaler: Upscaler, lrs: list[Tensor]) -> tuple[list[Tensor], Sequence[str], float]:
        """Runs in the worker's thread."""
        started = time.perf_counter()
        output = upscaler.runner(lrs)
        sr = output.images.float()
        seconds = time.perf_counter() - started
        # Copies, so that no image keeps the whole batch in memory.
        images = [sr[0]] if len(sr) == 1 else [image.clone() for image in sr]
        return images, output.notes or [""] * len(images), seconds


@cache
def disable_spinning(threads: int) -> None:
    """Makes the threads of forward passes sleep instead of spinning while they wait for each other.

    If other programs or the work on images need the cores too, a spinning thread blocks the core of the one it waits for: with two busy
    neighbours on two cores, passes took three times as long, single ones seconds. libgomp, torch's thread pool on Linux, spins unless it
    has more threads than there are cores. This adds threads that sleep forever.
    """

    def idle() -> None:
        torch.set_num_threads(threads)
        torch.zeros(2**20).add_(1)  # large enough to use all threads
        started.set()
        threading.Event().wait()

    if threads > 1:
        started = threading.Event()
        threading.Thread(target=idle, name="gleansr-idle", daemon=True).start()
        started.wait()


def default_batch_size(upscaler: Upscaler) -> int:
    """The default batch size. Half the Upscaler's own on a CPU, where larger batches gain nothing and delay their first image."""
    size = upscaler.default_batch_size()
    return max(1, size // 2) if upscaler.device.type == "cpu" else size
