"""What a manifest remembers of each result, compactly: 72 bytes each, so that a million take 72 MB."""

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
    """What is remembered of a result."""

    source: int
    """A hash of its source's name, see `is_of`."""
    size: int
    """Of its source in bytes; what follows is of the source, too."""
    mtime_ns: int
    sha256: bytes
    """The first 16 bytes."""
    made_by: str | None
    """The `fingerprint` of what made it; None if it was begun only."""
    result: bytes | None = None
    """The first 8 bytes of the SHA-256 of the result's file; None where the manifest does not tell."""

    def is_of(self, source: str) -> bool:
        """Whether the manifest called the source so."""
        return self.source == _hashed(source)[0]


def fingerprint(model_sha256: str | None, options: Mapping[str, Any]) -> str:
    """What tells apart all that a result follows from, but its source."""
    return json.dumps([model_sha256, options], sort_keys=True, separators=(",", ":"))


class Index:
    """What the lines of a manifest say last of each target. Filled first, then asked."""

    def __init__(self) -> None:
        self._filling = bytearray()
        self._rows = np.empty(0, _ROW)
        self._keys = np.empty(0, np.uint64)
        self._makers: list[str | None] = [None]
        self._numbers: dict[tuple[str | None, str], int] = {}

    def add(self, line: Mapping[str, Any]) -> None:
        """Of a line with a target. One that failed changes nothing: what was there before still is.

        Raises KeyError, TypeError, AttributeError, ValueError or struct.error where it is none.
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
        """To be called when all lines are in: of each target, the last one is kept."""
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
        """Of a target, begun or done; None if it was never written."""
        key, check = _hashed(target)
        place = int(self._keys.searchsorted(np.uint64(key)))
        if place == len(self._keys) or self._keys[place] != key:
            return None
        _, found, size, mtime_ns, sha256, source, maker, result = _PACKED.unpack(self._rows[place].tobytes())
        told = result if result.strip(b"\0") else None
        return ManifestEntry(source, size, mtime_ns, sha256, self._makers[maker], told) if found == check else None

    def done(self, made_by: str) -> int:
        """How many results were made so."""
        numbers = [number for number, maker in enumerate(self._makers) if maker == made_by]
        return int(np.isin(self._rows["made_by"], numbers).sum())


def _hashed(target: str) -> tuple[int, int]:
    return _PAIR.unpack(hashlib.blake2b(target.encode("utf-8", "surrogatepass"), digest_size=16).digest())
