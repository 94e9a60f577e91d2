"""What is known of each image, one JSON line an image, so that a run that was stopped goes on where it was."""

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
    """The records of one method by the images' names, in a file whose first line says how they were made.

    Each is in the file before the next image is begun. A last line that was torn when the process was killed is dropped.
    """

    def __init__(self, path: Path):
        """Reads `path`, if it is there. Raises RequestError if it is another file, OSError if it cannot be read."""
        self.path = path
        self.made: dict[str, Any] | None = None
        """How the records were made, as the file says; None where there is no file."""
        self._records: dict[str, Record] = {}
        lines = _whole_lines(path)
        if not lines:
            return
        try:
            self.made = lines[0]["made"]
            self._records = {record["name"]: record for record in lines[1:]}
        except (KeyError, TypeError):
            raise RequestError(f"{path}: is not a file of records by `gleansr compare`; remove it, or give another folder") from None

    def __getitem__(self, name: str) -> Record:
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    def differences(self, made: Mapping[str, Any]) -> list[str]:
        """The keys, "place.threads", by which records made as `made` says would differ from these; none where there are no records."""
        return [] if self.made is None else _differences(self.made, json.loads(json.dumps(plain(made))), "")

    def begin(self, made: Mapping[str, Any], records: Mapping[str, Record]) -> None:
        """Writes the file anew, with these records, made as `made` says. Raises OSError."""
        self.made, self._records = json.loads(json.dumps(plain(made))), dict(records)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = [_line({"made": self.made}), *map(_line, self._records.values())]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(lines), encoding="utf-8", newline="\n")

    def add(self, record: Record) -> None:
        """Keeps a record, in place of an earlier one of its "name". Raises OSError."""
        with self.path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(_line(record))
        self._records[record["name"]] = record


def plain(value: Any) -> Any:
    """`value` with the numbers that JSON does not have as strings that `float` reads: "inf", "-inf", "nan"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str) -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += _differences(before, after, f"{where}{key}.")
        elif before != after:
            found.append(f"{where}{key}")
    return found


def _line(record: Record) -> str:
    return f"{json.dumps(plain(record), allow_nan=False)}\n"


def _whole_lines(path: Path) -> list[Any]:
    """The JSON values in a file, a line each, up to the first that is torn; none if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    values = []
    for line in text.split("\n")[:-1]:  # what follows the last end of line is torn
        if (value := parse_line(line)) is None:
            break
        values.append(value)
    return values
