"""Where images are read and results are written: files here; files elsewhere have the same three methods."""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gleansr.errors import GleansrError, ImageError
from gleansr.files import replacing

LARGEST = 2**31
"""Bytes of a file that is taken for an image; `codec.MAX_PIXELS` of them fit, uncompressed, with 16 bits."""

_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE}
"""Not what one folder may have and others not: no permission, a read-only file system. Where it is the folder of results, the manifest says
so."""


class OutputError(GleansrError):
    """Nothing more can be written: the disk is full, or the folder of results cannot be used. Every further image would fail so, too."""


@dataclass(frozen=True, slots=True)
class State:
    """What tells a file from its former self without reading it."""

    bytes: int
    mtime_ns: int
    """Of its last change, in nanoseconds since 1970."""


class FileStore(Protocol):
    """Files by path or address. Several threads may call at once."""

    def state(self, path: str) -> State | None:
        """None where there is no such file, or none that can be asked for."""
        ...

    def read(self, path: str) -> bytes:
        """Raises ImageError that says why not."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes a file whole or not at all, with the folders above it. Raises ImageError; OutputError where the next would fail, too."""
        ...


class LocalStorage:
    """The file system of this machine."""

    def state(self, path: str) -> State | None:
        try:
            found = os.stat(path)  # noqa: PTH116, a Path for each of a million files costs more than the call
        except (OSError, ValueError):
            return None
        return State(found.st_size, found.st_mtime_ns)

    def read(self, path: str) -> bytes:
        try:
            with open(path, "rb", opener=_without_waiting) as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode):
                    raise ImageError(f"{path}: is not a file but a {'folder' if stat.S_ISDIR(found.st_mode) else 'device'}")
                if found.st_size > LARGEST:
                    raise ImageError(f"{path}: has {found.st_size} bytes, and no image that can be read has more than {LARGEST}")
                return file.read()
        except (OSError, ValueError, MemoryError) as error:
            raise ImageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error or 'out of memory'}") from error

    def write(self, path: str, data: bytes) -> None:
        target = Path(path)
        try:
            make_folder(target.parent)
            if target.is_dir():
                raise ImageError(f"{path}: is a folder")
            with replacing(target) as temporary:
                temporary.write_bytes(data)
        except OSError as error:
            raise refusal(f"{path}: cannot be written: {error.strerror or error}", error) from error


def make_folder(folder: Path) -> None:
    """Makes a folder of results. Raises as `FileStore.write`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refusal(f"{folder}: the folder cannot be made: {error.strerror or error}", error) from error


def refusal(reason: str, error: OSError) -> GleansrError:
    """The error that says why nothing can be written at a place: an OutputError where others would have it, too."""
    return OutputError(reason) if error.errno in _HOPELESS else ImageError(reason)


def _without_waiting(path: str, flags: int) -> int:
    """Opens a named pipe without waiting for its writer; it is refused afterwards."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
