"""Tensors as positions in the bytes of a file, created on demand."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MAX_RANK = 8


class MalformedError(Exception):
    """An invalid file of weights; the message says why."""


class Storage:
    """A sequence of values of one type in a file."""

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: torch.dtype, data: memoryview):
        """`data`: the bytes of the values."""
        self.dtype, self.data = dtype, data


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor within a storage; its shape is checked, its values are not read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def checked(cls, storage: object, offset: object, shape: object, stride: object, dtype: torch.dtype | None = None) -> "LazyTensor":
        """The tensor. Raises MalformedError unless the arguments have the right types and all values are within the storage."""
        if not isinstance(storage, Storage):
            raise MalformedError("a tensor without a storage")
        dtype = dtype or storage.dtype
        shape, stride = _sizes(shape), _sizes(stride)
        if len(shape) != len(stride) or type(offset) is not int or offset < 0:
            raise MalformedError("a tensor with inconsistent shape and strides")
        numbers = 0 if 0 in shape else offset + 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if numbers * dtype.itemsize > len(storage.data):
            raise MalformedError(f"a tensor of shape {list(shape)} reaches beyond its storage")
        return cls(storage, offset, shape, stride, dtype)

    @property
    def nbytes(self) -> int:
        """Size of a contiguous copy in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def tensor(self) -> Tensor:
        """The tensor, which shares the file's memory if possible."""
        if not len(self.storage.data):
            return torch.empty(self.shape, dtype=self.dtype)
        numbers = torch.frombuffer(self.storage.data, dtype=torch.uint8)
        if numbers.data_ptr() % self.dtype.itemsize:
            numbers = numbers.clone()  # older files do not align values
        usable = len(numbers) // self.dtype.itemsize * self.dtype.itemsize
        return numbers[:usable].view(self.dtype).as_strided(self.shape, self.stride, self.offset)


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple | list) or len(value) > MAX_RANK:
        raise MalformedError(f"a tensor of more than {MAX_RANK} axes, or of unknown axes")
    if not all(type(n) is int and 0 <= n < 2**48 for n in value):
        raise MalformedError("a tensor with invalid sizes")
    return tuple(value)
