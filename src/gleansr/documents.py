"""JSON and TOML from files and bytes that may be damaged or hostile."""

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from gleansr.errors import RequestError, one_line

LARGEST = 64 * 2**20
"""Bytes of a file or a line. Ours have less than a hundredth of them; parsed, a file can take twenty times its size."""
DEEPEST = 64
"""Tables and lists within each other. Ours have less than ten."""
_INTEGERS = 2**63


class DocumentError(RequestError):
    """Text that is no JSON or TOML, or has what none of ours has. It names the file, where it can the line, and what to do."""


def read_json(path: Path, *, mend: str = "") -> Any:
    """The value in a JSON file; see `parse_json`. Raises OSError where it cannot be read."""
    return parse_json(_contents(path), str(path), mend=mend)


def read_toml(path: Path, *, mend: str = "") -> dict[str, Any]:
    """The table in a TOML file; see `parse_toml`. Raises OSError where it cannot be read."""
    return parse_toml(_contents(path), str(path), mend=mend)


def parse_json(data: bytes | str, name: str, *, mend: str = "") -> Any:
    """The value of a JSON text, UTF-8.

    Args:
        data: the text; a byte order mark at its start is left out.
        name: what messages call it.
        mend: what to do about damage, for the message.

    Raises:
        DocumentError: it is no JSON, has a key twice, numbers that are not finite or beyond 64 bits, more than `DEEPEST` levels or
            `LARGEST` bytes.
    """
    text = _text(data, name, mend)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)[:100]!r} is there twice")
        return table

    try:
        value = json.loads(text, object_pairs_hook=unique, parse_constant=_constant)
    except json.JSONDecodeError as error:
        _refuse(name, f"line {error.lineno}: is no JSON: {error.msg}", mend)
    except RecursionError:
        _refuse(name, f"has more than {DEEPEST} levels of lists and tables", mend)
    except ValueError as error:  # of `unique`, `_constant`, and of Python's for numbers of thousands of digits
        _refuse(name, one_line(error), mend)
    return _checked(value, name, mend)


def parse_toml(data: bytes | str, name: str, *, mend: str = "") -> dict[str, Any]:
    """The table of a TOML text, UTF-8; arguments and errors as of `parse_json`."""
    text = _text(data, name, mend)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _refuse(name, f"is no TOML: {one_line(error)}", mend)
    except RecursionError:
        _refuse(name, f"has more than {DEEPEST} levels of lists and tables", mend)
    except ValueError as error:  # Python's for numbers of thousands of digits
        _refuse(name, one_line(error), mend)
    return _checked(table, name, mend)


def parse_line(data: bytes | str) -> Any:
    """The JSON value of a line of a file that this package appends to; None of one that a kill has torn, or somebody changed."""
    try:
        return json.loads(data) if len(data) <= LARGEST else None
    except (ValueError, RecursionError):
        return None


def _contents(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(LARGEST + 1)


def _text(data: bytes | str, name: str, mend: str) -> str:
    if len(data) > LARGEST:
        _refuse(name, f"has more than {LARGEST:,} bytes", mend)
    if isinstance(data, str):
        return data.removeprefix("\ufeff")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        _refuse(name, "is in UTF-16: save it as UTF-8", mend)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        _refuse(name, f"line {line}: byte 0x{data[error.start]:02x} is no UTF-8: save it as UTF-8", mend)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"has {name}, which is no number of JSON's")


def _checked(value: Any, name: str, mend: str) -> Any:
    """The value, whose depth and numbers are looked at level by level, since recursion is what its depth would exhaust."""
    level, depth = [value], 0
    while level:
        if (depth := depth + 1) > DEEPEST:
            _refuse(name, f"has more than {DEEPEST} levels of lists and tables", mend)
        below: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, float) and not math.isfinite(item):
                _refuse(name, f"has the number {item}, and finite ones are expected", mend)
            elif isinstance(item, int) and not -_INTEGERS <= item < _INTEGERS:
                _refuse(name, "has a whole number beyond 64 bits", mend)
        level = below
    return value


def _refuse(name: str, what: str, mend: str) -> NoReturn:
    raise DocumentError(f"{name}: {what}" + (f"; {mend}" if mend else "")) from None
