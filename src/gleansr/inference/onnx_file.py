"""Checks the bytes of an ONNX file before any other program reads it.

ONNX Runtime executes a file, in part while loading it: a loop may not end, a few bytes may request any amount of memory, and a file may
name other files. Networks written by `gleansr export` need none of that.
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gleansr.errors import CheckpointError

MOST_NODES = 20_000
"""Largest number of layers; the largest network of gleansr has 2,000."""
MOST_FIELDS = 500_000
"""Largest number of fields: names, attributes, shapes."""
LARGEST_ATTRIBUTE = 1024
"""Largest integer attribute of a layer, such as a convolution's padding."""
LARGEST_SIZE = 2**17
"""Largest integer in a tensor, such as a shape, except "to the end"."""
LARGEST_SHAPE = 2**28
"""Largest product of the values of a short integer tensor, which may be a shape."""

OPERATORS = frozenset(
    """
    Add BatchNormalization Cast Clip Concat Constant Conv ConvTranspose DepthToSpace DequantizeLinear Div Einsum Exp Expand Flatten Gather
    Gemm GlobalAveragePool Identity InstanceNormalization LeakyRelu MatMul Max Min Mul Neg PRelu Pad Pow Reciprocal ReduceMean ReduceSum
    ReduceSumSquare Relu Reshape Resize Shape Sigmoid Slice Softmax SpaceToDepth Split Sqrt Squeeze Sub Tanh Transpose Unsqueeze
    """.split()  # noqa: SIM905, as a list it would be as long as the rest
)
"""Operators of upscaling networks. Of these only Expand, Pad, Resize and the convolutions enlarge their input."""

# Field numbers of the checked fields in onnx.proto.
_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_OP, _NODE_ATTRIBUTE, _NODE_DOMAIN = 4, 5, 7
_ATTRIBUTE_I, _ATTRIBUTE_TENSOR, _ATTRIBUTE_INTS, _SUBGRAPHS = 3, 5, 8, (6, 11)
_TENSOR_TYPE, _TENSOR_INTS, _TENSOR_LONGS, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 2, 5, 7, 9, 13, 14
_INT32, _INT64 = 6, 7
_TO_THE_END = 2**63 - 1


class _Problem(Exception):  # noqa: N818, as Malformed
    """The problem with a file, for the message."""


def check(path: str | Path) -> None:
    """Raises CheckpointError for a file that does more than enlarge images, or that needs more resources than its size suggests."""
    try:
        with Path(path).open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        _Check().model(data)
    except _Problem as problem:
        raise CheckpointError(f"{path}: ONNX Runtime cannot load it: {problem}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


class _Check:
    def __init__(self) -> None:
        self._fields = self._nodes = 0

    def model(self, data: memoryview) -> None:
        for number, value in self._message(data):
            if number == _MODEL_FUNCTIONS:
                raise _Problem("it contains functions, which no file of `gleansr export` does")
            if number == _MODEL_GRAPH:
                self._graph(value)

    def _graph(self, data: memoryview) -> None:
        for number, value in self._message(data):
            if number == _GRAPH_NODE:
                self._node(value)
            elif number == _GRAPH_INITIALIZER:
                self._tensor(value)
            elif number == _GRAPH_SPARSE:
                raise _Problem("it contains sparse weights, which no file of `gleansr export` does")

    def _node(self, data: memoryview) -> None:
        self._nodes += 1
        if self._nodes > MOST_NODES:
            raise _Problem(f"it has more than {MOST_NODES:,} layers")
        for number, value in self._message(data):
            if number == _NODE_OP and (name := self._text(value)) not in OPERATORS:
                raise _Problem(f"it uses the operator {name!r}, which no file of `gleansr export` does")
            if number == _NODE_DOMAIN and (domain := self._text(value)) not in ("", "ai.onnx"):
                raise _Problem(f"it uses operators of {domain!r}, which are not standard")
            if number == _NODE_ATTRIBUTE:
                self._attribute(value)

    def _attribute(self, data: memoryview) -> None:
        for number, value in self._message(data):
            if number in _SUBGRAPHS:
                raise _Problem("it contains a loop or a condition, which no file of `gleansr export` does")
            if number == _ATTRIBUTE_TENSOR:
                self._tensor(value)
            elif number in (_ATTRIBUTE_I, _ATTRIBUTE_INTS):
                for attribute in self._integers(value):
                    self._size(attribute, LARGEST_ATTRIBUTE)

    def _tensor(self, data: memoryview) -> None:
        kind = 0
        numbers: list[int] = []
        raw = memoryview(b"")
        for number, value in self._message(data):
            if number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value):
                raise _Problem("its weights are in another file, which is not read; save it as one file")
            if number == _TENSOR_TYPE:
                kind = value
            elif number == _TENSOR_RAW:
                raw = self._bytes(value)
            elif number in (_TENSOR_INTS, _TENSOR_LONGS):
                numbers += self._integers(value)
        if kind in (_INT32, _INT64):  # shapes, paddings, indices; weights are never integers
            width = 4 if kind == _INT32 else 8
            if len(raw) > 2**20:
                raise _Problem("it contains a tensor of more than a million integers")
            numbers += [int.from_bytes(raw[i : i + width], "little", signed=True) for i in range(0, len(raw) // width * width, width)]
            for size in numbers:
                self._size(size, LARGEST_SIZE)
            if len(numbers) <= 8 and math.prod(size for size in numbers if 0 < size < _TO_THE_END) > LARGEST_SHAPE:
                raise _Problem(f"a shape is {numbers}; at most {LARGEST_SHAPE:,} values are allowed")

    def _size(self, value: int, limit: int) -> None:
        self._count()
        if limit < value < _TO_THE_END:
            raise _Problem(f"a size or an attribute is {value:,}; at most {limit:,} is allowed")

    def _integers(self, value: Any) -> Iterator[int]:
        """The values of an integer field: one, or several packed."""
        if isinstance(value, int):
            yield _signed(value)
            return
        value, position = self._bytes(value), 0
        while position < len(value):
            self._count()
            number, position = self._varint(value, position)
            yield _signed(number)

    def _bytes(self, value: Any) -> memoryview:
        if not isinstance(value, memoryview):
            raise _Problem("it is not a whole ONNX file")
        return value

    def _text(self, value: Any) -> str:
        return bytes(self._bytes(value)[:50]).decode("utf-8", "replace")

    def _message(self, data: memoryview) -> Iterator[tuple[int, Any]]:
        """The fields of a protobuf message: numbers and values. Longer values are not copied."""
        data, position = self._bytes(data), 0
        while position < len(data):
            self._count()
            key, position = self._varint(data, position)
            wire = key & 7
            if wire == 0:
                value, position = self._varint(data, position)
            elif wire in (1, 5):
                value, position = None, position + (8 if wire == 1 else 4)
            elif wire == 2:
                length, position = self._varint(data, position)
                value, position = data[position : position + length], position + length
            else:
                raise _Problem("it is not a whole ONNX file")
            if position > len(data):
                raise _Problem("it is not a whole ONNX file; it may have been cut off on its way")
            yield key >> 3, value

    def _varint(self, data: memoryview, position: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= len(data):
                raise _Problem("it is not a whole ONNX file; it may have been cut off on its way")
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise _Problem("it is not a whole ONNX file")

    def _count(self) -> None:
        self._fields += 1
        if self._fields > MOST_FIELDS:
            raise _Problem(f"its description has more than {MOST_FIELDS:,} fields")


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
