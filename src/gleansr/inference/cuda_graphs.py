"""CUDA graphs: the hundreds of kernels of a pass are recorded once per input shape and launched as one."""

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

_MAX_GRAPHS = 4
"""Number of graphs to keep; each holds the memory of its maps. A folder has one batch size and a smaller last batch."""

Call = Callable[[Tensor], Tensor]


class CapturedGraph(NamedTuple):
    """A recorded pass. It always reads and writes the same two tensors."""

    lr: Tensor
    sr: Tensor
    replay: Callable[[], object]
    pool: Any = None
    """Handle of the memory pool of its maps."""


def record(call: Call, lr: Tensor, shared: CapturedGraph | None = None) -> CapturedGraph:
    """Records `call` with the shape of `lr`, on a GPU, after warm-up passes that choose kernels and allocate memory.

    It shares the memory pool of `shared`: the two must not run at once, and a result must be copied before the next replay.
    """
    lr = lr.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call(lr)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Other threads use the driver meanwhile, for example for pinned memory; "thread_local" allows that.
    with torch.cuda.graph(graph, pool=shared and shared.pool, capture_error_mode="thread_local"):
        sr = call(lr)
    return CapturedGraph(lr, sr, graph.replay, graph.pool())


class GraphedCall:
    """`call`, recorded at the first pass of each shape. If graph fails, as with kernels that wait for the CPU, `call` runs directly.

    Several threads may call it if they share a stream, as they do by default.
    """

    def __init__(self, call: Call, record: Callable[[Call, Tensor, CapturedGraph | None], CapturedGraph] = record):
        self._call, self._record = call, record
        self._graphs: OrderedDict[torch.Size, CapturedGraph] = OrderedDict()
        self._lock = threading.Lock()
        self.failed: str | None = None
        """The reason if graph failed."""

    def __call__(self, lr: Tensor) -> Tensor:
        if self.failed is not None:
            return self._call(lr)
        with self._lock:
            try:
                graph = self._graphs.pop(lr.shape, None) or self._record(self._call, lr, next(iter(self._graphs.values()), None))
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                self.failed = one_line(error)
                log.info("passes are not recorded as CUDA graphs: %s", self.failed)
                self._graphs.clear()
                return self._call(lr)
            self._graphs[lr.shape] = graph
            if len(self._graphs) > _MAX_GRAPHS:
                self._graphs.popitem(last=False)
            graph.lr.copy_(lr)
            graph.replay()
            return graph.sr.clone()

    def clear(self) -> None:
        """Frees all graphs and their memory."""
        with self._lock:
            self._graphs.clear()
