"""Which remote files are read and written: an allow-list, since fsspec itself opens far more by an address than files far away."""

from gleansr.errors import RequestError

SCHEMES = {"http": "'gleansr[train]'", "https": "'gleansr[train]'", "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
"""How addresses may begin, and the package that each needs."""


def check_address(url: str) -> str:
    """The scheme of an address of a remote file or folder.

    Raises RequestError for one that is not allowed. Among them are `file://` and `ssh://`, and addresses of addresses (`zip://…::…`), by
    which a list of files from elsewhere could reach whatever this machine can.
    """
    scheme, found, rest = url.partition("://")
    if not found or scheme not in SCHEMES or "::" in rest:
        raise RequestError(
            f"{url.partition('?')[0][:300]}: addresses of this kind are not used; expected http://, https://, s3:// or gs://"
        )
    return scheme
