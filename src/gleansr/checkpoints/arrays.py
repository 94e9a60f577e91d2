"""NumPy arrays in pickles, which some programs save in place of tensors, as `LazyTensor`s."""

from collections.abc import Callable
from typing import Any

import torch

from gleansr.checkpoints.lazy_tensors import MAX_RANK, LazyTensor, Storage
from gleansr.checkpoints.unpickle import Budget, Opaque

_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}


class DTypePlaceholder(Opaque):
    """Placeholder of a dtype."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any = None, *_: Any):
        self.dtype = _DTYPES.get(name) if isinstance(name, str) else None

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] != "<":  # big-endian
            self.dtype = None


class ArrayPlaceholder(Opaque):
    """Placeholder of an array."""

    __slots__ = ("stored",)

    def __init__(self, *_: Any):
        self.stored: LazyTensor | None = None
        """The numbers, if they are floating-point."""

    def build(self, state: Any) -> None:
        if type(state) is tuple and len(state) == 5:
            _, shape, kind, by_columns, data = state
            self.stored = _stored(data, kind, shape, by_columns is True)


def _of_buffer(data: Any = None, kind: Any = None, shape: Any = None, order: Any = None, *_: Any) -> ArrayPlaceholder:
    array = ArrayPlaceholder()
    array.stored = _stored(data, kind, shape, order == "F")
    return array


def _stored(data: Any, kind: Any, shape: Any, by_columns: bool) -> LazyTensor | None:
    if not (isinstance(data, memoryview) and isinstance(kind, DTypePlaceholder) and kind.dtype and type(shape) is tuple):
        return None
    if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        return None
    strides, step = [], 1
    for n in shape if by_columns else shape[::-1]:
        strides.append(step)
        step *= n
    return LazyTensor.checked(Storage(kind.dtype, data), 0, shape, tuple(strides if by_columns else strides[::-1]))


def calls(budget: Budget) -> dict[str, Callable[..., Any]]:
    """Replacements of the functions that create arrays."""

    def encoded(text: Any = None, *_: Any) -> Any:
        """Bytes in older protocols, which store them as text."""
        if not isinstance(text, str):
            return Opaque()
        budget.read(len(text))
        try:
            return memoryview(bytearray(text, "latin-1"))
        except UnicodeEncodeError:
            return Opaque()

    return {
        "_codecs.encode": encoded,
        "numpy.dtype": DTypePlaceholder,
        **{f"numpy.{core}.multiarray._reconstruct": ArrayPlaceholder for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": _of_buffer for core in ("core", "_core")},
    }
