"""An allow-list of remote addresses, since fsspec opens far more than remote files."""

import os
import re

from gleansr.errors import RequestError

SCHEMES = {"http": "'gleansr[train]'", "https": "'gleansr[train]'", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""Allowed schemes, and the package that each needs."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_COLLAPSED = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


def check_address(url: str) -> str:
    """The scheme of the address of a remote file or folder.

    Raises RequestError for a scheme that is not allowed, such as `file://` or `ssh://`, and for chained addresses (`zip://…::…`): with them
    a list of files from elsewhere could read anything on this machine.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in SCHEMES or "::" in rest:
        raise RequestError(
            f"{url.partition('?')[0][:300]}: addresses of this kind are not supported; expected http://, https://, s3:// or gs://"
        )
    return scheme


def is_url(path: str) -> bool:
    """Whether a path is a URL, for fsspec."""
    return _SCHEME.match(path) is not None


def normalize(path: str | os.PathLike[str]) -> str:
    """A path or URL in canonical form: file:// becomes a path, and the // that `Path` collapses in a URL is restored."""
    text = _COLLAPSED.sub(r"\1://", os.fspath(path), count=1)
    if text.startswith(("file://", "local://")):
        return "/" + text.partition("://")[2].lstrip("/")
    return text.rstrip("/") if is_url(text) else text
