"""The weights of one network in a foreign file, and their translation into ours."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gleansr.checkpoints.native import StoredNetwork, check_tensors, check_values, skeleton
from gleansr.errors import CheckpointError
from gleansr.models.layers import binomial_kernel

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """The tensors of one network by their foreign names."""

    tensors: Mapping[str, Tensor]
    prefix: str
    """What comes before these names in the file; messages show it."""
    source: str | Path
    """The file, for messages."""

    def under(self, prefix: str) -> "Weights":
        """Those whose names begin with `prefix`, without it."""
        part = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        return Weights(part, self.prefix + prefix, self.source)

    def count(self, name: Callable[[int], str], limit: int = 300) -> int:
        """How many there are of what `name` numbers from 0: by the highest number, so that a gap shows as missing."""
        return max((k for k in range(limit) if name(k) in self.tensors), default=-1) + 1

    def size(self, name: str, axis: int) -> int:
        """Size along `axis` of the tensor that an architecture is inferred from."""
        if name not in self.tensors:
            raise self.error(f"the tensor {self.prefix}{name} is missing")
        if axis >= self.tensors[name].ndim:
            raise self.error(f"the tensor {self.prefix}{name} has the shape {list(self.tensors[name].shape)}")
        return self.tensors[name].shape[axis]

    def translate(
        self,
        kind: str,
        config: Any,
        names: Mapping[str, str],
        shape: Callable[[str, Shape], Shape] = lambda _, ours: ours,
        filters: Mapping[str, float] | None = None,
    ) -> StoredNetwork:
        """The network of architecture `config`; every tensor of it must be here in the right shape, and nothing else.

        Args:
            kind: one of `native.KINDS`.
            config: its architecture.
            names: the foreign name of each of our tensors.
            shape: the foreign shape of the tensor with our name and our shape; the order of its elements is the same.
            filters: how the names of stored low-pass filters end, with the sum of each. They are no weights, but must
                equal our filter.
        """
        ours = {name: tuple(t.shape) for name, t in skeleton(kind, config).state_dict().items()}
        if "w_avg" in names:
            ours["w_avg"] = (config.code_dim,)
        weights = {name: t for name, t in self.tensors.items() if not self._is_filter(name, t, filters or {})}
        check_tensors(
            {self.prefix + name: t for name, t in weights.items()},
            {self.prefix + names[name]: shape(name, size) for name, size in ours.items()},
            self.source,
        )
        for name, tensor in weights.items():
            check_values(f"{self.prefix}{name}", tensor, self.source)
        return StoredNetwork(kind, config, {name: weights[names[name]].reshape(size) for name, size in ours.items()})

    def error(self, problem: str) -> CheckpointError:
        """The error to raise about these weights."""
        return CheckpointError(f"{self.source}: {problem}")

    def _is_filter(self, name: str, tensor: Tensor, filters: Mapping[str, float]) -> bool:
        for ending, gain in filters.items():
            if name.endswith(ending):
                if tensor.shape != (4, 4) or not torch.allclose(tensor.float(), binomial_kernel(gain), atol=1e-4 * gain):
                    raise self.error(f"the filter {self.prefix}{name} is not [1, 3, 3, 1], the only one that is supported")
                return True
        return False


def pair(ours: str, theirs: str) -> dict[str, str]:
    """The names of the weight and the bias of one layer, ours to theirs."""
    return {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in ("weight", "bias")}
