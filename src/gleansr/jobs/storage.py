"""Reads images and writes results. Other stores implement the same three methods."""

import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gleansr.errors import GleansrError, ImageError
from gleansr.files import replacing

LARGEST = 2**31
"""Largest size of an image file in bytes; `codec.MAX_PIXELS` fit, uncompressed, with 16 bits."""

_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE}
"""Errors that affect every file. Permissions and read-only file systems are not among them, since they can affect one folder alone; for
the results folder itself, writing the manifest reports them."""


class OutputError(GleansrError):
    """Nothing more can be written: the disk is full, or the results folder cannot be used. It ends the run."""


@dataclass(frozen=True, slots=True)
class FileState:
    """Size and mtime of a file, which reveal changes without reading it."""

    size: int
    mtime_ns: int
    """Time of the last change, in nanoseconds since 1970."""


class FileStore(Protocol):
    """Files by path or URL. Several threads may call it at once."""

    def state(self, path: str) -> FileState | None:
        """Size and mtime; None if the file does not exist or cannot be queried."""
        ...

    def read(self, path: str) -> bytes:
        """Raises ImageError if the file cannot be read."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Writes a file atomically and creates its parent folders. Raises ImageError, or OutputError if other files would fail too."""
        ...


class LocalStorage:
    """The file system of this machine."""

    def state(self, path: str) -> FileState | None:
        try:
            status = os.stat(path)  # noqa: PTH116, a Path for each of a million files costs more than the call
        except (OSError, ValueError):
            return None
        return FileState(status.st_size, status.st_mtime_ns)

    def read(self, path: str) -> bytes:
        try:
            with open(path, "rb", opener=_without_waiting) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise ImageError(f"{path}: is not a file but a {'folder' if stat.S_ISDIR(status.st_mode) else 'device'}")
                if status.st_size > LARGEST:
                    raise ImageError(f"{path} has {status.st_size} bytes; image files have at most {LARGEST}")
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
            raise write_error(f"{path}: cannot be written: {error.strerror or error}", error) from error


def make_folder(folder: Path) -> None:
    """Creates a results folder. Raises the errors of `FileStore.write`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(f"{folder}: the folder cannot be created: {error.strerror or error}", error) from error


def write_error(reason: str, error: OSError) -> GleansrError:
    """An OutputError if other files would fail in the same way, else an ImageError."""
    return OutputError(reason) if error.errno in _HOPELESS else ImageError(reason)


def _without_waiting(path: str, flags: int) -> int:
    """Opens a named pipe without waiting for its writer; `read` then rejects it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
