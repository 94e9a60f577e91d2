"""Downloads: resumed after an interruption, checked against a SHA-256, safe to run in several processes at once."""

import hashlib
import http.client
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gleansr.documents import read_json
from gleansr.errors import DownloadError, RequestError

MAX_BYTES = 2 * 1024**3
"""Limit for files of unknown size: a wrong URL must not fill the disk."""

MAX_TRIES = 5
"""Failed attempts in a row without a single new byte."""

MAX_WAIT = 60.0
"""Seconds; the limit for a pause that a server asks for (Retry-After)."""

DownloadProgress = Callable[[int, int | None], None]
"""Called with the bytes received so far (a resumed part included) and the size of the file, None while it is unknown."""

_CHUNK_SIZE = 1 << 16
_RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})


def download(
    url: str,
    path: Path,
    *,
    sha256_prefix: str,
    size: int | None = None,
    progress: DownloadProgress | None = None,
    timeout: float = 30,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Downloads `url` to `path` and returns `path`. An existing file is kept.

    The bytes gather in `<name>.part` in the same folder, which is renamed to `path` when it is complete and its SHA-256
    begins with `sha256_prefix`. The next call continues an interrupted part. A second process that needs the same file
    waits for the first.

    Args:
        url: https; plain http from this machine only.
        path: the target; its folder is created.
        sha256_prefix: the first 8 to 64 hexadecimal digits of the file's SHA-256.
        size: the exact size in bytes, if known; otherwise the limit is `MAX_BYTES`.
        progress: see `DownloadProgress`.
        timeout: seconds of silence after which a connection counts as broken.
        sleep: waits between attempts.

    Raises:
        DownloadError: the network, the server or the disk failed, or the file is not the expected one.
        RequestError: the URL or the hash prefix is invalid.
    """
    if not _trusted(url):
        raise RequestError(f"cannot download {url}: only https is allowed, http only from a loopback address")
    if not re.fullmatch(r"[0-9a-f]{8,64}", sha256_prefix):
        raise RequestError(f"sha256_prefix must be 8 to 64 lower-case hexadecimal digits, got {sha256_prefix!r}")
    if path.exists():
        return path
    from filelock import FileLock

    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            if not path.exists():  # another process may have downloaded it in the meantime
                _fetch(url, path, sha256_prefix, size, progress, timeout, sleep)
    except OSError as error:  # of the disk; those of the network are `_AttemptError`s
        raise DownloadError(f"cannot write {path}: {error.strerror or error}") from error
    # Removing the lock is safe: any other process finds `path`.
    with suppress(OSError):
        lock.unlink()
    return path


class _AttemptError(Exception):
    """A failed attempt: the reason, and the minimum seconds to wait before the next one; None if it is useless to try again."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Part:
    """The bytes received so far, and a JSON file that identifies the version of the file that they belong to."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".part")
        self.metadata = path.with_name(path.name + ".part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, url: str, headers: Any) -> None:
        """Starts an empty part and records the version of the file."""
        etag = headers.get("ETag", "")
        # A weak ETag promises an equivalent file, not equal bytes, so it must not stand in If-Range (RFC 9110, 13.1.5).
        validator = etag if etag.startswith('"') else headers.get("Last-Modified")
        self.path.write_bytes(b"")
        self.metadata.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")

    def validator(self, url: str) -> str | None:
        """The ETag or date of the file that the part belongs to; None if the part cannot be continued."""
        try:
            metadata = read_json(self.metadata)
            return metadata["validator"] if metadata["url"] == url and self.size() else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.metadata.unlink(missing_ok=True)


def _fetch(
    url: str,
    path: Path,
    sha256_prefix: str,
    size: int | None,
    progress: DownloadProgress | None,
    timeout: float,
    sleep: Callable[[float], None],
) -> None:
    part = _Part(path)
    tries = max_size = 0
    while True:
        try:
            sha256 = _attempt(url, part, size, progress, timeout)
            break
        except _AttemptError as failure:
            if part.size() > max_size:  # an unstable connection still makes progress
                tries, max_size = 0, part.size()
            tries += 1
            if failure.wait is None or tries >= MAX_TRIES:
                kept = f"; {part.size():,} bytes are kept for the next attempt" if part.size() else ""
                raise DownloadError(f"cannot download {url}: {failure}{kept}") from failure
            sleep(max(failure.wait, 2.0 ** (tries - 1)))
    if not sha256.startswith(sha256_prefix):
        part.discard()
        raise DownloadError(
            f"{url} is not the expected file: its SHA-256 is {sha256}, expected {sha256_prefix}...; "
            "the download was deleted; try again or download the file manually"
        )
    part.path.replace(path)
    part.metadata.unlink(missing_ok=True)


def _attempt(url: str, part: _Part, size: int | None, progress: DownloadProgress | None, timeout: float) -> str:
    """One request, which continues the part if possible. Returns the SHA-256 of the complete part."""
    received, digest = 0, hashlib.sha256()
    headers = {"User-Agent": "gleansr", "Accept-Encoding": "identity"}
    if validator := part.validator(url):
        with part.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            received = file.tell()
        headers |= {"Range": f"bytes={received}-", "If-Range": validator}

    with _open(urllib.request.Request(url, headers=headers), timeout) as response:  # noqa: S310 (_trusted has checked it)
        status, content_range = response.status, response.headers.get("Content-Range", "")
        if status == 200:  # also if the file has changed or the server does not support ranges
            received, digest = 0, hashlib.sha256()
            total = int(length) if (length := response.headers.get("Content-Length", "")).isdecimal() else None
            _check_room(total, size, 0, part)
            part.begin(url, response.headers)
        elif status == 206 and (match := re.fullmatch(rf"bytes {received}-\d+/(\d+|\*)", content_range)):
            total = int(match[1]) if match[1] != "*" else None
            _check_room(total, size, received, part)
        elif status == 416 and content_range == f"bytes */{received}":
            return digest.hexdigest()  # the part was complete: the last run ended just before the renaming
        elif status in (206, 416):
            part.discard()
            raise _AttemptError(f"the server cannot continue at byte {received:,}", wait=0)
        elif status in _RETRIED_STATUSES:
            raise _AttemptError(f"the server answered {status} {response.reason}", wait=_retry_after(response.headers))
        else:
            raise _AttemptError(f"the server answered {status} {response.reason}")

        total, limit = total or size, size or MAX_BYTES
        with part.path.open("ab") as file:
            while chunk := _read(response, timeout):
                received += len(chunk)
                if received > limit:
                    break
                file.write(chunk)
                digest.update(chunk)
                if progress:
                    progress(received, total)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut after the renaming could leave an incomplete file
    if received > limit:
        part.discard()
        raise _AttemptError(f"the file is larger than {limit:,} bytes")
    if total and received < total:
        raise _AttemptError(f"the connection was closed after {received:,} of {total:,} bytes", wait=0)
    return digest.hexdigest()


def _check_room(total: int | None, size: int | None, received: int, part: _Part) -> None:
    """Raises `_AttemptError` for a file of an unexpected size, or one that does not fit on the disk, before its first byte."""
    if total and size and total != size:
        raise _AttemptError(f"the server's file has {total:,} bytes, expected {size:,}")
    if total and total > MAX_BYTES and not size:
        raise _AttemptError(f"the server's file has {total:,} bytes; the limit is {MAX_BYTES:,}")
    missing = (total or size or 0) - received
    free = shutil.disk_usage(part.path.parent).free
    if missing > free:
        raise _AttemptError(f"{missing:,} more bytes are needed, but the disk of {part.path.parent} has only {free:,} free")


# --------------------------------------------------------------------------------------------------------- the network


def _loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _trusted(url: str) -> bool:
    scheme = urlsplit(url).scheme
    return scheme == "https" or (scheme == "http" and _loopback(url))


class _TrustedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https only; from this machine also to http on this machine."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme != "https" and not (_loopback(req.full_url) and _trusted(newurl)):
            fp.close()
            raise _AttemptError(f"the server redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """The server's response, whatever its status."""
    try:
        return urllib.request.build_opener(_TrustedRedirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as response:
        return response
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a redirect to a malformed address
        raise _network_failure(error, timeout) from error


def _read(response: Any, timeout: float) -> bytes:
    try:
        return response.read(_CHUNK_SIZE)
    except (OSError, http.client.HTTPException) as error:
        raise _network_failure(error, timeout) from error


def _network_failure(error: Exception, timeout: float) -> _AttemptError:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return _AttemptError(f"the host name was not found ({cause.strerror}); is this machine online?")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _AttemptError(
            f"the server's certificate is not trusted ({cause}); set SSL_CERT_FILE to a file with further trusted certificates"
        )
    if isinstance(cause, TimeoutError):
        return _AttemptError(f"the server did not respond for {timeout:g} s", wait=0)
    return _AttemptError(str(cause) or type(cause).__name__, wait=0)


def _retry_after(headers: Any) -> float:
    """The seconds that the server asks to wait, as a number or a date, limited to 0 to `MAX_WAIT`."""
    text = headers.get("Retry-After", "0").strip()
    try:
        seconds = float(text) if text.isdecimal() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # not a date, or one without a time zone
        return 0.0
    return min(max(seconds, 0.0), MAX_WAIT)
