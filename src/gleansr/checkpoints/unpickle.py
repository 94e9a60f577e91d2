"""Pickles read by a machine of our own that calls nothing, hashes nothing but strings, and does bounded work.

Python's own reader builds whatever a file asks for: 900 bytes can ask for gigabytes, and a tuple of itself, sixty times over, takes for
ever to hash. This one makes dictionaries (by strings), lists, tuples, numbers, strings, and tensors that are places in the file. A class or
a function that a file names is looked up in a table; what weights have no need of becomes an `Opaque`, what is not in the table is refused.
"""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gleansr.checkpoints.stored import Malformed, StoredTensor

MOST_STEPS = 1_000_000
"""Operations in all the pickles of one file, and items that they copy: a second or two. A training file of 600 tensors takes 70,000."""
MOST_TEXT = 2**26
"""Bytes of all the strings in one file."""
_LONGEST_NUMBER = 32  # bytes: NumPy's generators have states of 16
_LONGEST_NAME = 300
_STOP = ord(".")
_CUT = "it ends too early; it may have been cut off on its way"


class Refused(Exception):  # noqa: N818, as Malformed
    """The name of a function or class that weights have no need of."""


class Opaque:
    """Some object that is no weight, such as a path, a date or a NumPy number. Nothing of it is kept."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        """What a pickle tells of it once it is made."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name in a pickle, and what stands in for a call of it."""

    name: str
    call: Callable[..., Any]


class Budget:
    """The work that one file may cause; shared by all its pickles."""

    def __init__(self) -> None:
        self.steps, self.text = MOST_STEPS, MOST_TEXT

    def spend(self, steps: int) -> None:
        """Raises Malformed when that is too much."""
        self.steps -= steps
        if self.steps < 0:
            raise Malformed(f"more than {MOST_STEPS:,} operations, which no file of weights needs")

    def read(self, length: int) -> None:
        """As `spend`, of bytes of text."""
        self.text -= length
        if self.text < 0:
            raise Malformed(f"more than {MOST_TEXT:,} bytes of text, which no file of weights needs")


Resolve = Callable[[str], Global]
Persistent = Callable[[Any], Any]


def new_dict(budget: Budget, *arguments: Any) -> dict[str, Any]:
    """What stands in for a call of dict and its like: of pairs, of a dictionary, or of what says nothing."""
    made: dict[str, Any] = {}
    for argument in arguments:
        if type(argument) is dict:
            budget.spend(len(argument))
            made.update(argument)
        elif type(argument) is list:
            budget.spend(len(argument))
            for pair in argument:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise Malformed("a dictionary of what are no pairs")
                _set(made, pair[0], pair[1])
    return made


def load(data: memoryview, position: int, budget: Budget, resolve: Resolve, persistent: Persistent | None = None) -> tuple[Any, int]:
    """The object that the pickle at `position` describes, and the position behind it.

    Args:
        data: the file.
        position: where the pickle begins.
        budget: what its work is taken from.
        resolve: what a name stands for; raises Refused.
        persistent: makes objects of what torch calls persistent ids.

    Raises:
        Malformed: it is cut off, asks for too much, or is not made as pickles of weights are.
    """
    machine = _Machine(data, position, budget, resolve, persistent)
    return machine.run(), machine.position


def _set(target: dict[str, Any], key: Any, value: Any) -> None:
    """Keys are strings: those of others' types could be made to collide, or be endless to hash."""
    if isinstance(key, str):
        target[key] = value
    elif key is None or isinstance(key, int | float):
        target[str(key)] = value
    # a tuple, or an object: nothing that weights are found by


class _Machine:
    def __init__(self, data: memoryview, position: int, budget: Budget, resolve: Resolve, persistent: Persistent | None):
        self.data, self.position, self._budget, self._resolve, self._persistent = data, position, budget, resolve, persistent
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks before the marks
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            if self.position >= len(self.data):
                raise Malformed(_CUT)
            code = self.data[self.position]
            self.position += 1
            self._budget.spend(1)
            if code == _STOP:
                return self._pop()
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise Malformed(f"the operation {code:#04x} of pickle, which files of weights do not have")
            operation(self)

    # ---------------------------------------------------------------------------------------------------- reading and the stack

    def _take(self, length: int) -> memoryview:
        start, self.position = self.position, self.position + length
        if self.position > len(self.data):
            raise Malformed(_CUT)
        return self.data[start : self.position]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _text(self, length: int) -> bytes:
        self._budget.read(length)
        return bytes(self._take(length))

    def _line(self) -> str:
        found = bytes(self.data[self.position : self.position + _LONGEST_NAME])
        length = found.find(b"\n")
        if length < 0:
            raise Malformed("a name without end")
        self._take(length + 1)
        return found[:length].decode("utf-8", "replace")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack:
            raise Malformed("an operation without its operands")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise Malformed("an operation without its operands")
        return self._stack[-1]

    def _marked(self) -> list[Any]:
        if not self._below:
            raise Malformed("an operation without its mark")
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
        if length > _LONGEST_NUMBER:
            raise Malformed(f"a number of {length} bytes")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def push_text(self, form: str, encoding: str) -> None:
        self._push(str(self._text(self._number(form)), encoding, "surrogatepass" if encoding == "utf-8" else "strict"))

    def append(self, items: list[Any]) -> None:
        target = self._top()
        if type(target) is list:
            target.extend(items)
        elif not isinstance(target, Opaque):
            raise Malformed("items for what is no list")

    def set_items(self, items: list[Any]) -> None:
        target = self._top()
        if len(items) % 2 or not isinstance(target, dict | Opaque):
            raise Malformed("items for what is no dictionary")
        if isinstance(target, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                _set(target, key, value)

    def global_(self, module: Any, name: Any) -> None:
        if not (isinstance(module, str) and isinstance(name, str) and len(module) + len(name) < _LONGEST_NAME):
            raise Malformed("a name that is none")
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
            raise Malformed("a call of what is no function")
        self._push(function.call(*arguments))

    def build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, Opaque):
            target.build(state)
            return
        if isinstance(target, Global):
            raise Malformed("it tries to change a function")
        if not isinstance(target, dict | list):  # of a dictionary, such as a state dict, the attributes are nothing to us
            raise Malformed(f"it tries to change a {'tensor' if isinstance(target, StoredTensor) else type(target).__name__}")

    def put(self, index: int | None = None) -> None:
        self._memo[len(self._memo) if index is None else index] = self._top()

    def get(self, index: int) -> None:
        if index not in self._memo:
            raise Malformed(f"it takes up object {index}, which it has not described")
        self._push(self._memo[index])

    def persistent(self) -> None:
        if self._persistent is None:
            raise Malformed("it names objects that are not in it")
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
    return lambda m: m._push(m._take(m._number(form)))  # in place: these may be all the weights


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
