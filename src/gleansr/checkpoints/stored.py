"""Tensors as files hold them: places in a file's bytes, made into tensors only where they are wanted."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_RANK = 8


class Malformed(Exception):  # noqa: N818, it names what the file is
    """What a file of weights may not hold, in words for the user."""


class StoredNumbers:
    """A run of numbers of one type in a file."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: torch.dtype, data: memoryview):
        """`data`: bytes, as many as the numbers take."""
        self.dtype, self.data = dtype, data


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that lies within a storage; its shape is checked, its numbers are not read."""

    storage: StoredNumbers
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def checked(cls, storage: object, offset: object, shape: object, stride: object, dtype: torch.dtype | None = None) -> "StoredTensor":
        """Raises Malformed unless the parts are of the right types and all numbers lie within the storage."""
        if not isinstance(storage, StoredNumbers):
            raise Malformed("a tensor without a storage")
        dtype = dtype or storage.dtype
        shape, stride = _sizes(shape), _sizes(stride)
        if len(shape) != len(stride) or type(offset) is not int or offset < 0:
            raise Malformed("a tensor whose shape and strides do not go together")
        numbers = 0 if 0 in shape else offset + 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if numbers * dtype.itemsize > len(storage.data):
            raise Malformed(f"a tensor of shape {list(shape)} reaches beyond its storage")
        return cls(storage, offset, shape, stride, dtype)

    @property
    def nbytes(self) -> int:
        """What its numbers take when each is stored once."""
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The tensor; it shares the file's memory where that is possible."""
        if not len(self.storage.data):
            return torch.empty(self.shape, dtype=self.dtype)
        numbers = torch.frombuffer(self.storage.data, dtype=torch.uint8)
        if numbers.data_ptr() % self.dtype.itemsize:
            numbers = numbers.clone()  # older files do not align their numbers
        usable = len(numbers) // self.dtype.itemsize * self.dtype.itemsize
        return numbers[:usable].view(self.dtype).as_strided(self.shape, self.stride, self.offset)


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > LARGEST_RANK:
        raise Malformed(f"a tensor of more than {LARGEST_RANK} axes, or of none that are known")
    if not all(type(n) is int and 0 <= n < 2**48 for n in value):
        raise Malformed("a tensor whose sizes are no numbers of elements")
    return tuple(value)
