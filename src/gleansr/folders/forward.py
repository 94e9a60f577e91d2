"""The forward passes: several under way, and what is done where a batch does not fit into the device's memory."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gleansr.errors import GleansrError, PictureError
from gleansr.upscaler import FeedForward, Method, Report

_TOGETHER = 2

log = logging.getLogger("gleansr.folders")


@dataclass(frozen=True, eq=False)
class Made:
    """What a forward pass made of a low."""

    high: Tensor | None
    """(3, scale * h, scale * w), on the CPU."""
    note: str = ""
    seconds: float = 0.0
    """Its share of the time of the pass."""
    error: GleansrError | None = None
    """Why there is none."""


class Forward:
    """Forward passes of so many lows at most. Where the device's memory does not suffice they become smaller, for good."""

    def __init__(self, method: Method, batch_size: int, report: Report | None = None):
        """`report` is told of the progress of a slow method with each batch."""
        self._method = method
        self._most = batch_size
        self._report = report
        # On a CPU passes over two lows, with a thread each, are faster than one over all with all threads: by a tenth on two cores. No
        # thread waits for another that shares its core with the reading and writing of pictures. And since it is always two, what becomes
        # of a low is the same in any batch, to the last bit.
        self._pool = None
        if batch_size > 1 and method.device.type == "cpu" and isinstance(method, FeedForward):
            threads = torch.get_num_threads()
            passes = min(threads, -(-batch_size // _TOGETHER))
            self._pool = ThreadPoolExecutor(passes, "gleansr-forward", partial(torch.set_num_threads, threads // passes))
        self.ahead = 2 if self._pool or (method.device.type == "cuda" and isinstance(method, FeedForward)) else 1
        """How many batches to start before the first is waited for, so that the device has its next one when it ends one."""

    def __call__(self, lows: Sequence[Tensor]) -> list[Made]:
        """Of lows (3, h, w) of one shape, in [-1, 1], on the CPU. What cannot be made has its error in its place."""
        made: list[Made] = []
        while len(made) < len(lows):
            batch = lows[len(made) : len(made) + self._most]
            try:
                made += self._launch(batch)()
            except GleansrError as error:  # of one of them, or all
                made += [Made(None, error=error)] if len(batch) == 1 else [one for low in batch for one in self([low])]
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    size = "x".join(str(side) for side in reversed(batch[0].shape[-2:]))
                    made.append(Made(None, error=PictureError(f"out of memory on {self._method.device}, by a picture of {size} alone")))
                else:
                    self._most = len(batch) // 2
                    log.warning("out of memory on %s: batches of %d instead of %d", self._method.device, self._most, len(batch))
        return made

    def start(self, lows: Sequence[Tensor]) -> Callable[[], list[Made]]:
        """As a call, but begun only: what is returned waits for the end. The next may be started before."""
        if len(lows) > self._most:
            return partial(self, lows)
        try:
            end = self._launch(lows)
        except (GleansrError, RuntimeError, MemoryError):  # what is wrong is found out when those before have let go of their memory
            return partial(self, lows)

        def result() -> list[Made]:
            try:
                return end()
            except (GleansrError, RuntimeError, MemoryError):
                return self(lows)

        return result

    def _launch(self, lows: Sequence[Tensor]) -> Callable[[], list[Made]]:
        if self._pool:
            parts = [lows[i : i + _TOGETHER] for i in range(0, len(lows), _TOGETHER)]
            passes = [self._pool.submit(self._pass, [*part, *part[: _TOGETHER - len(part)]]) for part in parts]
            return lambda: [made for one in passes for made in one.result()()][: len(lows)]
        return self._pass(lows)

    def _pass(self, lows: Sequence[Tensor]) -> Callable[[], list[Made]]:
        """One pass; a GPU may still be at it when this returns."""
        started = time.perf_counter()
        enlarged = self._method(torch.stack(list(lows)).to(self._method.device), self._report)
        highs = enlarged.pictures.to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if enlarged.pictures.is_cuda else None
        if copied:
            copied.record()
        share = 0.0 if copied else (time.perf_counter() - started) / len(lows)

        def end() -> list[Made]:
            if copied:
                copied.synchronize()
            seconds = share or (time.perf_counter() - started) / len(lows)
            return [Made(high, note, seconds) for high, note in zip(highs, enlarged.notes or [""] * len(lows), strict=True)]

        return end


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in text for words in ("out of memory", "allocate memory"))
