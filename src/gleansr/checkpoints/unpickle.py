"""A pickle reader that calls nothing, hashes only strings, and does bounded work.

Python's reader builds whatever a file describes: 900 bytes can allocate gigabytes, and sixty nested tuples can take forever to hash. This
one creates dictionaries (by strings), lists, tuples, numbers, strings and `LazyTensor`s. Classes and functions in a file are looked up in a
table; those that weights do not need become an `Opaque`, unknown ones are refused.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gleansr.checkpoints.lazy_tensors import LazyTensor, MalformedError

MAX_STEPS = 1_000_000
"""Limit of operations and copied items in all pickles of a file: a second or two. A training file of 600 tensors takes 70,000."""
MAX_TEXT = 2**26
"""Limit in bytes of all strings in a file."""
_MAX_NUMBER = 32  # bytes: NumPy's generators have states of 16
_MAX_NAME = 300
_STOP = ord(".")
_CUT = "it ends too early; it may have been cut off on its way"


class RefusedError(Exception):
    """A function or class that weights do not need; the message is its name."""


class Opaque:
    """Placeholder of an object that is not a weight, such as a path, a date or a NumPy number."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        """Receives the state of the object."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name in a pickle, and the replacement of its call."""

    name: str
    call: Callable[..., Any]


class Budget:
    """Limits of the work for one file, shared by all its pickles."""

    def __init__(self) -> None:
        self.steps, self.text = MAX_STEPS, MAX_TEXT

    def spend(self, steps: int) -> None:
        """Counts operations. Raises MalformedError beyond the limit."""
        self.steps -= steps
        if self.steps < 0:
            raise MalformedError(f"more than {MAX_STEPS:,} operations, more than any file of weights needs")

    def read(self, length: int) -> None:
        """Counts bytes of text. Raises MalformedError beyond the limit."""
        self.text -= length
        if self.text < 0:
            raise MalformedError(f"more than {MAX_TEXT:,} bytes of text, more than any file of weights needs")


Resolve = Callable[[str], Global]
Persistent = Callable[[Any], Any]


def new_dict(budget: Budget, *arguments: Any) -> dict[str, Any]:
    """Replacement of calls of dict and similar types: of pairs, of a dictionary, or without contents."""
    result: dict[str, Any] = {}
    for argument in arguments:
        if type(argument) is dict:
            budget.spend(len(argument))
            result.update(argument)
        elif type(argument) is list:
            budget.spend(len(argument))
            for pair in argument:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise MalformedError("a dictionary of items that are not pairs")
                _set(result, pair[0], pair[1])
    return result


def load(data: memoryview, position: int, budget: Budget, resolve: Resolve, persistent: Persistent | None = None) -> tuple[Any, int]:
    """The object that the pickle at `position` describes, and the position after it.

    Args:
        data: the file.
        position: start of the pickle.
        budget: limits of the work.
        resolve: looks up names; raises RefusedError.
        persistent: creates objects from the persistent ids of torch.

    Raises:
        MalformedError: it is truncated, exceeds a limit, or is not a pickle of weights.
    """
    machine = _Machine(data, position, budget, resolve, persistent)
    return machine.run(), machine.position


def _set(target: dict[str, Any], key: Any, value: Any) -> None:
    """Sets a key, as a string: keys of other types could collide or never finish hashing."""
    if isinstance(key, str):
        target[key] = value
    elif key is None or isinstance(key, int | float):
        target[str(key)] = value
    # Other keys, such as tuples, are never keys of weights.


class _Machine:
    def __init__(self, data: memoryview, position: int, budget: Budget, resolve: Resolve, persistent: Persistent | None):
        self.data, self.position, self._budget, self._resolve, self._persistent = data, position, budget, resolve, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks before the marks
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            if self.position >= len(self.data):
                raise MalformedError(_CUT)
            code = self.data[self.position]
            self.position += 1
            self._budget.spend(1)
            if code == _STOP:
                return self._pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise MalformedError(f"the pickle operation {code:#04x}, which files of weights do not use")
            operation(self)

    # ---------------------------------------------------------------------------------------------------- reading and the stack

    def _take(self, length: int) -> memoryview:
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise MalformedError(_CUT)
        return self.data[start : self.position]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, length: int) -> bytes:
        self._budget.read(length)
        return bytes(self._take(length))

    def _line(self) -> str:
        line = bytes(self.data[self.position : self.position + _MAX_NAME])
        length = line.find(b"\n")
        if length < 0:
            raise MalformedError("a name without end")
        self._take(length + 1)
        return line[:length].decode("utf-8", "replace")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise MalformedError("an operation without its operands")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise MalformedError("an operation without its operands")
        return self._stack[-1]

    def _marked(self) -> list[Any]:
        if not self._below:
            raise MalformedError("an operation without its mark")
        items, self._stack = self._stack, self._below.pop()
        return items

    # --------------------------------------------------------------------------------------------------------------- operations

    def mark(self) -> None:
        self._below.append(self._stack)
        self._stack = []

    def pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._marked()

    def push_long(self) -> None:
        length = self._number("<B")
        if length > _MAX_NUMBER:
            raise MalformedError(f"a number of {length} bytes")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def push_text(self, form: str, encoding: str) -> None:
        self._push(str(self._text(self._number(form)), encoding, "surrogatepass" if encoding == "utf-8" else "strict"))

    def append(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise MalformedError("items for an object that is not a list")

    def set_items(self, items: list[Any]) -> None:
        target = self._top()
        if len(items) % 2 or not isinstance(target, dict | Opaque):
            raise MalformedError("items for an object that is not a dictionary")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                _set(target, key, value)

    def global_(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str) and len(module) + len(name) < _MAX_NAME):
            raise MalformedError("an invalid name")
        module = {"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module)  # as Python 2 called them
        self._push(self._resolve(f"{module}.{name}"))

    def stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self.global_(module, name)

    def call(self, *, named: bool = False) -> None:
        if named:
            self._pop()
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, Global) or type(arguments) is not tuple or len(arguments) > 16:
            raise MalformedError("a call of an object that is not a function")
        self._push(function.call(*arguments))

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Opaque):
            target.build(state)
            return
        if isinstance(target, Global):
            raise MalformedError("it tries to change a function")
        if not isinstance(target, dict | list):  # attributes of a dictionary, such as a state dict, are ignored
            raise MalformedError(f"it tries to change a {'tensor' if isinstance(target, LazyTensor) else type(target).__name__}")

    def put(self, index: int | None = None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise MalformedError(f"it refers to object {index}, which it has not described")
        self._push(self._memo[index])

    def persistent(self) -> None:
        if self._persistent is None:
            raise MalformedError("it refers to objects that are not in it")
        self._push(self._persistent(self._pop()))

    def tuple_(self, length: int) -> None:
        items = [self._pop() for _ in range(length)]
        self._push(tuple(items[::-1]))


def _constant(value: Any) -> Callable[[_Machine], None]:
    return lambda m: m._push(value)


def _read(form: str) -> Callable[[_Machine], None]:
    return lambda m: m._push(m._number(form))


def _text(form: str, encoding: str = "utf-8") -> Callable[[_Machine], None]:
    return lambda m: m.push_text(form, encoding)


def _bytes(form: str) -> Callable[[_Machine], None]:
    return lambda m: m._push(m._take(m._number(form)))  # not copied: these may be all the weights


def _skipped(length: int) -> Callable[[_Machine], None]:
    def skip(m: _Machine) -> None:
        m._take(length)

    return skip


def _forget(m: _Machine) -> None:
    m._marked()


def _set_of_nothing(m: _Machine) -> None:
    _forget(m)
    m._push(Opaque())


_OPERATIONS: Mapping[int, Callable[[_Machine], None]] = {
    ord(code): operation
    for code, operation in {
        "\x80": _skipped(1),  # PROTO
        "\x95": _skipped(8),  # FRAME
        "(": _Machine.mark,
        "0": _Machine.pop,
        "1": _forget,  # POP_MARK
        "2": lambda m: m._push(m._top()),  # DUP
        "N": _constant(None),
        "\x88": _constant(True),
        "\x89": _constant(False),
        "J": _read("<i"),
        "K": _read("<B"),
        "M": _read("<H"),
        "\x8a": _Machine.push_long,
        "G": _read(">d"),
        "U": _text("<B", "latin-1"),
        "T": _text("<I", "latin-1"),
        "X": _text("<I"),
        "\x8c": _text("<B"),
        "\x8d": _text("<Q"),
        "B": _bytes("<I"),
        "C": _bytes("<B"),
        "\x8e": _bytes("<Q"),
        "\x96": _bytes("<Q"),  # BYTEARRAY8
        "]": lambda m: m._push([]),
        "a": lambda m: m.append([m._pop()]),
        "e": lambda m: m.append(m._marked()),
        ")": _constant(()),
        "t": lambda m: m._push(tuple(m._marked())),
        "\x85": lambda m: m.tuple_(1),
        "\x86": lambda m: m.tuple_(2),
        "\x87": lambda m: m.tuple_(3),
        "}": lambda m: m._push({}),
        "s": lambda m: m.set_items([m._pop(), m._pop()][::-1]),
        "u": lambda m: m.set_items(m._marked()),
        "\x8f": lambda m: m._push(Opaque()),  # EMPTY_SET
        "\x90": _forget,  # ADDITEMS
        "\x91": _set_of_nothing,  # FROZENSET
        "c": lambda m: m.global_(m._line(), m._line()),
        "\x93": _Machine.stack_global,
        "R": _Machine.call,
        "\x81": _Machine.call,  # NEWOBJ
        "\x92": lambda m: m.call(named=True),  # NEWOBJ_EX
        "b": _Machine.build,
        "q": lambda m: m.put(m._number("<B")),
        "r": lambda m: m.put(m._number("<I")),
        "\x94": _Machine.put,  # MEMOIZE
        "h": lambda m: m.get(m._number("<B")),
        "j": lambda m: m.get(m._number("<I")),
        "Q": _Machine.persistent,
    }.items()
}
