"""Dataclasses from plain data (TOML, JSON): strict about keys and types, and every complaint at once."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from gleansr.errors import RequestError

T = TypeVar("T")


def from_dict(cls: type[T], data: Mapping[str, Any], source: str) -> T:
    """An instance of the dataclass `cls` filled from `data`; missing keys take their defaults.

    Unknown keys (with the nearest known one), missing ones and wrong types raise one RequestError that lists them all after `source`.
    """
    problems: list[str] = []
    value = _dataclass(cls, data, "", problems)
    if problems:
        raise RequestError(f"{source}: {'; '.join(problems)}")
    return value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, table by table."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _dataclass(cls: type, data: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(data, Mapping):
        problems.append(f"{where or 'the top level'} must be a table, not {data!r}")
        return None
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in data:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            problems.append(f"unknown key {where}{key}" + (f", did you mean {where}{near[0]}?" if near else ""))
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _value(hints[name], data[name], f"{where}{name}", problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"missing key {where}{name}")
    if problems:
        return None
    try:
        return cls(**values)
    except ValueError as error:  # the dataclass's own checks
        problems.append(str(error))
        return None


def _value(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        options = [a for a in arguments if a is not type(None)]
        for option in options:
            attempt: list[str] = []
            result = _value(option, value, where, attempt)
            if not attempt:
                return result
        problems.append(f"{where} must be {_name(hint)}, not {value!r}")
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
            return float(value)
    elif isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    problems.append(f"{where} must be {_name(hint)}, not {value!r}")
    return None


def _name(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(a) for a in typing.get_args(hint))
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint).replace("typing.", "")
