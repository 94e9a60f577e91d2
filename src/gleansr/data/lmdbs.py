"""Locates the values of an LMDB in its file, without the library: a damaged file makes that read beyond its end and kill the process.

As in LSUN, a file must hold one database of keys and values. The layout is that of LMDB 0.9 (its mdb.c) on 64-bit machines.
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
_BIG, _INNER = 1, 2 | 4  # flags of a node: its value has its own pages; it is a nested database
_DEEPEST = 32
"""Maximum levels of the tree, as in LMDB itself."""


class Value(NamedTuple):
    """The location of a value."""

    key: bytes
    offset: int
    size: int


def values(file: Path) -> list[Value]:
    """Lists the values in a file data.mdb, in the order of its keys.

    Raises OSError, and RequestError if it is no LMDB or its tree is damaged.
    """
    with file.open("rb", buffering=0) as stream:
        return _Tree(file, stream).values()


class _Tree:
    """The pages of an untrusted file: each is read at most once, and no value reaches beyond the end of the file."""

    def __init__(self, file: Path, stream: BinaryIO):
        self._file, self._stream = file, stream
        self._length = stream.seek(0, 2)
        stream.seek(0)
        head = stream.read(2 * _LARGEST_PAGE)
        if len(head) < 2 * _SMALLEST_PAGE or struct.unpack_from("<I", head, _HEADER)[0] != _MAGIC:
            raise RequestError(f"{file}: cannot be read as an LMDB: it does not begin like one of a 64-bit machine")
        version, self._page = struct.unpack_from("<I", head, 20)[0], struct.unpack_from("<I", head, 40)[0]
        if version != _VERSION:
            raise RequestError(f"{file}: is an LMDB of layout {version}, but only {_VERSION} is supported; create it with LMDB 0.9")
        if not _SMALLEST_PAGE <= self._page <= _LARGEST_PAGE or self._page & (self._page - 1) or len(head) < 2 * self._page:
            self._refuse(f"its pages have {self._page:,} bytes, of {self._length:,} in all")
        # Two pages hold the root of the tree; each change rewrites the older one.
        metas = [(struct.unpack_from("<2I", head, at + _HEADER), struct.unpack_from("<4Q", head, at + 120)) for at in (0, self._page)]
        valid = [tree for start, tree in metas if start == (_MAGIC, _VERSION)]
        self._entries, self._root, last, _ = max(valid, key=lambda tree: tree[3])
        if self._length < (last + 1) * self._page:
            raise RequestError(f"{file}: data.mdb is cut off: {self._length:,} of {(last + 1) * self._page:,} bytes; fetch it again")
        self._seen = bytearray(self._length // self._page)

    def values(self) -> list[Value]:
        result = [] if self._root == _NO_ROOT else self._subtree(self._root, 1)
        if len(result) != self._entries:
            self._refuse(f"it holds {len(result):,} values, but states {self._entries:,}")
        return result

    def _subtree(self, number: int, depth: int) -> list[Value]:
        if depth > _DEEPEST:
            self._refuse("its tree is too deep")
        page = self._read(number)
        flags, end = struct.unpack_from("<2H", page, 10)
        if not flags & (_BRANCH | _LEAF) or not _HEADER <= end <= len(page):
            self._refuse(f"its page {number:,} is no part of the tree")
        result: list[Value] = []
        for (pointer,) in struct.iter_unpack("<H", page[_HEADER : end // 2 * 2]):
            if pointer + 8 > len(page):
                self._refuse(f"its page {number:,} leads out of itself")
            low, high, node, length = struct.unpack_from("<4H", page, pointer)
            if flags & _BRANCH:
                result += self._subtree(low | high << 16 | node << 32, depth + 1)
            else:
                result.append(self._value(number, page, pointer + 8, low | high << 16, node, length))
        return result

    def _value(self, number: int, page: bytes, start: int, size: int, node: int, length: int) -> Value:
        """Reads a leaf's node: its key, followed by the value or the number of the first of its own pages."""
        if node & _INNER:
            raise RequestError(f"{self._file}: holds nested databases, but only one of keys and values is supported")
        end = start + length
        if end + (8 if node & _BIG else size) > len(page):
            self._refuse(f"its page {number:,} leads out of itself")
        # The pages of large values are not checked: that would take as long as reading the whole file.
        offset = struct.unpack_from("<Q", page, end)[0] * self._page + _HEADER if node & _BIG else number * self._page + end
        if offset + size > self._length:
            self._refuse(f"its page {number:,} leads beyond its end")
        return Value(page[start:end], offset, size)

    def _read(self, number: int) -> bytes:
        """Reads a page of the tree, which must not have been read before."""
        if not 2 <= number < len(self._seen):
            self._refuse(f"it leads to page {number:,} of {len(self._seen):,}")
        self._stream.seek(number * self._page)
        page = self._stream.read(self._page)
        if len(page) < self._page or self._seen[number] or struct.unpack_from("<Q", page)[0] != number:
            self._refuse(f"its page {number:,} is not where it should be")
        self._seen[number] = 1
        return page

    def _refuse(self, problem: str) -> NoReturn:
        raise RequestError(f"{self._file}: is damaged: {problem}; fetch it again")
