"""Where the values of an LMDB lie in its file, without the library: a damaged file makes that read beyond its end, which kills the process.

Only what LSUN's databases have is read: one database of keys and values. The layout is that of LMDB 0.9 (its mdb.c) on machines of 64 bits.
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

from gleansr.errors import RequestError

_MAGIC, _VERSION, _NO_ROOT = 0xBEEFC0DE, 1, 2**64 - 1
_SMALLEST_PAGE, _LARGEST_PAGE = 2**9, 2**16
_HEADER = 16
"""Bytes at the start of every page: its number (8), unused (2), flags (2), the end of its pointers (2) and unused (2)."""
_BRANCH, _LEAF = 1, 2
_BIG, _INNER = 1, 2 | 4  # flags of a node: its value has pages of its own; it is a database within
_DEEPEST = 32
"""Levels of the tree; LMDB itself has room for so many."""


class Value(NamedTuple):
    """Where a value lies."""

    key: bytes
    offset: int
    size: int


def values(file: Path) -> list[Value]:
    """The values in a file data.mdb, sorted by key as it sorts them.

    Raises OSError, and RequestError where it is no LMDB, or damaged in what leads to the values.
    """
    with file.open("rb", buffering=0) as opened:
        return _Tree(file, opened).values()


class _Tree:
    """The pages of a file. Nothing in them is believed: each is read once at most, and no value reaches beyond the end of the file."""

    def __init__(self, file: Path, opened: BinaryIO):
        self._file, self._opened = file, opened
        self._length = opened.seek(0, 2)
        opened.seek(0)
        head = opened.read(2 * _LARGEST_PAGE)
        if len(head) < 2 * _SMALLEST_PAGE or struct.unpack_from("<I", head, _HEADER)[0] != _MAGIC:
            raise RequestError(f"{file}: cannot be read as an LMDB: it does not begin like one of a machine of 64 bits")
        version, self._page = struct.unpack_from("<I", head, 20)[0], struct.unpack_from("<I", head, 40)[0]
        if version != _VERSION:
            raise RequestError(f"{file}: is an LMDB of layout {version}, and only {_VERSION} is known; make it with LMDB 0.9")
        if not _SMALLEST_PAGE <= self._page <= _LARGEST_PAGE or self._page & (self._page - 1) or len(head) < 2 * self._page:
            self._refuse(f"its pages have {self._page:,} bytes, of {self._length:,} in all")
        # Two pages tell where the tree begins; each change rewrites the older one.
        metas = [(struct.unpack_from("<2I", head, at + _HEADER), struct.unpack_from("<4Q", head, at + 120)) for at in (0, self._page)]
        whole = [tree for begin, tree in metas if begin == (_MAGIC, _VERSION)]
        self._entries, self._root, last, _ = max(whole, key=lambda tree: tree[3])
        if self._length < (last + 1) * self._page:
            raise RequestError(f"{file}: data.mdb is cut off: {self._length:,} of {(last + 1) * self._page:,} bytes; fetch it again")
        self._seen = bytearray(self._length // self._page)

    def values(self) -> list[Value]:
        found = [] if self._root == _NO_ROOT else self._below(self._root, 1)
        if len(found) != self._entries:
            self._refuse(f"it holds {len(found):,} values, and says {self._entries:,}")
        return found

    def _below(self, number: int, depth: int) -> list[Value]:
        if depth > _DEEPEST:
            self._refuse("its tree has no end")
        page = self._read(number)
        flags, end = struct.unpack_from("<2H", page, 10)
        if not flags & (_BRANCH | _LEAF) or not _HEADER <= end <= len(page):
            self._refuse(f"its page {number:,} is no part of the tree")
        found: list[Value] = []
        for (pointer,) in struct.iter_unpack("<H", page[_HEADER : end // 2 * 2]):
            if pointer + 8 > len(page):
                self._refuse(f"its page {number:,} leads out of itself")
            low, high, node, length = struct.unpack_from("<4H", page, pointer)
            if flags & _BRANCH:
                found += self._below(low | high << 16 | node << 32, depth + 1)
            else:
                found.append(self._value(number, page, pointer + 8, low | high << 16, node, length))
        return found

    def _value(self, number: int, page: bytes, begin: int, size: int, node: int, length: int) -> Value:
        """Of a leaf's node: its key and, behind it, the value or the number of the first of the pages that it has for itself."""
        if node & _INNER:
            raise RequestError(f"{self._file}: holds databases within a database, and only one of keys and values is read")
        behind = begin + length
        if behind + (8 if node & _BIG else size) > len(page):
            self._refuse(f"its page {number:,} leads out of itself")
        # The pages of a large value are not looked at: for all of them that would take as long as reading the whole file.
        offset = struct.unpack_from("<Q", page, behind)[0] * self._page + _HEADER if node & _BIG else number * self._page + behind
        if offset + size > self._length:
            self._refuse(f"its page {number:,} leads beyond its end")
        return Value(page[begin:behind], offset, size)

    def _read(self, number: int) -> bytes:
        """A page of the tree, for the first time."""
        if not 2 <= number < len(self._seen):
            self._refuse(f"it leads to page {number:,} of {len(self._seen):,}")
        self._opened.seek(number * self._page)
        page = self._opened.read(self._page)
        if len(page) < self._page or self._seen[number] or struct.unpack_from("<Q", page)[0] != number:
            self._refuse(f"its page {number:,} is not where it should be")
        self._seen[number] = 1
        return page

    def _refuse(self, what: str) -> NoReturn:
        raise RequestError(f"{self._file}: is damaged: {what}; fetch it again")
