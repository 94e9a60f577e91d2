"""Forward passes: device moves, halving of batches when memory is short, recomputation in float32, CUDA graphs and concurrency."""

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gleansr.ambient import FORK_ADVICE, FORK_MESSAGE, plain_torch
from gleansr.errors import GleansrError, ImageError, RequestError
from gleansr.images.pixels import to_bytes
from gleansr.inference import cpu
from gleansr.inference.cpu.frozen import FrozenGLEAN, freezable
from gleansr.inference.cuda_graphs import GraphedCall
from gleansr.inference.devices import find_device, find_precision, out_of_memory
from gleansr.inference.method import Model, ModelOutput, StepReport
from gleansr.inference.onnx_runtime import OnnxModel
from gleansr.inference.precision import Precision, full_name
from gleansr.models.glean import GLEAN
from gleansr.models.layers import autocast_copy, to_channels_last
from gleansr.models.network import UNIT, SRNetwork, to_range

log = logging.getLogger("gleansr")

_PAIR = 2
_SHORT_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16"}


class FeedForwardModel:
    """A network that upscales images in one forward pass, on a device and in a precision."""

    _frozen: FrozenGLEAN | None = None
    recorded: GraphedCall | None = None
    """CUDA graphs of a GLEAN on a GPU."""

    def __init__(
        self,
        model: nn.Module | OnnxModel,
        *,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        self_ensemble: bool = False,
    ):
        """`device`, `precision` and `self_ensemble` as in `load`; an `OnnxModel` has its own. The weights must not change any more.

        Raises:
            RequestError: the network is of another kind.
        """
        self.self_ensemble = self_ensemble
        if isinstance(model, OnnxModel):
            if full_name(precision) not in ("auto", "float32"):
                raise RequestError(f"an ONNX file computes in the precision that it was exported in, not in {precision}")
            self.name, self.in_size, self.scale = model.name, model.in_size, model.scale
            self.model, self.device, self.precision = model, torch.device("cpu"), torch.float32
            return
        self.device = find_device(device)
        self.precision = find_precision(precision, self.device)
        if not isinstance(model, SRNetwork):
            raise RequestError(
                f"a {type(model).__name__} does not enlarge images by itself; give a GLEAN, an ESRGAN+, an ESRGAN or a plain network"
            )
        self.name, self.in_size, self.scale = model.name, model.input_size, model.scale
        self.model = to_channels_last(model.eval(), self.device)
        self._prepare()

    def _prepare(self) -> None:
        if isinstance(self.model, GLEAN) and self.device.type == "cpu" and freezable(self.model) and cpu.available(self.precision):
            self._frozen = FrozenGLEAN(self.model, self.precision)
        if isinstance(self.model, GLEAN) and self.device.type == "cuda":
            model = self.model if self.precision == torch.float32 else autocast_copy(self.model, self.precision)
            self.recorded = GraphedCall(partial(self._forward, self.precision, model))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_frozen", "recorded")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare()

    @torch.inference_mode()
    def __call__(self, lr: Tensor, report: StepReport | None = None) -> ModelOutput:  # noqa: ARG002, too fast to report
        return ModelOutput(ensembled(self._pass, lr, mirror=self.self_ensemble))

    @torch.inference_mode()
    def in_float32(self, lr: Tensor) -> Tensor:
        """lr (N, 3, h, w) -> (N, 3, scale * h, scale * w) in float32, where half precision overflowed."""
        return ensembled(partial(self._forward, torch.float32, self.model), lr, mirror=self.self_ensemble)

    def _pass(self, lr: Tensor) -> Tensor:
        if self._frozen:
            return self._frozen(lr).float()
        return self.recorded(lr) if self.recorded else self._forward(self.precision, self.model, lr)

    def in_one_pass(self) -> "FeedForwardModel":
        """The same network on the same device, without self-ensemble. Shares its memory."""
        other = object.__new__(FeedForwardModel)
        other.__dict__.update(self.__dict__, self_ensemble=False)
        return other

    def free_caches(self) -> None:
        """Frees memory that only makes passes faster."""
        if self.recorded:
            self.recorded.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, precision: torch.dtype, model: SRNetwork | OnnxModel, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        fold = self.model.fold  # ESRGANs of small scales fold blocks of pixels into channels
        if height % fold or width % fold:
            lr = nn.functional.pad(lr, (0, -width % fold, 0, -height % fold), mode="replicate")
        lr = lr.to(memory_format=torch.channels_last)
        # A CUDA graph must contain the casts of the weights, which a cache of them would omit.
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32, cache_enabled=self.recorded is None):
            sr = enlarge(model, lr)
        return sr[..., : height * self.scale, : width * self.scale]


def ensembled(forward: Callable[[Tensor], Tensor], lr: Tensor, *, mirror: bool) -> Tensor:
    """The results for images (N, 3, h, w) or, with `mirror`, the mean of these and of those for the mirror images, mirrored back: geometric
    self-ensemble (Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", 2017) of two instead of eight."""
    return (forward(lr) + forward(lr.flip(3)).flip(3)) / 2 if mirror else forward(lr)


def enlarge(model: SRNetwork | OnnxModel, lr: Tensor) -> Tensor:
    """lr (N, 3, h, w), RGB in [-1, 1] -> (N, 3, scale * h, scale * w), float32, not clamped. ESRGANs use [0, 1] internally."""
    result = model(to_range(lr, model.input_range)).float()
    return result * 2 - 1 if model.input_range == UNIT else result


class Runner:
    """Runs a model on images on the CPU and returns the results there.

    A batch that does not fit into the device's memory is halved, and later batches stay that small. Results that overflow in half
    precision are recomputed in float32.
    """

    def __init__(self, method: Model):
        self._method = method
        self._max_batch: int | None = None

    @plain_torch()
    def __call__(self, lrs: Sequence[Tensor], report: StepReport | None = None, *, eight_bits: bool = False) -> ModelOutput:
        """Runs LR tensors (3, h, w) of one shape, RGB in [-1, 1], on the CPU. With `eight_bits` the results are uint8, see `to_bytes`.

        Raises:
            ImageError: a single image does not fit into memory.
        """
        parts: list[ModelOutput] = []
        done = 0
        while done < len(lrs):
            batch = lrs[done : done + (self._max_batch or len(lrs))]
            try:
                parts.append(self._begin(batch, report, eight_bits)())
                done += len(batch)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if isinstance(self._method, FeedForwardModel):
                    self._method.free_caches()
                device, size = self._method.device, "x".join(str(side) for side in reversed(batch[0].shape[-2:]))
                if len(batch) == 1:
                    remedy = "--device cpu" if device.type != "cpu" else "a model of a smaller scale"
                    raise ImageError(f"out of memory on {device} with a single image of {size}; try {remedy}") from None
                self._max_batch = len(batch) // 2
                log.warning("out of memory on %s: batches of %d instead of %d", device, self._max_batch, len(batch))
        if len(parts) == 1:
            return parts[0]
        return ModelOutput(
            torch.cat([part.images for part in parts]), [note for part in parts for note in part.notes or [""] * len(part.images)]
        )

    @plain_torch()
    def start(self, lrs: Sequence[Tensor], report: StepReport | None = None, *, eight_bits: bool = False) -> Callable[[], ModelOutput]:
        """Starts a pass. The returned function waits for its result; other passes may start before."""
        retry = partial(self, lrs, report, eight_bits=eight_bits)
        if self._max_batch and len(lrs) > self._max_batch:
            return retry
        try:
            end = self._begin(lrs, report, eight_bits)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return retry  # after the passes before have freed their memory

        @plain_torch()
        def result() -> ModelOutput:
            try:
                return end()
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                return retry()

        return result

    @torch.inference_mode()
    def _begin(self, lrs: Sequence[Tensor], report: StepReport | None, eight_bits: bool) -> Callable[[], ModelOutput]:
        """Starts a pass, which may still run on a GPU when this returns."""
        device, lr = self._method.device, torch.stack(list(lrs))
        gpu = device.type == "cuda"
        try:
            on_device = (lr.pin_memory() if gpu else lr).to(device, non_blocking=gpu)
        except RuntimeError as error:
            if FORK_MESSAGE in str(error):
                raise RequestError(FORK_ADVICE) from None
            raise
        output = self._method(on_device, report)
        sr = output.images
        half = self._method if isinstance(self._method, FeedForwardModel) and self._method.precision != torch.float32 else None
        finite = sr.isfinite().flatten(1).all(1).to("cpu", non_blocking=gpu) if half or eight_bits else None
        images = (to_bytes(sr) if eight_bits else sr).to("cpu", non_blocking=gpu)
        copied = torch.cuda.Event() if gpu else None
        if copied:
            copied.record()

        @torch.inference_mode()
        def end() -> ModelOutput:
            if copied:
                copied.synchronize()
            if finite is None or finite.all():
                return ModelOutput(images, output.notes)
            recomputed = half.in_float32(lr[~finite].to(device)) if half else sr[~finite]
            if eight_bits and not recomputed.isfinite().all():
                raise ImageError("the image has NaN or infinite values")  # the message of `to_image`
            images[~finite] = (to_bytes(recomputed) if eight_bits else recomputed).cpu()
            note = f"overflowed in {_SHORT_NAMES[half.precision]}; recomputed in float32" if half else ""
            return ModelOutput(images, ["" if is_finite else note for is_finite in finite])

        return end


@dataclass(frozen=True, eq=False)
class SRResult:
    """The result of one LR tensor."""

    sr: Tensor | None
    """(3, scale * h, scale * w), on the CPU."""
    note: str = ""
    seconds: float = 0.0
    """Its share of the time of the pass."""
    error: GleansrError | None = None
    """Why there is no result."""


class BatchRunner:
    """Runs the batches of folders and videos: several at once, and an LR tensor that fails does not fail its batch."""

    def __init__(self, method: Model, batch_size: int, report: StepReport | None = None):
        """`batch_size`: largest batch. `report` receives the progress of a slow method within each batch."""
        self._runner = Runner(method)
        self._report = report
        self._gpu = method.device.type == "cuda"
        # On two CPU cores, passes of two LR tensors with a thread each take a tenth less time than one pass with all threads: no thread
        # waits for another whose core reads or writes images. With always two, results do not depend on the batch, to the last bit.
        self._pool = None
        if batch_size > 1 and method.device.type == "cpu" and isinstance(method, FeedForwardModel):
            threads = torch.get_num_threads()
            workers = min(threads, -(-batch_size // _PAIR))
            self._pool = ThreadPoolExecutor(workers, "gleansr-forward", partial(torch.set_num_threads, threads // workers))
        self.concurrency = 2 if self._pool or (method.device.type == "cuda" and isinstance(method, FeedForwardModel)) else 1
        """Number of batches to start before waiting for the first, so that the device never idles."""

    def __call__(self, lrs: Sequence[Tensor], *, eight_bits: bool = False) -> list[SRResult]:
        """Runs LR tensors (3, h, w) of one shape, in [-1, 1], on the CPU. With `eight_bits` the results of a GPU are uint8."""
        try:
            return self._launch(lrs, eight_bits)()
        except GleansrError as error:  # of one tensor or all
            if len(lrs) == 1:
                return [SRResult(None, error=error)]
            return [result for lr in lrs for result in self([lr], eight_bits=eight_bits)]

    def start(self, lrs: Sequence[Tensor], *, eight_bits: bool = False) -> Callable[[], list[SRResult]]:
        """Starts a batch. The returned function waits for its results; the next batch may start before."""
        retry = partial(self, lrs, eight_bits=eight_bits)
        try:
            end = self._launch(lrs, eight_bits)
        except GleansrError:
            return retry

        def results() -> list[SRResult]:
            try:
                return end()
            except GleansrError:
                return retry()

        return results

    def _launch(self, lrs: Sequence[Tensor], eight_bits: bool) -> Callable[[], list[SRResult]]:
        if self._pool:
            pairs = [lrs[i : i + _PAIR] for i in range(0, len(lrs), _PAIR)]
            passes = [self._pool.submit(self._run_pair, [*pair, *pair[: _PAIR - len(pair)]]) for pair in pairs]
            return lambda: [result for future in passes for result in future.result()][: len(lrs)]
        started = time.perf_counter()
        end = self._runner.start(lrs, self._report, eight_bits=eight_bits and self._gpu)
        return lambda: _split(end(), time.perf_counter() - started)

    def _run_pair(self, lrs: Sequence[Tensor]) -> list[SRResult]:
        started = time.perf_counter()
        return _split(self._runner(lrs, self._report), time.perf_counter() - started)


class BatchRunners:
    """The `BatchRunner` of each model of a task, made at its first batch."""

    def __init__(self, method: Model, batch_size: int, report: StepReport | None = None):
        """`method`: the task's own model; the rest as for a `BatchRunner`."""
        self._batch_size, self._report = batch_size, report
        self._runners: dict[int, BatchRunner] = {}  # by id: a method need not be hashable
        self._default = self.of(method)
        self.concurrency = self._default.concurrency

    def of(self, method: Model | None) -> BatchRunner:
        """The runner of a model; None: the task's own."""
        if method is None:
            return self._default
        if id(method) not in self._runners:
            self._runners[id(method)] = BatchRunner(method, self._batch_size, self._report)
        return self._runners[id(method)]


def _split(output: ModelOutput, seconds: float) -> list[SRResult]:
    n = len(output.images)
    return [SRResult(sr, note, seconds / n) for sr, note in zip(output.images, output.notes or [""] * n, strict=True)]
