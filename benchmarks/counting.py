"""Arithmetic and memory traffic of a network, counted from the shapes that its layers read and write.

Arithmetic: convolutions and matrix products; a multiplication and an addition are two operations, as in PyTorch's counter.

Bytes: each weight once, and the input and output of each convolution and matrix product, in the network's precision. Operations in between
(activations, noise, sums, concatenations, modulation) count as fused. This is the traffic of the plain formulation layer by layer: an upper
bound for the CPU formulation, which keeps strips of feature maps in caches, and a lower bound for networks that are not fused.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.stages import Stages


@dataclass(frozen=True)
class Cost:
    """Arithmetic and memory traffic."""

    flop: int = 0
    numbers: int = 0
    """Numbers read and written, including weights."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flop + other.flop, self.numbers + other.numbers)

    def __mul__(self, times: int) -> "Cost":
        return Cost(times * self.flop, times * self.numbers)

    def as_dict(self, precision: str) -> dict[str, float]:
        """GFLOP, GB and arithmetic intensity in FLOP per byte, for a report."""
        traffic = self.numbers * getattr(torch, precision).itemsize
        return {"gflop": self.flop / 1e9, "gbytes": traffic / 1e9, "intensity": self.flop / max(traffic, 1)}


class _Counting(TorchDispatchMode):
    def __init__(self, stages: Stages):
        super().__init__()
        self.costs: dict[str, Cost] = defaultdict(Cost)
        self._stages = stages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            tensors = [leaf for leaf in tree_leaves([args, kwargs, result]) if isinstance(leaf, Tensor)]
            flop = formula(*args, **(kwargs or {}), out_val=result)
            self.costs[self._stages.now] += Cost(flop, sum(tensor.numel() for tensor in tensors))
        return result


def counted(call: Callable[[], object], network: nn.Module | None = None) -> dict[str, Cost]:
    """The cost of a call by stage of the network; all in "rest" without a network or if it is no GLEAN.

    Does not work in torch.inference_mode, where the counter does not recognise layers.
    """
    stages = Stages()
    with stages.watching(network or nn.Identity()), _Counting(stages) as counting:
        call()
    return dict(counting.costs)


def total(costs: Mapping[str, Cost]) -> Cost:
    return sum(costs.values(), Cost())
