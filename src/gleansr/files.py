"""Files are written whole or not at all, and folders by one process at a time."""

import hashlib
import os
import re
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gleansr.errors import RequestError

_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields the name of a new file beside `path`; it takes the place of `path` when the block ends well and is removed otherwise.

    A process that is killed leaves it behind: `leftovers` finds it.
    """
    path = Path(path)
    temporary = path.with_name(f".{beginning(path.name)}.{secrets.token_hex(4)}.part")
    # Made here and not by tempfile, whose files are private: the result is to be an ordinary file, with the permissions of the umask.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    permissions = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(permissions)  # writers that put a file of their own in its place, as safetensors does, make it private
        temporary.replace(path)
    finally:
        with suppress(OSError):  # which would hide the error of the block; what is left is found by `leftovers`
            temporary.unlink(missing_ok=True)


def spare(target: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Raises RequestError where `target` is one of the inputs, by whatever name: a result never replaces what it is made of."""
    for path in inputs:
        if path is not None and same_file(target, path):
            raise RequestError(f"{target}: is an input ({path}), which is never replaced; give the result another name")


def same_file(one: str | Path, other: str | Path) -> bool:
    """Whether two names lead to one file."""
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):  # one of them does not exist
        return False


def leftovers(path: str | Path) -> list[Path]:
    """The files that `replacing` of this path has left where its process was killed; or that it is writing at this moment."""
    path = Path(path)
    return [path.with_name(name) for name in half_written(path.parent).get(beginning(path.name), [])]


def half_written(folder: str | Path) -> dict[str, list[str]]:
    """The names of all such files in a folder, by the `beginning` of the names that they were to have."""
    found: dict[str, list[str]] = {}
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208, a Path for each of a million files takes long
            if match := _PART.fullmatch(name):
                found.setdefault(match[1], []).append(name)
    return found


def beginning(name: str) -> str:
    """What the names of a file's temporary ones have of its own: 200 bytes, since file systems take 255."""
    return os.fsdecode(os.fsencode(name)[:200])


def shown(text: object) -> str:
    """A message or a path as one line that any terminal shows: control characters, line breaks and bytes that are no text as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


@contextmanager
def held(folder: Path, busy: str) -> Iterator[None]:
    """The folder, held against other processes by a file .lock in it. Raises RequestError where another one holds it, which is `busy`."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise RequestError(f"{folder}: another process is {busy} here") from None
