"""Forward passes with dynamic batching: when the device becomes free, all waiting inputs of one model form the next batch.

Unlike `jobs.pipeline`, never delays an input to fill a batch: requests need low latency.
"""

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


_FAILED = "the forward pass failed; see the log of the service, and please report it, unless the device was out of memory"


@dataclass(frozen=True)
class ForwardResult:
    """The model's output for one image."""

    sr: Tensor
    """(3, out, out), RGB in [-1, 1], not clamped, float32 on the CPU."""
    seconds: float
    """Duration of the forward pass of the whole batch."""


@dataclass(frozen=True, eq=False)
class _QueuedInput:
    model: str
    lr: Tensor
    on_start: Callable[[], None]
    result: asyncio.Future[ForwardResult]
    since: float


class ModelWorker:
    """Runs the models of one device in a thread. The queue belongs to the event loop and needs no locks."""

    def __init__(self, models: Mapping[str, Upscaler], batch_size: int | None, metrics: Metrics):
        """`batch_size` is the maximum number of images in a forward pass; None: depends on the device."""
        self._methods: dict[str, Model] = {name: upscaler.method for name, upscaler in models.items()}
        self._runners = {name: upscaler.runner for name, upscaler in models.items()}
        self._limits = {name: batch_size or default_batch_size(upscaler) for name, upscaler in models.items()}
        self._metrics = metrics
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

    async def warm_up(self) -> None:
        """Runs each model twice, since first passes take longer."""
        loop = asyncio.get_running_loop()
        disable_spinning(torch.get_num_threads())
        for name, method in self._methods.items():
            lr = torch.zeros(1, 3, method.in_size or 1, method.in_size or 1)
            for _ in range(2):
                _, seconds = await loop.run_in_executor(self._thread, self._forward, name, list(lr))
            self._seconds = max(self._seconds, seconds)

    async def forward(self, model: str, lr: Tensor, on_start: Callable[[], None]) -> ForwardResult:
        """Queues `lr` (3, in, in), in [-1, 1], and returns the model's output. Leaves the queue if cancelled.

        Calls `on_start` when its batch starts.
        """
        queued = _QueuedInput(model, lr, on_start, asyncio.get_running_loop().create_future(), time.perf_counter())
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
            batch = self._next_batch()
            try:
                images, seconds = await loop.run_in_executor(self._thread, self._forward, batch[0].model, [queued.lr for queued in batch])
            except Exception:  # drivers raise errors of any type; the next batch may succeed
                log.exception("a batch of %d through %s failed", len(batch), batch[0].model)
                for queued in batch:
                    if not queued.result.done():
                        queued.result.set_exception(Problem("failed", _FAILED))
                continue
            self._metrics.seconds.labels("forward").observe(seconds)
            self._seconds += 0.2 * (seconds / len(batch) - self._seconds)
            for queued, sr in zip(batch, images, strict=True):
                if not queued.result.done():
                    queued.result.set_result(ForwardResult(sr, seconds))
            del batch, images, queued, sr  # frees their memory while waiting

    def close(self) -> None:
        self._thread.shutdown(cancel_futures=True)

    def _next_batch(self) -> list[_QueuedInput]:
        """The oldest input, and others of the same model."""
        model = self._queue[0].model
        batch = [queued for queued in self._queue if queued.model == model][: self._limits[model]]
        now = time.perf_counter()
        for queued in batch:
            self._queue.remove(queued)
            queued.on_start()
            self._metrics.seconds.labels("waiting").observe(now - queued.since)
        self._metrics.queue.set(len(self._queue))
        self._metrics.batches.labels(model).observe(len(batch))
        return batch

    def _forward(self, model: str, lrs: list[Tensor]) -> tuple[list[Tensor], float]:
        """Runs in the worker's thread."""
        started = time.perf_counter()
        sr = self._runners[model](lrs).images.float()
        seconds = time.perf_counter() - started
        # Copies, so that no image keeps the whole batch in memory.
        return [sr[0]] if len(sr) == 1 else [image.clone() for image in sr], seconds


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
