"""Archives that are many or far away: brace patterns, and remote files fetched once and whole."""

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
"""A pattern for more archives than this is a slip of the pen, which must not fill the memory."""

_AT_ONCE = 4  # files that are fetched at the same time


def expand(pattern: str) -> list[str]:
    """What a shell makes of the braces in `pattern`: `{a,b}`, `{0..11}` and `{0000..0011}`, several or nested; other braces stay.

    Raises RequestError for a pattern of more than `MAX_SHARDS` names.
    """
    names = list(itertools.islice(_expansions(pattern), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise RequestError(f"{pattern}: stands for more than {MAX_SHARDS:,} names")
    return list(dict.fromkeys(names))  # the innermost braces are opened first, so that nested ones give some names twice


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


def shown(url: str) -> str:
    """The address without its query, which may hold a secret."""
    return url.partition("?")[0]


def fetch(urls: Sequence[str], progress: Callable[[int, int], None] | None = None) -> list[Path]:
    """The local copies of remote files, fetched into the cache folder where they are not there yet.

    A file is fetched whole, under a temporary name, and by one process at a time. What is in the cache is not compared with its origin
    again.

    Args:
        urls: see `gleansr.stores`.
        progress: called with the number of files that are here and the number of all.

    Raises:
        RequestError: there is no such file, reading it wants a package or a permission, or GLEANSR_OFFLINE forbids the download.
        DownloadError: the network, the server or the disk failed.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
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
        raise RequestError(f"{shown(url)} is not on this machine and downloads are switched off: fetch it by hand and give its path")
    remote, inner = _filesystem(url)
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.exists():  # another process may have brought it while this one waited
                _copy(url, remote, inner, path)
    except OSError as error:
        raise DownloadError(f"cannot write {path}: {error.strerror or error}") from None
    return path


def _filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for `url`, and what the file is called in it."""
    scheme = check_address(url)
    try:
        import fsspec

        options = {}
        if scheme in ("http", "https"):
            from aiohttp import ClientTimeout

            # By default aiohttp ends every transfer, however healthy, after five minutes.
            options["client_kwargs"] = {"timeout": ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise RequestError(f"{shown(url)}: cannot be read ({error}): pip install {SCHEMES[scheme]}") from None
    except ValueError as error:  # a port that is no number
        raise RequestError(f"{shown(url)}: {error}") from None


def _copy(url: str, remote: Any, inner: str, path: Path) -> None:
    for attempt in range(1, MAX_TRIES + 1):
        try:
            size = remote.info(inner).get("size")  # None where the server does not say
            free = shutil.disk_usage(path.parent).free
            if size and size > free:
                raise DownloadError(f"{shown(url)}: has {size:,} bytes but the disk of {path.parent} has only {free:,} free")
            with replacing(path) as temporary:
                remote.get_file(inner, str(temporary))
                received = temporary.stat().st_size
                if size is not None and received != size:
                    raise ConnectionError(f"the connection broke off after {received:,} of {size:,} bytes")
            return
        except DownloadError:
            raise
        except Exception as error:  # each file system has errors of its own
            reason = " ".join(str(error).split()).replace(url, shown(url)) or type(error).__name__
            status = getattr(error, "status", 0)
            if isinstance(error, FileNotFoundError) or status == 404:
                raise RequestError(f"{shown(url)}: there is no such file") from None
            if isinstance(error, PermissionError) or (400 <= status < 500 and status not in (408, 425, 429)):
                raise RequestError(f"{shown(url)}: may not be read: {reason}") from None
            if attempt == MAX_TRIES:
                raise DownloadError(f"cannot download {shown(url)}: {reason}; run the same command again") from None
            sleep(2.0 ** (attempt - 1))
