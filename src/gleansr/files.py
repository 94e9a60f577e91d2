"""Atomic writes, locked folders, printable names."""

import errno
import hashlib
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gleansr.errors import RequestError

_PART = re.compile(r"\.(.+)\.[0-9a-f]{8}\.part", re.DOTALL)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file in hexadecimal."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary file in the folder of `path`, which replaces `path` if the block succeeds and is deleted otherwise.

    A killed process leaves it behind; the next one that writes to `path` deletes it, and `leftovers` finds it.
    """
    path = Path(path)
    temporary, descriptor = _create_temporary(path)
    permissions = os.fstat(descriptor).st_mode
    if sys.platform == "win32":  # which renames no open file
        os.close(descriptor)
    try:
        yield temporary
        temporary.chmod(permissions)  # writers that replace the file, such as safetensors, make it private
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):  # which would hide the error of the block
            temporary.unlink(missing_ok=True)
        raise
    finally:
        if sys.platform != "win32":
            os.close(descriptor)  # after the renaming: until then the lock says that the name is in use


def _create_temporary(path: Path) -> tuple[Path, int]:
    """The first name is always the same, so that a file that a killed process left is found without listing the folder. A living process
    holds a lock on its file, and one that comes second takes a random name. Not by filelock, which empties a file before it has the
    lock."""
    for number in ("0" * 8, secrets.token_hex(4)):
        temporary = path.with_name(f".{temporary_stem(path.name)}.{number}.part")
        with suppress(OSError):
            _delete_unlocked(temporary)
        try:
            # Not by tempfile, whose files are private: the result gets the permissions of the umask.
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            continue
        with suppress(OSError):  # it is gone: another process took it for one that was left, before it was locked
            if _lock(descriptor) is not False and os.path.samestat(os.fstat(descriptor), temporary.stat()):
                return temporary, descriptor
        os.close(descriptor)
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))


def _delete_unlocked(temporary: Path) -> None:
    descriptor = os.open(temporary, os.O_WRONLY)
    try:
        if _lock(descriptor) and os.path.samestat(os.fstat(descriptor), temporary.stat()):
            temporary.unlink()
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool | None:
    """Whether the file is locked now, and not by another process; None where there are no such locks."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some network file systems
        return None
    return True


def check_not_input(target: str | Path, inputs: Iterable[str | Path | None]) -> None:
    """Raises RequestError if `target` is the same file as one of `inputs`, under any name."""
    for path in inputs:
        if path is not None and same_file(target, path):
            raise RequestError(f"{target}: is an input ({path}), and inputs are never overwritten; give the result another name")


def same_file(first: str | Path, second: str | Path) -> bool:
    """Whether two paths name one file."""
    try:
        return Path(first).samefile(second)
    except (OSError, ValueError):  # one of them does not exist
        return False


def leftovers(path: str | Path) -> list[Path]:
    """Temporary files of `replacing` for this path: from killed processes, or being written at this moment."""
    path = Path(path)
    return [path.with_name(name) for name in temporary_files(path.parent).get(temporary_stem(path.name), [])]


def temporary_files(folder: str | Path) -> dict[str, list[str]]:
    """The names of all temporary files of `replacing` in a folder, by `temporary_stem`."""
    names: dict[str, list[str]] = {}
    with suppress(OSError):
        for name in os.listdir(folder):  # noqa: PTH208, a Path for each of a million files takes long
            if match := _PART.fullmatch(name):
                names.setdefault(match[1], []).append(name)
    return names


def temporary_stem(name: str) -> str:
    """The part of a file's name that its temporary files contain: the first 200 bytes, since file systems allow 255."""
    return os.fsdecode(os.fsencode(name)[:200])


def printable(text: object) -> str:
    """A message or a path as one printable line: control characters, line breaks and undecodable bytes are escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


@contextmanager
def lock_folder(folder: Path, activity: str) -> Iterator[None]:
    """Locks a folder against other processes with a file `.lock`. Raises RequestError, which names the `activity`, if it is locked."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(folder / ".lock", timeout=0):
            yield
    except Timeout:
        raise RequestError(f"{folder}: another process is {activity} here") from None
