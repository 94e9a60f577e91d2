"""The version of this package."""

import functools
import importlib.metadata


@functools.cache
def version() -> str:
    """Of the installed package; "unknown" where the sources are run without an installation."""
    try:
        return importlib.metadata.version("gleansr")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
