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


class Recording(NamedTuple):
    """A pass as it was recorded: it reads one tensor and writes another, always the same ones."""

    low: Tensor
    high: Tensor
    replay: Callable[[], object]
    pool: Any = None
    """Of the memory of its maps, as CUDA graphs name it."""


def record(call: Call, low: Tensor, beside: Recording | None = None) -> Recording:
    """Records `call` with the shape of `low`, on a GPU, after passes that choose kernels and take memory, which no recording may do.

    It shares the memory of its maps with `beside`: no two may then run at once, and a result must be copied before the next.
    """
    low = low.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(low)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads read and write pictures meanwhile: what they ask of the driver, as pinned memory, is no fault of this recording.
    with torch.cuda.graph(graph, pool=beside and beside.pool, capture_error_mode="thread_local"):
        high = call(low)
    return Recording(low, high, graph.replay, graph.pool())


class Recorded:
    """`call`, recorded at the first pass of a shape. Where that fails, as with kernels that wait for the CPU, it is called as it is.

    Several threads may call it if they share a stream, as they do unless told otherwise.
    """

    def __init__(self, call: Call, record: Callable[[Call, Tensor, Recording | None], Recording] = record):
        self._call, self._record = call, record
        self._kept: OrderedDict[torch.Size, Recording] = OrderedDict()
        self._lock = threading.Lock()
        self.failed: str | None = None
        """Why passes are not recorded."""

    def __call__(self, low: Tensor) -> Tensor:
        if self.failed is not None:
            return self._call(low)
        with self._lock:
            try:
                recording = self._kept.pop(low.shape, None) or self._record(self._call, low, next(iter(self._kept.values()), None))
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                self.failed = one_line(error)
                log.info("passes are not recorded as CUDA graphs: %s", self.failed)
                self._kept.clear()
                return self._call(low)
            self._kept[low.shape] = recording
            if len(self._kept) > _MOST:
                self._kept.popitem(last=False)
            recording.low.copy_(low)
            recording.replay()
            return recording.high.clone()

    def forget(self) -> None:
        """Lets go of all recordings, and of their memory."""
        with self._lock:
            self._kept.clear()
