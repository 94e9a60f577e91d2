"""A method's calls on what may be too much for the device, or for the precision that it computes in."""

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from gleansr.ambient import FORK_ADVICE, FORK_MESSAGE, plain_torch
from gleansr.errors import ImageError, RequestError
from gleansr.images.pixels import to_bytes
from gleansr.inference.devices import out_of_memory
from gleansr.inference.feedforward import FeedForwardModel
from gleansr.inference.method import Model, ModelOutput, StepReport

log = logging.getLogger("gleansr")


class Runner:
    """Calls a method with images on the CPU, and brings its results there.

    A batch that the device's memory does not hold is halved, and later ones are no larger. What half precision cannot express, as values
    beyond float16's range, is computed again in float32.
    """

    def __init__(self, method: Model):
        self._method = method
        self._most: int | None = None

    @plain_torch()
    def __call__(self, lrs: Sequence[Tensor], report: StepReport | None = None, *, eight_bits: bool = False) -> ModelOutput:
        """Of lrs (3, h, w) of one shape, RGB in [-1, 1], on the CPU. With `eight_bits` images are as `to_bytes` makes them.

        Raises:
            ImageError: one alone does not fit.
        """
        parts: list[ModelOutput] = []
        done = 0
        while done < len(lrs):
            batch = lrs[done : done + (self._most or len(lrs))]
            try:
                parts.append(self._begin(batch, report, eight_bits)())
                done += len(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if isinstance(self._method, FeedForwardModel):
                    self._method.forget()
                device, size = self._method.device, "x".join(str(side) for side in reversed(batch[0].shape[-2:]))
                if len(batch) == 1:
                    hint = "--device cpu" if device.type != "cpu" else "a model of smaller results"
                    raise ImageError(f"out of memory on {device}, by an image of {size} alone; {hint} may do") from None
                self._most = len(batch) // 2
                log.warning("out of memory on %s: batches of %d instead of %d", device, self._most, len(batch))
        if len(parts) == 1:
            return parts[0]
        return ModelOutput(
            torch.cat([part.images for part in parts]), [note for part in parts for note in part.notes or [""] * len(part.images)]
        )

    @plain_torch()
    def start(self, lrs: Sequence[Tensor], report: StepReport | None = None, *, eight_bits: bool = False) -> Callable[[], ModelOutput]:
        """As a call, but begun only: what is returned waits for the end. The next may be started before."""
        again = partial(self, lrs, report, eight_bits=eight_bits)
        if self._most and len(lrs) > self._most:
            return again
        try:
            end = self._begin(lrs, report, eight_bits)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return again  # when those before have let go of their memory

        @plain_torch()
        def result() -> ModelOutput:
            try:
                return end()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                return again()

        return result

    @torch.inference_mode()
    def _begin(self, lrs: Sequence[Tensor], report: StepReport | None, eight_bits: bool) -> Callable[[], ModelOutput]:
        """One call; a GPU may still be at it when this returns."""
        device, lr = self._method.device, torch.stack(list(lrs))
        gpu = device.type == "cuda"
        try:
            there = (lr.pin_memory() if gpu else lr).to(device, non_blocking=gpu)
        except RuntimeError as error:
            if FORK_MESSAGE in str(error):
                raise RequestError(FORK_ADVICE) from None
            raise
        enlarged = self._method(there, report)
        sr = enlarged.images
        method = self._method if isinstance(self._method, FeedForwardModel) and self._method.precision != torch.float32 else None
        finite = sr.isfinite().flatten(1).all(1).to("cpu", non_blocking=gpu) if method or eight_bits else None
        home = (to_bytes(sr) if eight_bits else sr).to("cpu", non_blocking=gpu)
        copied = torch.cuda.Event() if gpu else None
        if copied:
            copied.record()

        @torch.inference_mode()
        def end() -> ModelOutput:
            if copied:
                copied.synchronize()
            if finite is None or finite.all():
                return ModelOutput(home, enlarged.notes)
            again = method.in_float32(lr[~finite].to(device)) if method else sr[~finite]
            if eight_bits and not again.isfinite().all():
                raise ImageError("the image has NaN or infinite values")  # as `to_image` says of others
            home[~finite] = (to_bytes(again) if eight_bits else again).cpu()
            note = "computed in float32, since half precision did not suffice"
            return ModelOutput(home, ["" if good else note for good in finite])

        return end
