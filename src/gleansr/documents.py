"""JSON and TOML from files and bytes that may be damaged or hostile."""

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from gleansr.errors import RequestError, one_line

MAX_BYTES = 64 * 2**20
"""Limit for a file or a line. gleansr's have less than a hundredth of it; parsed, a file can take twenty times its size."""
MAX_DEPTH = 64
"""Limit for nested tables and lists. gleansr's have less than ten levels."""
_INTEGER_BOUND = 2**63


class DocumentError(RequestError):
    """Text that is not valid JSON or TOML, or exceeds a limit. The message names the file, if possible the line, and what to do."""


def read_json(path: Path, *, hint: str = "") -> Any:
    """The value in a JSON file; see `parse_json`. Raises OSError if it cannot be read."""
    return parse_json(_contents(path), str(path), hint=hint)


def read_toml(path: Path) -> dict[str, Any]:
    """The table in a TOML file; see `parse_toml`. Raises OSError if it cannot be read."""
    return parse_toml(_contents(path), str(path))


def parse_json(data: bytes | str, name: str, *, hint: str = "") -> Any:
    """The value of a JSON text, UTF-8.

    Args:
        data: the text; a byte order mark is ignored.
        name: the name for messages.
        hint: what to do about damage, for messages.

    Raises:
        DocumentError: it is not JSON, repeats a key, or has numbers that are not finite or exceed 64 bits, more than `MAX_DEPTH` levels
            or more than `MAX_BYTES` bytes.
    """
    text = _text(data, name, hint)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:100]!r} appears twice")
        return table

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=_reject_constant)
    except json.JSONDecodeError as error:
        _refuse(name, f"line {error.lineno}: is not valid JSON: {error.msg}", hint)
    except RecursionError:
        _refuse(name, f"has more than {MAX_DEPTH} levels of lists and tables", hint)
    except ValueError as error:  # of `unique`, of `_reject_constant`, and of Python for numbers of thousands of digits
        _refuse(name, one_line(error), hint)
    return _checked(value, name, hint)


def parse_toml(data: bytes | str, name: str, *, hint: str = "") -> dict[str, Any]:
    """The table of a TOML text, UTF-8; arguments and errors as of `parse_json`."""
    text = _text(data, name, hint)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _refuse(name, f"is not valid TOML: {one_line(error)}", hint)
    except RecursionError:
        _refuse(name, f"has more than {MAX_DEPTH} levels of lists and tables", hint)
    except ValueError as error:  # of Python for numbers of thousands of digits
        _refuse(name, one_line(error), hint)
    return _checked(table, name, hint)


def parse_line(data: bytes | str) -> Any:
    """The JSON value of a line of a log of gleansr; None if the line is incomplete or damaged."""
    try:
        return json.loads(data) if len(data) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        return None


def _contents(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_BYTES + 1)


def _text(data: bytes | str, name: str, hint: str) -> str:
    if len(data) > MAX_BYTES:
        _refuse(name, f"has more than {MAX_BYTES:,} bytes", hint)
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        _refuse(name, "is UTF-16: save it as UTF-8", hint)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse(name, f"line {line}: byte 0x{data[error.start]:02x} is not UTF-8: save it as UTF-8", hint)


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(f"has {name}, which is not a JSON number")


def _checked(value: Any, name: str, hint: str) -> Any:
    """The value, its depth and numbers checked. Works level by level, since depth could exhaust recursion."""
    level, depth = [value], 0
    while level:
        if (depth := depth + 1) > MAX_DEPTH:
            _refuse(name, f"has more than {MAX_DEPTH} levels of lists and tables", hint)
        children: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                children += item.values()
            elif isinstance(item, list):
                children += item
            elif isinstance(item, float) and not math.isfinite(item):
                _refuse(name, f"has the number {item}; only finite numbers are allowed", hint)
            elif isinstance(item, int) and not -_INTEGER_BOUND <= item < _INTEGER_BOUND:
                _refuse(name, "has an integer beyond 64 bits", hint)
        level = children
    return value


def _refuse(name: str, problem: str, hint: str) -> NoReturn:
    raise DocumentError(f"{name}: {problem}" + (f"; {hint}" if hint else "")) from None
