"""Zip archives as torch.save writes them: uncompressed, with consistent records."""

import struct
from dataclasses import dataclass

from gleansr.checkpoints.lazy_tensors import MalformedError

MAX_ENTRIES = 100_000
STORED = 0
"""The method of uncompressed entries."""
_ENCRYPTED, _SIZES_FOLLOW = 1, 8
_END, _END64_LOCATOR, _END64, _CENTRAL, _LOCAL = b"PK\5\6", b"PK\6\7", b"PK\6\6", b"PK\1\2", b"PK\3\4"
_IN_ZIP64 = 0xFFFFFFFF


@dataclass(frozen=True)
class ArchiveEntry:
    """An entry of the central directory."""

    name: bytes
    method: int
    flags: int
    packed: int
    size: int
    header: int
    """Offset of the local header."""


def directory(data: memoryview) -> list[ArchiveEntry]:
    """The entries of an archive, from the records at its end. Raises MalformedError."""
    start, end, count = _find_directory(data)
    if count > MAX_ENTRIES:
        raise MalformedError(f"a zip archive of {count:,} entries; at most {MAX_ENTRIES:,} are read")
    entries = []
    for _ in range(count):
        if start + 46 > end:
            raise MalformedError("a zip archive whose directory is cut off")
        signature, _, _, flags, method, _, _, _, packed, size, n_name, n_extra, n_comment, *_, header = struct.unpack_from(
            "<4s6H3L5H2L", data, start
        )
        after = start + 46 + n_name + n_extra + n_comment
        if signature != _CENTRAL or after > end:
            raise MalformedError("a zip archive with a broken directory")
        name = bytes(data[start + 46 : start + 46 + n_name])
        sizes = _zip64(bytes(data[start + 46 + n_name : start + 46 + n_name + n_extra]), size, packed, header)
        entries.append(ArchiveEntry(name, method, flags, packed=sizes[1], size=sizes[0], header=sizes[2]))
        start = after
    if start != end:
        raise MalformedError("a zip archive with a broken directory")
    return entries


def contents(data: memoryview, entries: list[ArchiveEntry]) -> dict[str, memoryview]:
    """The bytes of each entry, shared with `data`.

    Raises MalformedError if an entry is compressed or encrypted, its header disagrees with the directory, or two entries overlap.
    """
    files: dict[str, memoryview] = {}
    last = 0
    for entry in sorted(entries, key=lambda entry: entry.header):
        name = entry.name.decode("utf-8", "replace")
        if entry.method != STORED or entry.flags & _ENCRYPTED or entry.packed != entry.size:
            raise MalformedError("a compressed zip archive, not what torch.save writes; unpack it and pack it again without compression")
        if entry.header < last or entry.header + 30 > len(data) or name in files:
            raise MalformedError("a zip archive with entries that overlap")
        signature, _, flags, method, _, _, _, packed, size, n_name, n_extra = struct.unpack_from("<4s5H3L2H", data, entry.header)
        start = entry.header + 30 + n_name + n_extra
        same = bytes(data[entry.header + 30 : entry.header + 30 + n_name]) == entry.name and method == entry.method
        allowed = {0, _IN_ZIP64, entry.size} if flags & _SIZES_FOLLOW else {_IN_ZIP64, entry.size}
        if signature != _LOCAL or not same or flags & _ENCRYPTED or not {packed, size} <= allowed:
            raise MalformedError("a zip archive whose directory and headers disagree")
        last = start + entry.size
        if last > len(data):
            raise MalformedError("a zip archive with an entry beyond its end")
        files[name] = data[start:last]
    return files


def _find_directory(data: memoryview) -> tuple[int, int, int]:
    """Start and end of the central directory, and its number of entries."""
    truncated = "an incomplete zip archive; it may have been cut off on its way"
    end = len(data) - 22
    if end < 0 or data[end : end + 4] != _END:
        raise MalformedError(truncated)
    *_, count, size, start, _ = struct.unpack_from("<4H2LH", data, end + 4)
    if end >= 20 and data[end - 20 : end - 16] == _END64_LOCATOR:
        _, end64, _ = struct.unpack_from("<LQL", data, end - 16)
        if end64 + 76 != end or data[end64 : end64 + 4] != _END64:
            raise MalformedError(truncated)
        narrow = (count, size, start)
        count, size, start = struct.unpack_from("<3Q", data, end64 + 32)
        end = end64
        if any(a not in (b, none) for a, b, none in zip(narrow, (count, size, start), (0xFFFF, _IN_ZIP64, _IN_ZIP64), strict=True)):
            raise MalformedError("a zip archive whose end does not tell where its directory is")
    if start + size != end:
        raise MalformedError("a zip archive whose end does not tell where its directory is")
    return start, end, count


def _zip64(extra: bytes, *values: int) -> list[int]:
    """Sizes and offset of an entry; values beyond 4 GiB are in an extra field."""
    wide: list[int] = []
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            wide = list(struct.unpack_from(f"<{min(length, len(extra) - position - 4) // 8}Q", extra, position + 4))
        position += 4 + length
    try:
        return [wide.pop(0) if value == _IN_ZIP64 else value for value in values]
    except IndexError:
        raise MalformedError("a zip archive with a broken directory") from None
