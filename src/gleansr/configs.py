"""Dataclasses from plain data (TOML, JSON): strict about keys and types; one error lists all problems."""

import dataclasses
import difflib
import math
import reprlib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from gleansr.documents import MAX_DEPTH, DocumentError, parse_toml
from gleansr.errors import RequestError

T = TypeVar("T")


def from_dict(cls: type[T], data: Mapping[str, Any], source: str) -> T:
    """An instance of the dataclass `cls` from `data`; missing keys take their defaults.

    One RequestError, which starts with `source`, lists all unknown keys (with the nearest known one), missing keys and wrong types.
    """
    problems: list[str] = []
    value = _dataclass(cls, data, "", problems)
    if problems:
        raise RequestError(f"{source}: {'; '.join(problems)}")
    return value


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, for the annotation of a field: Annotated[int, Range(1)]."""

    low: float
    high: float = math.inf
    exclusive: bool = False
    """Whether `high` itself is out of range."""

    def problem(self, name: str, value: Any) -> str | None:
        """The message for a number, or a tuple of numbers, out of range; None if all are within."""
        numbers = [number for number in (value if isinstance(value, tuple) else (value,)) if number is not None]
        below = "below " if self.exclusive else ""
        if all(self.low <= number < self.high or (number == self.high and not self.exclusive) for number in numbers):
            return None
        expected = f"{self.low:g} or more" if self.high == math.inf else f"{self.low:g} to {below}{self.high:g}"
        return f"{name} must be {expected}, not {value}"


def check(instance: Any, *conditions: tuple[bool, str]) -> None:
    """For `__post_init__`: raises one ValueError whose arguments are the messages of all fields out of their `Range` and of all conditions
    that are false."""
    problems = _out_of_range(type(instance), vars(instance))
    problems += [message for holds, message in conditions if not holds]
    if problems:
        raise ValueError(*problems)


def check_request(instance: Any, *conditions: tuple[bool, str]) -> None:
    """As `check`, for dataclasses that users fill in one by one: raises one RequestError with all messages."""
    try:
        check(instance, *conditions)
    except ValueError as error:
        raise RequestError("; ".join(error.args)) from None


def check_option(cls: type, field: str, value: Any, name: str) -> None:
    """Raises RequestError if a value is out of the `Range` of a field of the dataclass `cls`, which is made later. `name` is that of the
    option or parameter."""
    if problems := _out_of_range(cls, {field: value}):
        raise RequestError(f"{name}{problems[0].removeprefix(field)}")


def _out_of_range(cls: type, values: Mapping[str, Any]) -> list[str]:
    hints = typing.get_type_hints(cls, include_extras=True)
    bounds = ((name, bound) for name, hint in hints.items() for bound in getattr(hint, "__metadata__", ()) if isinstance(bound, Range))
    return [problem for name, bound in bounds if name in values and (problem := bound.problem(name, values[name]))]


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` updated with `changes`, recursively."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def parse_override(text: str) -> dict[str, Any]:
    """A nested table from KEY=VALUE, such as 'run.iterations=1000'; a value that is not TOML is a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RequestError(f"an option must look like run.iterations=1000, not {_short(text)}")
    try:
        return parse_toml(f"{key} = {value}", f"the option {text[:200]!r}")
    except DocumentError as error:
        if not isinstance(error.__context__, tomllib.TOMLDecodeError):  # valid TOML that exceeds a limit
            raise
        nested: Any = value.strip()
        parts = key.strip().split(".")
        if len(parts) > MAX_DEPTH:
            raise RequestError(f"an option may have at most {MAX_DEPTH} nested tables, not {len(parts)}") from None
        for part in reversed(parts):
            nested = {part: nested}
        return nested


def _dataclass(cls: type, data: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(f"{where or 'the top level'} must be a table, not {_short(data)}")
        return None
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key)[:100], fields, n=1)
            problems.append(f"unknown key {where}{str(key)[:100]}" + (f", did you mean {where}{near[0]}?" if near else ""))
    values: dict[str, Any] = {}
    invalid: set[str] = set()
    n_before = len(problems)
    for name, field in fields.items():
        if name in data:
            n_problems = len(problems)
            values[name] = _value(hints[name], data[name], f"{where}{name}", problems)
            invalid |= {name} if len(problems) > n_problems else set()
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"missing key {where}{name}")
    prefix = f"{where.removesuffix('.')}: " if where else ""
    if len(problems) > n_before:
        problems += [f"{prefix}{problem}" for problem in _out_of_range(cls, {name: values[name] for name in values.keys() - invalid})]
        return None
    try:
        return cls(**values)
    except ValueError as error:  # the dataclass's own checks
        problems += [f"{prefix}{problem}" for problem in error.args]
        return None


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        if isinstance(value, Mapping) and (kinds := _kinds(options)):
            kind = value.get("kind", next(iter(kinds)))
            if kind not in list(kinds):  # a list, since `kind` may be unhashable
                problems.append(f"{where}.kind must be {' or '.join(map(repr, kinds))}, not {_short(kind)}")
                return None
            return _value(kinds[kind], value, where, problems)
        attempts: list[list[str]] = []
        for option in options:
            attempts.append([])
            result = _value(option, value, where, attempts[-1])
            if not attempts[-1]:
                return result
        if isinstance(value, Mapping):  # the closest of several dataclasses is meant
            problems += min(attempts, key=len)
        else:
            problems.append(f"{where} must be {_name(hint)}, not {_short(value)}")
        return None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, value, f"{where}.", problems)
    if origin is tuple and isinstance(value, list | tuple):
        variadic = len(arguments) == 2 and arguments[1] is Ellipsis
        inner = [arguments[0]] * len(value) if variadic else list(arguments)
        if len(inner) == len(value):
            pairs = zip(inner, value, strict=True)
            return tuple(_value(h, v, f"{where}[{i}]", problems) for i, (h, v) in enumerate(pairs))
    elif origin is typing.Literal:
        if value in arguments:
            return value
    elif (origin or hint) is dict:
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:  # an integer of more than 308 digits
                problems.append(f"{where} must be a number below 1e308")
                return None
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    problems.append(f"{where} must be {_name(hint)}, not {_short(value)}")
    return None


def _kinds(options: Sequence[Any]) -> dict[str, Any]:
    """The dataclasses in `options` by the value of their field `kind`, if all have one; the first is the default."""
    hints = [typing.get_type_hints(option).get("kind") if dataclasses.is_dataclass(option) else None for option in options]
    if any(typing.get_origin(hint) is not typing.Literal for hint in hints):
        return {}
    return {kind: option for option, hint in zip(options, hints, strict=True) for kind in typing.get_args(hint)}


def _short(value: Any) -> str:
    """A value for a message, shortened."""
    return reprlib.repr(value) if isinstance(value, str | bytes | list | dict) and len(repr(value)) > 200 else repr(value)


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(a) for a in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
