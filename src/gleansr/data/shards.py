"""Shards: brace patterns, and downloads of remote archives."""

import hashlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path, PurePosixPath
from time import sleep
from typing import Any
from urllib.parse import urlsplit

from gleansr.checkpoints.download import MAX_TRIES
from gleansr.checkpoints.zoo import cache_folder, offline_by_environment
from gleansr.errors import DownloadError, RequestError
from gleansr.files import replacing
from gleansr.stores import SCHEMES, check_address

MAX_SHARDS = 100_000
"""Limit of names in a pattern, so that a typing error does not fill the memory."""

_PARALLEL = 4  # simultaneous downloads


def expand(pattern: str) -> list[str]:
    """Expands braces as a shell does: `{a,b}`, `{0..11}` and `{0000..0011}`, several or nested; other braces stay.

    Raises RequestError for a pattern of more than `MAX_SHARDS` names.
    """
    names = list(itertools.islice(_expansions(pattern), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise RequestError(f"{pattern}: stands for more than {MAX_SHARDS:,} names")
    return list(dict.fromkeys(names))  # nested braces, which are expanded from the inside, repeat names


def _expansions(pattern: str) -> Iterator[str]:
    for group in re.finditer(r"\{([^{}]*)\}", pattern):
        if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", group[1]):
            first, last = (int(number) for number in numbers.groups())
            padded = any(len(number) > 1 and number.startswith("0") for number in numbers.groups())
            width = max(map(len, numbers.groups())) if padded else 0
            options = (f"{i:0{width}}" for i in (range(first, last + 1) if first <= last else range(first, last - 1, -1)))
        elif "," in group[1]:
            options = iter(group[1].split(","))
        else:
            continue
        for option in options:
            yield from _expansions(pattern[: group.start()] + option + pattern[group.end() :])
        return
    yield pattern


def without_query(url: str) -> str:
    """`url` without its query, which may hold a secret."""
    return url.partition("?")[0]


def fetch(urls: Sequence[str], progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """Downloads remote files to the cache folder, unless they are cached, and returns the local paths.

    A file is downloaded under a temporary name by one process at a time. Cached files are not compared with their origin.

    Args:
        urls: see `gleansr.stores`.
        progress: called with the number of local files and the total.

    Raises:
        RequestError: a file does not exist, reading it needs a package or a permission, or GLEANSR_OFFLINE forbids the download.
        DownloadError: the network, the server or the disk failed.
    """
    with ThreadPoolExecutor(_PARALLEL) as pool:
        futures = [pool.submit(_fetch, url) for url in urls]
        try:
            for done, future in enumerate(as_completed(futures), 1):
                future.result()
                if progress:
                    progress(done, len(urls))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _fetch(url: str) -> Path:
    name = PurePosixPath(urlsplit(url).path).name
    path = cache_folder() / "shards" / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if path.exists():
        return path
    if offline_by_environment():
        raise RequestError(f"{without_query(url)} is not cached and downloads are switched off: download it yourself and give its path")
    remote, remote_path = _filesystem(url)
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():  # another process may have downloaded it in the meantime
                _download(url, remote, remote_path, path)
    except OSError as error:
        raise DownloadError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _filesystem(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system for `url`, and the file's path in it."""
    scheme = check_address(url)
    try:
        import fsspec

        options = {}
        if scheme in ("http", "https"):
            from aiohttp import ClientTimeout

            # aiohttp's default aborts every transfer after five minutes.
            options["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise RequestError(f"{without_query(url)}: cannot be read ({error}): pip install {SCHEMES[scheme]}") from None
    except ValueError as error:  # such as an invalid port
        raise RequestError(f"{without_query(url)}: {error}") from None


def _download(url: str, remote: Any, remote_path: str, path: Path) -> None:
    for attempt in range(1, MAX_TRIES + 1):
        try:
            size = remote.info(remote_path).get("size")  # None if the server does not state it
            free = shutil.disk_usage(path.parent).free
            if size and size > free:
                raise DownloadError(f"{without_query(url)}: has {size:,} bytes but the disk of {path.parent} has only {free:,} free")
            with replacing(path) as temporary:
                remote.get_file(remote_path, str(temporary))
                received = temporary.stat().st_size
                if size is not None and received != size:
                    raise ConnectionError(f"the connection closed after {received:,} of {size:,} bytes")
            return
        except DownloadError:
            raise
        except Exception as error:  # each file system has its own errors
            reason = " ".join(str(error).split()).replace(url, without_query(url)) or type(error).__name__
            status = getattr(error, "status", 0)
            if isinstance(error, FileNotFoundError) or status == 404:
                raise RequestError(f"{without_query(url)}: no such file") from None
            if isinstance(error, PermissionError) or (400 <= status < 500 and status not in (408, 425, 429)):
                raise RequestError(f"{without_query(url)}: may not be read: {reason}") from None
            if attempt == MAX_TRIES:
                raise DownloadError(f"cannot download {without_query(url)}: {reason}; run the same command again") from None
            sleep(2.0 ** (attempt - 1))
