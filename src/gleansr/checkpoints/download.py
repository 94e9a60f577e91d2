"""Fetching a file once and whole: resumed where it broke off, checked against its hash, safe to run twice at once."""

import hashlib
import http.client
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from gleansr.documents import read_json
from gleansr.errors import DownloadError, RequestError

MAX_BYTES = 2 * 1024**3
"""No file of unknown size may be larger than this: a wrong URL must not fill the disk."""

TRIES = 5
"""Attempts in a row that may fail without a single new byte."""

LONGEST_WAIT = 60.0
"""Seconds; a server that asks for a longer pause (Retry-After) is asked again after this one."""

DownloadProgress = Callable[[int, int | None], None]
"""Called with the bytes that are here (a resumed part included) and the size of the file, None while it is unknown."""

_CHUNK = 1 << 16
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


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
    """Fetch `url` into `path` and return `path`; where that file exists already, nothing is done.

    The bytes gather in `<name>.part` in the same folder, which becomes `path` in one step when it is complete and its
    sha256 begins with `sha256_prefix`. An interrupted part, by Ctrl-C too, is continued by the next call. A second
    process that wants the same file waits for the first one.

    Args:
        url: https; plain http is taken from this very machine only.
        path: where the file goes; its folder is created.
        sha256_prefix: the first 8 to 64 hexadecimal digits of the file's sha256.
        size: the exact size in bytes, where it is known; otherwise at most `MAX_BYTES` are taken.
        progress: see `DownloadProgress`.
        timeout: seconds of silence after which a connection counts as broken.
        sleep: waits between attempts.

    Raises:
        DownloadError: the network, the server or the disk failed, or what came is not the file that was expected.
        RequestError: the URL or the hash prefix is not of the form above.
    """
    if not _trusted(url):
        raise RequestError(f"cannot download {url}: only https is allowed, http only from a loopback address")
    if not re.fullmatch(r"[0-9a-f]{8,64}", sha256_prefix):
        raise RequestError(f"sha256_prefix must be 8 to 64 lower-case hexadecimal digits, got {sha256_prefix!r}")
    if path.exists():
        return path
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _exclusive(lock, sleep):
            if not path.exists():  # another process may have brought it while this one waited
                _fetch(url, path, sha256_prefix, size, progress, timeout, sleep)
    except OSError as error:  # those of the network are told apart before they get here
        raise DownloadError(f"cannot write {path}: {error.strerror or error}") from error
    # Whoever still waits for this lock, or makes a new one, finds `path` and is content: removing it is safe.
    with suppress(OSError):
        lock.unlink()
    return path


class _AttemptError(Exception):
    """An attempt failed: why, and the least seconds to wait before the next one; None where another one is useless."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Part:
    """The bytes received so far and, beside them, a note of what they are the beginning of."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".part")
        self.note = path.with_name(path.name + ".part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def begin(self, url: str, headers: Any) -> None:
        """Start from nothing, noting what identifies this version of the file."""
        etag = headers.get("ETag", "")
        # A weak ETag promises an equivalent file, not equal bytes, so it must not stand in If-Range (RFC 9110, 13.1.5).
        validator = etag if etag.startswith('"') else headers.get("Last-Modified")
        self.path.write_bytes(b"")
        self.note.write_text(json.dumps({"url": url, "validator": validator}), encoding="utf-8")

    def validator(self, url: str) -> str | None:
        """The ETag or date of the file that the part belongs to; None where the part cannot be continued."""
        try:
            note = read_json(self.note)
            return note["validator"] if note["url"] == url and self.size() else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


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
    tries = furthest = 0
    while True:
        try:
            sha256 = _attempt(url, part, size, progress, timeout)
            break
        except _AttemptError as failure:
            if part.size() > furthest:  # a line that often breaks still gets there
                tries, furthest = 0, part.size()
            tries += 1
            if failure.wait is None or tries >= TRIES:
                kept = f"; {part.size():,} bytes are kept for the next run" if part.size() else ""
                raise DownloadError(f"cannot download {url}: {failure}{kept}") from failure
            sleep(max(failure.wait, 2.0 ** (tries - 1)))
    if not sha256.startswith(sha256_prefix):
        part.discard()
        raise DownloadError(
            f"{url} is not the file that was expected: its sha256 should begin with {sha256_prefix}, it is {sha256}; "
            "the file was deleted, run it again or fetch it by hand"
        )
    part.path.replace(path)
    part.note.unlink(missing_ok=True)


def _attempt(url: str, part: _Part, size: int | None, progress: DownloadProgress | None, timeout: float) -> str:
    """One request, which continues the part where it can; returns the sha256 of the complete part."""
    received, digest = 0, hashlib.sha256()
    headers = {"User-Agent": "gleansr", "Accept-Encoding": "identity"}
    if validator := part.validator(url):
        with part.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
            received = file.tell()
        headers |= {"Range": f"bytes={received}-", "If-Range": validator}

    with _open(urllib.request.Request(url, headers=headers), timeout) as response:  # noqa: S310 (_trusted has checked it)
        status, content_range = response.status, response.headers.get("Content-Range", "")
        if status == 200:  # also the answer where the file has changed, or the server knows no ranges
            received, digest = 0, hashlib.sha256()
            total = int(length) if (length := response.headers.get("Content-Length", "")).isdecimal() else None
            _check_room(total, size, 0, part)
            part.begin(url, response.headers)
        elif status == 206 and (match := re.fullmatch(rf"bytes {received}-\d+/(\d+|\*)", content_range)):
            total = int(match[1]) if match[1] != "*" else None
            _check_room(total, size, received, part)
        elif status == 416 and content_range == f"bytes */{received}":
            return digest.hexdigest()  # it was complete: the last run ended just before the renaming
        elif status in (206, 416):
            part.discard()
            raise _AttemptError(f"the server cannot continue at byte {received:,}", wait=0)
        elif status in _BUSY:
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
            os.fsync(file.fileno())  # or a power cut after the renaming could leave a whole name on half a file
    if received > limit:
        part.discard()
        raise _AttemptError(f"it is larger than {limit:,} bytes")
    if total and received < total:
        raise _AttemptError(f"the connection broke off after {received:,} of {total:,} bytes", wait=0)
    return digest.hexdigest()


def _check_room(total: int | None, size: int | None, received: int, part: _Part) -> None:
    """Refuse a file of another size than expected, or one that the disk cannot hold, before its first byte."""
    if total and size and total != size:
        raise _AttemptError(f"the server's file has {total:,} bytes, {size:,} were expected")
    if total and total > MAX_BYTES and not size:
        raise _AttemptError(f"the server's file has {total:,} bytes, at most {MAX_BYTES:,} are taken")
    missing = (total or size or 0) - received
    free = shutil.disk_usage(part.path.parent).free
    if missing > free:
        raise _AttemptError(f"{missing:,} bytes are missing but the disk of {part.path.parent} has only {free:,} free")


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
    """Follows a redirect to https only; within this machine also to http."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urlsplit(newurl).scheme != "https" and not (_loopback(req.full_url) and _trusted(newurl)):
            fp.close()
            raise _AttemptError(f"the server redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """The server's answer, whatever its status."""
    try:
        return urllib.request.build_opener(_TrustedRedirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as answer:
        return answer
    except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: a redirect to a malformed address
        raise _network_failure(error, timeout) from error


def _read(response: Any, timeout: float) -> bytes:
    try:
        return response.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _network_failure(error, timeout) from error


def _network_failure(error: Exception, timeout: float) -> _AttemptError:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return _AttemptError(f"the host name is not found ({cause.strerror}); is this machine online?")
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _AttemptError(
            f"the server's certificate is not trusted ({cause}); SSL_CERT_FILE may name a file of further trusted certificates"
        )
    if isinstance(cause, TimeoutError):
        return _AttemptError(f"the server was silent for {timeout:g} s", wait=0)
    return _AttemptError(str(cause) or type(cause).__name__, wait=0)


def _retry_after(headers: Any) -> float:
    """The seconds that the server asks to wait, given as a number or as a date; within 0 and `LONGEST_WAIT`."""
    text = headers.get("Retry-After", "0").strip()
    try:
        seconds = float(text) if text.isdecimal() else (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):  # no date at all, or one without its time zone
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)


# ------------------------------------------------------------------------------------------------------------ the lock

if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try_lock(file: IO[bytes]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@contextmanager
def _exclusive(lock: Path, sleep: Callable[[float], None]) -> Iterator[None]:
    """Hold the operating system's lock on a file. It ends with its process however that dies, so none is ever stale."""
    with lock.open("ab") as file:
        while not _try_lock(file):
            sleep(0.5)
        yield
