"""The weights of one network in a foreign file, and their translation to native names."""

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
    """The tensors of one network by foreign name."""

    tensors: Mapping[str, Tensor]
    prefix: str
    """Prefix of the names in the file, for messages."""
    source: str | Path
    """The file, for messages."""

    def under(self, prefix: str) -> "Weights":
        """The tensors whose names start with `prefix`, without it."""
        part = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
        return Weights(part, self.prefix + prefix, self.source)

    def count(self, name: Callable[[int], str], limit: int = 300) -> int:
        """The highest number k with a tensor `name(k)`, plus 1: gaps are reported as missing tensors later."""
        return max((k for k in range(limit) if name(k) in self.tensors), default=-1) + 1

    def size(self, name: str, axis: int) -> int:
        """Size of a tensor along `axis`, to infer an architecture."""
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
        shape: Callable[[str, Shape], Shape] = lambda _, native: native,
        filters: Mapping[str, float] | None = None,
    ) -> StoredNetwork:
        """The network of architecture `config`; exactly its tensors must be present, in the right shapes.

        Args:
            kind: one of `native.KINDS`.
            config: its architecture.
            names: native -> foreign names.
            shape: the foreign shape of a tensor from its native name and shape; the order of elements is the same.
            filters: suffixes of stored low-pass filters -> their sums. They are ignored, but must equal the only
                supported filter.
        """
        native = {name: tuple(t.shape) for name, t in skeleton(kind, config).state_dict().items()}
        if "w_avg" in names:
            native["w_avg"] = (config.code_dim,)
        weights = {name: t for name, t in self.tensors.items() if not self._is_filter(name, t, filters or {})}
        check_tensors(
            {self.prefix + name: t for name, t in weights.items()},
            {self.prefix + names[name]: shape(name, size) for name, size in native.items()},
            self.source,
        )
        for name, tensor in weights.items():
            check_values(f"{self.prefix}{name}", tensor, self.source)
        return StoredNetwork(kind, config, {name: weights[names[name]].reshape(size) for name, size in native.items()})

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


def pair(native: str, foreign: str) -> dict[str, str]:
    """The names of the weight and the bias of one layer, native to foreign."""
    return {f"{native}.{leaf}": f"{foreign}.{leaf}" for leaf in ("weight", "bias")}
