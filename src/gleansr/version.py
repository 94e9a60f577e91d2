"""The version of the package."""

import functools
import importlib.metadata


@functools.cache
def version() -> str:
    """The version of the installed package; "unknown" if the sources run without an installation."""
    try:
        return importlib.metadata.version("gleansr")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
