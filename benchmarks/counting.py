"""How much a network computes and how much it moves, counted from the shapes that its layers read and write.

Arithmetic: that of convolutions and matrix products, a product and a sum being two operations, as PyTorch's counter has it.

Bytes: every weight once, and of each convolution and matrix product the map that it reads and the map that it writes, all numbers in the
precision of the network. What stands between (activations, noise, sums, concatenations, modulation) counts as done along with them, for
nothing. This is the traffic of the plain formulation, layer after layer through the memory: an upper bound for ours, which keeps strips of
maps in the caches, and a lower bound for a network that writes what stands between, too.
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
    """What something computes and moves."""

    flop: int = 0
    numbers: int = 0
    """Read and written, weights included."""

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.flop + other.flop, self.numbers + other.numbers)

    def __mul__(self, times: int) -> "Cost":
        return Cost(times * self.flop, times * self.numbers)

    def as_dict(self, precision: str) -> dict[str, float]:
        """For a report: GFLOP, GB, and the arithmetic intensity in FLOP per byte."""
        moved = self.numbers * getattr(torch, precision).itemsize
        return {"gflop": self.flop / 1e9, "gbytes": moved / 1e9, "intensity": self.flop / max(moved, 1)}


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
    """What a call costs, by stage of the network; all of it in "rest" without one, or with one that is no GLEAN.

    Not within torch.inference_mode, where layers reach the counter under names that it does not know.
    """
    stages = Stages()
    with stages.watching(network or nn.Identity()), _Counting(stages) as counting:
        call()
    return dict(counting.costs)


def total(costs: Mapping[str, Cost]) -> Cost:
    return sum(costs.values(), Cost())
