"""A method's calls on what may be too much for the device, or for the precision that it computes in."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gleansr.ambient import AFTER_FORK, FORKED, plain_torch
from gleansr.errors import PictureError, RequestError
from gleansr.images.codec import to_bytes
from gleansr.inference.devices import out_of_memory
from gleansr.inference.feedforward import FeedForward
from gleansr.inference.method import Enlarged, Method, Report

log = logging.getLogger("gleansr")


class Passes:
    """Calls a method with pictures on the CPU, and brings its results there.

    A batch that the device's memory does not hold is halved, and later ones are no larger. What half precision cannot express, as values
    beyond float16's range, is computed again in float32.
    """

    def __init__(self, method: Method):
        self._method = method
        self._most: int | None = None

    @plain_torch()
    def __call__(self, lows: Sequence[Tensor], report: Report | None = None, *, eight_bits: bool = False) -> Enlarged:
        """Of lows (3, h, w) of one shape, RGB in [-1, 1], on the CPU. With `eight_bits` pictures are as `to_bytes` makes them.

        Raises:
            PictureError: one alone does not fit.
        """
        parts: list[Enlarged] = []
        done = 0
        while done < len(lows):
            batch = lows[done : done + (self._most or len(lows))]
            try:
                parts.append(self._begin(batch, report, eight_bits)())
                done += len(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if isinstance(self._method, FeedForward):
                    self._method.forget()
                device, size = self._method.device, "x".join(str(side) for side in reversed(batch[0].shape[-2:]))
                if len(batch) == 1:
                    hint = "--device cpu" if device.type != "cpu" else "a model of smaller results"
                    raise PictureError(f"out of memory on {device}, by a picture of {size} alone; {hint} may do") from None
                self._most = len(batch) // 2
                log.warning("out of memory on %s: batches of %d instead of %d", device, self._most, len(batch))
        if len(parts) == 1:
            return parts[0]
        return Enlarged(
            torch.cat([part.pictures for part in parts]), [note for part in parts for note in part.notes or [""] * len(part.pictures)]
        )

    @plain_torch()
    def start(self, lows: Sequence[Tensor], report: Report | None = None, *, eight_bits: bool = False) -> Callable[[], Enlarged]:
        """As a call, but begun only: what is returned waits for the end. The next may be started before."""
        again = partial(self, lows, report, eight_bits=eight_bits)
        if self._most and len(lows) > self._most:
            return again
        try:
            end = self._begin(lows, report, eight_bits)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return again  # when those before have let go of their memory

        @plain_torch()
        def result() -> Enlarged:
            try:
                return end()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                return again()

        return result

    @torch.inference_mode()
    def _begin(self, lows: Sequence[Tensor], report: Report | None, eight_bits: bool) -> Callable[[], Enlarged]:
        """One call; a GPU may still be at it when this returns."""
        device, low = self._method.device, torch.stack(list(lows))
        gpu = device.type == "cuda"
        try:
            there = (low.pin_memory() if gpu else low).to(device, non_blocking=gpu)
        except RuntimeError as error:
            if FORKED in str(error):
                raise RequestError(AFTER_FORK) from None
            raise
        enlarged = self._method(there, report)
        high = enlarged.pictures
        method = self._method if isinstance(self._method, FeedForward) and self._method.precision != torch.float32 else None
        finite = high.isfinite().flatten(1).all(1).to("cpu", non_blocking=gpu) if method or eight_bits else None
        home = (to_bytes(high) if eight_bits else high).to("cpu", non_blocking=gpu)
        copied = torch.cuda.Event() if gpu else None
        if copied:
            copied.record()

        @torch.inference_mode()
        def end() -> Enlarged:
            if copied:
                copied.synchronize()
            if finite is None or finite.all():
                return Enlarged(home, enlarged.notes)
            again = method.in_float32(low[~finite].to(device)) if method else high[~finite]
            if eight_bits and not again.isfinite().all():
                raise PictureError("the picture has NaN or infinite values")  # as `to_image` says of others
            home[~finite] = (to_bytes(again) if eight_bits else again).cpu()
            note = "computed in float32, since half precision did not suffice"
            return Enlarged(home, ["" if good else note for good in finite])

        return end
