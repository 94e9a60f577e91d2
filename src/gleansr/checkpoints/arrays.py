"""Arrays of NumPy in pickles, which some programs save in place of tensors: places in the file, as `StoredTensor`s are."""

from collections.abc import Callable
from typing import Any

import torch

from gleansr.checkpoints.stored import LARGEST_RANK, StoredNumbers, StoredTensor
from gleansr.checkpoints.unpickle import Budget, Opaque

_DTYPES = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}


class DTypeStandIn(Opaque):
    """What stands for a dtype."""

    __slots__ = ("dtype",)

    def __init__(self, name: Any = None, *_: Any):
        self.dtype = _DTYPES.get(name) if isinstance(name, str) else None

    def build(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] != "<":  # of a big-endian machine
            self.dtype = None


class Array(Opaque):
    """What stands for an array."""

    __slots__ = ("stored",)

    def __init__(self, *_: Any):
        self.stored: StoredTensor | None = None
        """Its numbers, if they are plain floating-point ones."""

    def build(self, state: Any) -> None:
        if type(state) is tuple and len(state) == 5:
            _, shape, kind, by_columns, data = state
            self.stored = _stored(data, kind, shape, by_columns is True)


def _of_buffer(data: Any = None, kind: Any = None, shape: Any = None, order: Any = None, *_: Any) -> Array:
    array = Array()
    array.stored = _stored(data, kind, shape, order == "F")
    return array


def _stored(data: Any, kind: Any, shape: Any, by_columns: bool) -> StoredTensor | None:
    if not (isinstance(data, memoryview) and isinstance(kind, DTypeStandIn) and kind.dtype and type(shape) is tuple):
        return None
    if len(shape) > LARGEST_RANK or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        return None
    strides, step = [], 1
    for n in shape if by_columns else shape[::-1]:
        strides.append(step)
        step *= n
    return StoredTensor.checked(StoredNumbers(kind.dtype, data), 0, shape, tuple(strides if by_columns else strides[::-1]))


def calls(budget: Budget) -> dict[str, Callable[..., Any]]:
    """What stands in for the functions that make arrays."""

    def encoded(text: Any = None, *_: Any) -> Any:
        """The bytes of older protocols, which have them as text of as many characters."""
        if not isinstance(text, str):
            return Opaque()
        budget.read(len(text))
        try:
            return memoryview(bytearray(text, "latin-1"))
        except UnicodeEncodeError:
            return Opaque()

    return {
        "_codecs.encode": encoded,
        "numpy.dtype": DTypeStandIn,
        **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": _of_buffer for core in ("core", "_core")},
    }
