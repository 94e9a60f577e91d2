"""Files at URLs, through fsspec, and local files."""

import errno
import hashlib
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from gleansr.errors import ImageError, RequestError, one_line
from gleansr.jobs import FileState, LocalStorage, OutputError
from gleansr.jobs.storage import LARGEST
from gleansr.stores import check_address, is_url

_TIMES = ("mtime", "LastModified", "last_modified", "last_commit", "updated", "timeModified", "modified", "created")
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "checksum")
_FOLDERS = 32


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL or path, and the path in it. Raises RequestError if it cannot be used."""
    if is_url(url) or "://" in url:
        check_address(url)
    import fsspec

    try:
        # A path with :: is a plain path here, not fsspec's chained URL.
        return fsspec.url_to_fs(url, use_listings_cache=False) if is_url(url) else (fsspec.filesystem("file"), url)
    except (ImportError, ValueError, OSError) as error:  # an unknown protocol, or its package is missing
        raise RequestError(f"{url}: {one_line(error)}") from error


class RemoteStorage:
    """Local files and files at URLs. The `FileStore` of workers."""

    def __init__(self) -> None:
        self._local = LocalStorage()
        self._sizes: dict[str, int] = {}

    def state(self, path: str) -> FileState | None:
        if not is_url(path):
            return self._local.state(path)
        try:
            system, name = file_system(path)
            info = system.info(name)
        except Exception:  # the stores of fsspec raise many kinds
            return None
        state = file_state(info)
        if state:
            self._sizes[path] = state.size  # `read` checks it
        return state

    def read(self, path: str) -> bytes:
        if not is_url(path):
            return self._local.read(path)
        size = self._sizes.pop(path, 0)
        if size > LARGEST:
            raise ImageError(f"{path} has {size} bytes; image files have at most {LARGEST}")
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
            system.pipe_file(name, data)  # atomic in object stores
        except Exception as error:
            # A missing permission can concern one folder alone; otherwise writing the manifest fails too.
            hopeless = isinstance(error, NotImplementedError) or getattr(error, "errno", None) == errno.ENOSPC
            kind = OutputError if hopeless or "credential" in type(error).__name__.lower() else ImageError
            raise kind(f"{path}: cannot be written: {one_line(error)}") from error


class CachedStorage(RemoteStorage):
    """Remote files whose folders are listed once instead of queried file by file: 1,000 names per request. Used by the driver.

    It shows a folder as of its first query.
    """

    def __init__(self) -> None:
        super().__init__()
        self._listed = lru_cache(_FOLDERS)(_states)
        self._lock = threading.Lock()  # threads that ask for one folder at once list it once

    def state(self, path: str) -> FileState | None:
        if not is_url(path):
            return super().state(path)
        folder, _, name = path.rpartition("/")
        with self._lock:
            states = self._listed(folder)
        if name not in states:
            return None
        return states[name] or super().state(path)  # listings of web servers have no sizes


def _states(folder: str) -> dict[str, FileState | None]:
    """The files of a folder, by their names."""
    system, path = file_system(folder)
    try:
        found = system.ls(path, detail=True)
    except FileNotFoundError:
        return {}
    except Exception as error:
        raise OutputError(f"{folder}: cannot be listed: {one_line(error)}") from error
    return {entry["name"].rstrip("/").rpartition("/")[2]: file_state(entry) for entry in found if entry.get("type") != "directory"}


def file_state(info: Mapping[str, Any]) -> FileState | None:
    """Size and mtime from fsspec's info of a file; None for a folder or an unknown size.

    The mtime is in whole seconds, because some stores give fractions only in listings. A hash of a checksum replaces a missing mtime.
    Without either, all states differ, so that the contents are compared.
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
        return FileState(int(info["size"]), int(value) * 10**9)
    if mark := next((str(info[key]) for key in _MARKS if info.get(key)), None):
        digest = hashlib.blake2b(mark.encode(), digest_size=8).digest()
        return FileState(int(info["size"]), int.from_bytes(digest) >> 1)
    return FileState(int(info["size"]), time.time_ns())
