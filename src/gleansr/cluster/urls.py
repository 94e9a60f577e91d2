"""Files by address, through fsspec, and local ones as ever."""

import errno
import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gleansr.errors import ImageError, RequestError, one_line
from gleansr.jobs import LocalStorage, OutputError, State
from gleansr.jobs.storage import LARGEST
from gleansr.stores import check_address

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_COLLAPSED = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
_TIMES = ("mtime", "LastModified", "last_modified", "last_commit", "updated", "timeModified", "modified", "created")
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "checksum")
_FOLDERS = 32


def is_url(path: str) -> bool:
    """Whether fsspec is to be asked."""
    return _SCHEME.match(path) is not None


def normal(path: str | os.PathLike[str]) -> str:
    """A path or address in the form that is used here: file:// is a path, and the slashes that `Path` takes from an address are back."""
    text = _COLLAPSED.sub(r"\1://", os.fspath(path), count=1)
    if text.startswith(("file://", "local://")):
        return "/" + text.partition("://")[2].lstrip("/")
    return text.rstrip("/") if is_url(text) else text


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of an address or a path, and what it calls it. Raises RequestError where that cannot be used."""
    if is_url(url) or "://" in url:
        check_address(url)
    try:
        import fsspec
    except ImportError as error:
        raise RequestError("addresses need fsspec: pip install 'gleansr[ray]'") from error
    try:
        # A path is never an address within another, as fsspec would take one with :: in it.
        return fsspec.url_to_fs(url, use_listings_cache=False) if is_url(url) else (fsspec.filesystem("file"), url)
    except (ImportError, ValueError, OSError) as error:  # an unknown protocol, or one whose package is not installed
        raise RequestError(f"{url}: {one_line(error)}") from error


class Addresses:
    """Local files, and those at addresses. The `Storage` of workers."""

    def __init__(self) -> None:
        self._local = LocalStorage()
        self._sizes: dict[str, int] = {}

    def state(self, path: str) -> State | None:
        if not is_url(path):
            return self._local.state(path)
        try:
            system, name = file_system(path)
            info = system.info(name)
        except Exception:  # fsspec's stores have many, and we cannot ask
            return None
        state = state_of(info)
        if state:
            self._sizes[path] = state.bytes  # of what is read next
        return state

    def read(self, path: str) -> bytes:
        if not is_url(path):
            return self._local.read(path)
        size = self._sizes.pop(path, 0)
        if size > LARGEST:
            raise ImageError(f"{path}: has {size} bytes, and no image that can be read has more than {LARGEST}")
        try:
            system, name = file_system(path)
            return system.cat_file(name)
        except Exception as error:
            raise ImageError(f"{path}: cannot be read: {one_line(error)}") from error

    def write(self, path: str, data: bytes) -> None:
        if not is_url(path):
            return self._local.write(path, data)
        try:
            system, name = file_system(path)
            system.pipe_file(name, data)  # in such a store a file appears with its last byte
        except Exception as error:
            # No permission may be that of one folder; where it is that of all, the manifest cannot be written either.
            hopeless = isinstance(error, NotImplementedError) or getattr(error, "errno", None) == errno.ENOSPC
            kind = OutputError if hopeless or "credential" in type(error).__name__.lower() else ImageError
            raise kind(f"{path}: cannot be written: {one_line(error)}") from error


class Listed(Addresses):
    """What a few folders hold is listed once instead of asked for file by file: a thousand names for each request. The driver's storage.

    It shows what was there when a folder was first asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folders: OrderedDict[str, dict[str, State | None]] = OrderedDict()
        self._lock = threading.Lock()

    def state(self, path: str) -> State | None:
        if not is_url(path):
            return super().state(path)
        folder, _, name = path.rpartition("/")
        with self._lock:
            if folder not in self._folders:
                self._folders[folder] = {entry.rpartition("/")[2]: state for entry, state in self._list(folder)}
                while len(self._folders) > _FOLDERS:
                    self._folders.popitem(last=False)
            self._folders.move_to_end(folder)
            states = self._folders[folder]
        if name not in states:
            return None
        return states[name] or super().state(path)  # what a list does not tell, as of web servers

    def _list(self, folder: str) -> list[tuple[str, State | None]]:
        system, name = file_system(folder)
        try:
            found = system.ls(name, detail=True)
        except FileNotFoundError:
            return []
        except Exception as error:
            raise OutputError(f"{folder}: cannot be listed: {one_line(error)}") from error
        return [(entry["name"].rstrip("/"), state_of(entry)) for entry in found if entry.get("type") != "directory"]


def state_of(info: Mapping[str, Any]) -> State | None:
    """Of what fsspec tells of a file; None of a folder, or where it tells no size.

    The time is in whole seconds: some stores tell fractions in lists, but not of a single file. A store that tells no time tells a mark of
    the contents, which stands for it. Where there is neither, no two states are the same, so that the contents are compared.
    """
    if info.get("type") == "directory" or info.get("size") is None:
        return None
    value = next((info[key] for key in _TIMES if info.get(key)), None)
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            value = None
    if isinstance(value, datetime):
        value = (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float):
        return State(int(info["size"]), int(value) * 10**9)
    if mark := next((str(info[key]) for key in _MARKS if info.get(key)), None):
        digest = hashlib.blake2b(mark.encode(), digest_size=8).digest()
        return State(int(info["size"]), int.from_bytes(digest) >> 1)
    return State(int(info["size"]), time.time_ns())
