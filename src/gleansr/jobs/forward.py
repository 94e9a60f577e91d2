"""The forward passes of a folder: several under way, and a picture that cannot be enlarged fails alone."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gleansr.errors import GleansrError
from gleansr.inference.feedforward import FeedForward
from gleansr.inference.method import Enlarged, Method, Report
from gleansr.inference.runner import Passes

_TOGETHER = 2


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
    """Forward passes of batches, which become smaller where the device's memory does not hold them (`Passes`)."""

    def __init__(self, method: Method, batch_size: int, report: Report | None = None):
        """`batch_size`: most lows in a batch. `report` is told of the progress of a slow method with each batch."""
        self._passes = Passes(method)
        self._report = report
        self._gpu = method.device.type == "cuda"
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

    def __call__(self, lows: Sequence[Tensor], *, eight_bits: bool = False) -> list[Made]:
        """Of lows (3, h, w) of one shape, in [-1, 1], on the CPU. What cannot be made has its error in its place.

        With `eight_bits` results of a GPU come as `pictures.to_bytes` makes them.
        """
        try:
            return self._launch(lows, eight_bits)()
        except GleansrError as error:  # of one of them, or all
            if len(lows) == 1:
                return [Made(None, error=error)]
            return [one for low in lows for one in self([low], eight_bits=eight_bits)]

    def start(self, lows: Sequence[Tensor], *, eight_bits: bool = False) -> Callable[[], list[Made]]:
        """As a call, but begun only: what is returned waits for the end. The next may be started before."""
        again = partial(self, lows, eight_bits=eight_bits)
        try:
            end = self._launch(lows, eight_bits)
        except GleansrError:
            return again

        def result() -> list[Made]:
            try:
                return end()
            except GleansrError:
                return again()

        return result

    def _launch(self, lows: Sequence[Tensor], eight_bits: bool) -> Callable[[], list[Made]]:
        if self._pool:
            parts = [lows[i : i + _TOGETHER] for i in range(0, len(lows), _TOGETHER)]
            passes = [self._pool.submit(self._pass, [*part, *part[: _TOGETHER - len(part)]]) for part in parts]
            return lambda: [made for one in passes for made in one.result()][: len(lows)]
        started = time.perf_counter()
        end = self._passes.start(lows, self._report, eight_bits=eight_bits and self._gpu)
        return lambda: _shared(end(), time.perf_counter() - started)

    def _pass(self, lows: Sequence[Tensor]) -> list[Made]:
        started = time.perf_counter()
        return _shared(self._passes(lows, self._report), time.perf_counter() - started)


def _shared(enlarged: Enlarged, seconds: float) -> list[Made]:
    share, n = seconds / len(enlarged.pictures), len(enlarged.pictures)
    return [Made(high, note, share) for high, note in zip(enlarged.pictures, enlarged.notes or [""] * n, strict=True)]
