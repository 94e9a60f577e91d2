"""A network's pass recorded once for each shape of its input, so that a GPU is given its hundreds of kernels as one (CUDA graphs)."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gleansr.errors import one_line
from gleansr.inference.devices import out_of_memory

log = logging.getLogger("gleansr")

_MOST = 4
"""Recordings to keep: each holds the memory of its maps. A folder has batches of one size and a smaller last one."""

Call = Callable[[Tensor], Tensor]


class CapturedGraph(NamedTuple):
    """A pass as it was recorded: it reads one tensor and writes another, always the same ones."""

    lr: Tensor
    sr: Tensor
    replay: Callable[[], object]
    pool: Any = None
    """Of the memory of its maps, as CUDA graphs name it."""


def record(call: Call, lr: Tensor, beside: CapturedGraph | None = None) -> CapturedGraph:
    """Records `call` with the shape of `lr`, on a GPU, after passes that choose kernels and take memory, which no recording may do.

    It shares the memory of its maps with `beside`: no two may then run at once, and a result must be copied before the next.
    """
    lr = lr.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(lr)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads read and write images meanwhile: what they ask of the driver, as pinned memory, is no fault of this recording.
    with torch.cuda.graph(graph, pool=beside and beside.pool, capture_error_mode="thread_local"):
        sr = call(lr)
    return CapturedGraph(lr, sr, graph.replay, graph.pool())


class GraphedCall:
    """`call`, recorded at the first pass of a shape. Where that fails, as with kernels that wait for the CPU, it is called as it is.

    Several threads may call it if they share a stream, as they do unless told otherwise.
    """

    def __init__(self, call: Call, record: Callable[[Call, Tensor, CapturedGraph | None], CapturedGraph] = record):
        self._call, self._record = call, record
        self._kept: OrderedDict[torch.Size, CapturedGraph] = OrderedDict()
        self._lock = threading.Lock()
        self.failed: str | None = None
        """Why passes are not recorded."""

    def __call__(self, lr: Tensor) -> Tensor:
        if self.failed is not None:
            return self._call(lr)
        with self._lock:
            try:
                recording = self._kept.pop(lr.shape, None) or self._record(self._call, lr, next(iter(self._kept.values()), None))
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                self.failed = one_line(error)
                log.info("passes are not recorded as CUDA graphs: %s", self.failed)
                self._kept.clear()
                return self._call(lr)
            self._kept[lr.shape] = recording
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)
            recording.lr.copy_(lr)
            recording.replay()
            return recording.sr.clone()

    def forget(self) -> None:
        """Lets go of all recordings, and of their memory."""
        with self._lock:
            self._kept.clear()
