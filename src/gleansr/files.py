"""Files are written whole or not at all, and folders by one process at a time."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gleansr.errors import RequestError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields the name of a temporary file beside `path`; it takes the place of `path` when the block ends well and is removed otherwise."""
    path = Path(path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes files private; the result is to be an ordinary file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """The folder, held against other processes by a file .lock in it. Raises RequestError where another one holds it, which is `busy`."""
    from filelock import FileLock, Timeout  # comes with torch

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise RequestError(f"{folder}: another process is {busy} here") from None
