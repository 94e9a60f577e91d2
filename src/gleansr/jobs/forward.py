"""The forward passes of a folder: several under way, and an image that cannot be enlarged fails alone."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gleansr.errors import GleansrError
from gleansr.inference.feedforward import FeedForwardModel
from gleansr.inference.method import Model, ModelOutput, StepReport
from gleansr.inference.runner import Runner

_TOGETHER = 2


@dataclass(frozen=True, eq=False)
class SRResult:
    """What a forward pass made of a low."""

    sr: Tensor | None
    """(3, scale * h, scale * w), on the CPU."""
    note: str = ""
    seconds: float = 0.0
    """Its share of the time of the pass."""
    error: GleansrError | None = None
    """Why there is none."""


class Forward:
    """Forward passes of batches, which become smaller where the device's memory does not hold them (`Runner`)."""

    def __init__(self, method: Model, batch_size: int, report: StepReport | None = None):
        """`batch_size`: most lrs in a batch. `report` is told of the progress of a slow method with each batch."""
        self._passes = Runner(method)
        self._report = report
        self._gpu = method.device.type == "cuda"
        # On a CPU passes over two lrs, with a thread each, are faster than one over all with all threads: by a tenth on two cores. No
        # thread waits for another that shares its core with the reading and writing of images. And since it is always two, what becomes
        # of a low is the same in any batch, to the last bit.
        self._pool = None
        if batch_size > 1 and method.device.type == "cpu" and isinstance(method, FeedForwardModel):
            threads = torch.get_num_threads()
            passes = min(threads, -(-batch_size // _TOGETHER))
            self._pool = ThreadPoolExecutor(passes, "gleansr-forward", partial(torch.set_num_threads, threads // passes))
        self.ahead = 2 if self._pool or (method.device.type == "cuda" and isinstance(method, FeedForwardModel)) else 1
        """How many batches to start before the first is waited for, so that the device has its next one when it ends one."""

    def __call__(self, lrs: Sequence[Tensor], *, eight_bits: bool = False) -> list[SRResult]:
        """Of lrs (3, h, w) of one shape, in [-1, 1], on the CPU. What cannot be made has its error in its place.

        With `eight_bits` results of a GPU come as `codec.to_bytes` makes them.
        """
        try:
            return self._launch(lrs, eight_bits)()
        except GleansrError as error:  # of one of them, or all
            if len(lrs) == 1:
                return [SRResult(None, error=error)]
            return [one for lr in lrs for one in self([lr], eight_bits=eight_bits)]

    def start(self, lrs: Sequence[Tensor], *, eight_bits: bool = False) -> Callable[[], list[SRResult]]:
        """As a call, but begun only: what is returned waits for the end. The next may be started before."""
        again = partial(self, lrs, eight_bits=eight_bits)
        try:
            end = self._launch(lrs, eight_bits)
        except GleansrError:
            return again

        def result() -> list[SRResult]:
            try:
                return end()
            except GleansrError:
                return again()

        return result

    def _launch(self, lrs: Sequence[Tensor], eight_bits: bool) -> Callable[[], list[SRResult]]:
        if self._pool:
            parts = [lrs[i : i + _TOGETHER] for i in range(0, len(lrs), _TOGETHER)]
            passes = [self._pool.submit(self._pass, [*part, *part[: _TOGETHER - len(part)]]) for part in parts]
            return lambda: [made for one in passes for made in one.result()][: len(lrs)]
        started = time.perf_counter()
        end = self._passes.start(lrs, self._report, eight_bits=eight_bits and self._gpu)
        return lambda: _shared(end(), time.perf_counter() - started)

    def _pass(self, lrs: Sequence[Tensor]) -> list[SRResult]:
        started = time.perf_counter()
        return _shared(self._passes(lrs, self._report), time.perf_counter() - started)


def _shared(enlarged: ModelOutput, seconds: float) -> list[SRResult]:
    share, n = seconds / len(enlarged.images), len(enlarged.images)
    return [SRResult(sr, note, share) for sr, note in zip(enlarged.images, enlarged.notes or [""] * n, strict=True)]
