"""Results of each image, one JSON line per image, from which an interrupted comparison resumes."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gleansr.documents import parse_line
from gleansr.errors import RequestError
from gleansr.files import replacing

Record = dict[str, Any]


class Records(Mapping[str, Record]):
    """The records of a method by image name, in a file whose first line holds the conditions that they depend on.

    Each record is written before the next image begins. An incomplete last line is dropped.
    """

    def __init__(self, path: Path):
        """Reads `path` if it exists. Raises RequestError for a file of another kind, OSError if it cannot be read."""
        self.path = path
        self.conditions: dict[str, Any] | None = None
        """What the records depend on; None if there is no file."""
        self._records: dict[str, Record] = {}
        lines = _read_lines(path)
        if not lines:
            return
        try:
            self.conditions = lines[0]["made"]
            self._records = {record["name"]: record for record in lines[1:]}
        except (KeyError, TypeError):
            raise RequestError(f"{path}: is not a records file of `gleansr compare`; remove it or give another folder") from None

    def __getitem__(self, name: str) -> Record:
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def differences(self, conditions: Mapping[str, Any]) -> list[str]:
        """The keys, such as "place.threads", in which `conditions` differ from those of the file; none if there is no file."""
        return [] if self.conditions is None else _differences(self.conditions, json.loads(json.dumps(plain(conditions))), "")

    def begin(self, conditions: Mapping[str, Any], records: Mapping[str, Record]) -> None:
        """Replaces the file by one with these conditions and records. Raises OSError."""
        self.conditions, self._records = json.loads(json.dumps(plain(conditions))), dict(records)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [_line({"made": self.conditions}), *map(_line, self._records.values())]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", newline="\n")

    def add(self, record: Record) -> None:
        """Appends a record; it replaces an earlier one of the same "name". Raises OSError."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(record))
        self._records[record["name"]] = record


def plain(value: Any) -> Any:
    """`value` with non-finite numbers as strings that `float` reads: "inf", "-inf", "nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> list[str]:
    differences = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            differences += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            differences.append(f"{prefix}{key}")
    return differences


def _line(record: Record) -> str:
    return f"{json.dumps(plain(record), allow_nan=False)}\n"


def _read_lines(path: Path) -> list[Any]:
    """The JSON values of a file's lines up to the first incomplete one; none if there is no file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    values = []
    for line in text.split("\n")[:-1]:  # text after the last line end is incomplete
        if (value := parse_line(line)) is None:
            break
        values.append(value)
    return values
