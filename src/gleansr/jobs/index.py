"""A compact in-memory index of a manifest: 72 bytes per result, 72 MB for a million."""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_PACKED = struct.Struct("<QQQq16sQQ8s")
_PAIR = struct.Struct("<QQ")
_ROW = np.dtype(
    [
        ("key", "<u8"),
        ("check", "<u8"),
        ("bytes", "<u8"),
        ("mtime_ns", "<i8"),
        ("sha256", "V16"),
        ("source", "<u8"),
        ("made_by", "<u8"),
        ("result", "V8"),
    ]
)


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """The manifest's record of a result."""

    source: int
    """Hash of the name of the source, see `is_of`."""
    size: int
    """Bytes of the source."""
    mtime_ns: int
    sha256: bytes
    """First 16 bytes of the source's SHA-256."""
    made_by: str | None
    """The `fingerprint` of model and options; None if the result was begun but not finished."""
    result: bytes | None = None
    """First 8 bytes of the SHA-256 of the result's file; None if the manifest has no hash."""

    def is_of(self, source: str) -> bool:
        """Whether the manifest records this name for the source."""
        return self.source == _hashed(source)[0]


def fingerprint(model_sha256: str | None, options: Mapping[str, Any]) -> str:
    """Identifies the model and all options that determine a result."""
    return json.dumps([model_sha256, options], sort_keys=True, separators=(",", ":"))


class Index:
    """The last manifest line of each target. Call `add` for all lines, then `finish`, then `get`."""

    def __init__(self) -> None:
        self._filling = bytearray()
        self._rows = np.empty(0, _ROW)
        self._keys = np.empty(0, np.uint64)
        self._makers: list[str | None] = [None]
        self._numbers: dict[tuple[str | None, str], int] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Adds a line. A failure changes nothing, because the earlier result still exists.

        Raises KeyError, TypeError, AttributeError, ValueError or struct.error for a malformed line.
        """
        key = _hashed(line["target"])
        if line["status"] == "failed":
            return
        if line["status"] != "done":
            self._filling += _PACKED.pack(*key, 0, 0, b"", 0, 0, b"")
            return
        maker = line["model_sha256"], repr(options := line["options"])  # a quick stand-in for the fingerprint
        if maker not in self._numbers:
            self._numbers[maker] = len(self._makers)
            self._makers.append(fingerprint(line["model_sha256"], options))
        digest, source = bytes.fromhex(line["sha256"])[:16], _hashed(line["source"])[0]
        result = bytes.fromhex(line.get("result_sha256", ""))[:8]
        self._filling += _PACKED.pack(*key, line["bytes"], line["mtime_ns"], digest, source, self._numbers[maker], result)

    def finish(self) -> None:
        """Keeps the last line of each target. Call it after all lines are added."""
        rows = np.frombuffer(self._filling, _ROW)
        order = np.argsort(rows["key"], kind="stable")
        keys = rows["key"][order]
        last = np.append(keys[1:] != keys[:-1], True) if len(keys) else np.empty(0, bool)
        self._rows, self._keys = rows[order[last]], keys[last]
        self._filling = bytearray()

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, target: str) -> bool:
        return self.get(target) is not None

    def get(self, target: str) -> ManifestEntry | None:
        """The record of a target, begun or done; None if the manifest has none."""
        key, check = _hashed(target)
        row = int(self._keys.searchsorted(np.uint64(key)))
        if row == len(self._keys) or self._keys[row] != key:
            return None
        _, stored_check, size, mtime_ns, sha256, source, maker, result = _PACKED.unpack(self._rows[row].tobytes())
        result = result if result.strip(b"\0") else None
        return ManifestEntry(source, size, mtime_ns, sha256, self._makers[maker], result) if stored_check == check else None

    def done(self, made_by: str) -> int:
        """Number of results with this fingerprint."""
        numbers = [number for number, maker in enumerate(self._makers) if maker == made_by]
        return int(np.isin(self._rows["made_by"], numbers).sum())


def _hashed(target: str) -> tuple[int, int]:
    return _PAIR.unpack(hashlib.blake2b(target.encode("utf-8", "surrogatepass"), digest_size=16).digest())
