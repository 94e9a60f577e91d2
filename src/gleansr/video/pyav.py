"""PyAV, the optional dependency of the extra `video`: imported at first use, with one-line errors."""

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gleansr.errors import GleansrError, ImageError, RequestError
from gleansr.images.formats import identify

READ = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg", ".vob"),
    *(".wmv", ".asf", ".flv", ".ogv", ".gif"),
)
"""Suffixes of video files. The content decides the format; a .gif may also be an image."""

WRITTEN = {".mp4": "mp4", ".mkv": "matroska", ".webm": "webm"}
"""Suffixes of videos that can be written, and their container formats."""

# Excludes playlists and lists, through which a file could open further files or network streams, and single images.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg,gif"
_CLOCKS = {"mpegts", "mpeg", "asf"}
"""Containers whose times are those of a running clock, with an arbitrary start."""


@functools.cache
def pyav() -> Any:
    """The module `av`. Raises RequestError if it is not installed."""
    try:
        return importlib.import_module("av")
    except ImportError:
        raise RequestError("videos need PyAV: install it with `pip install 'gleansr[video]'`, or give a folder of frames") from None


@contextmanager
def open_container(path: Path) -> Iterator[Any]:
    """Opens a video file for reading. Turns its errors within the block into ImageError."""
    av = pyav()  # its RequestError is not an ImageError
    if not path.is_file():  # a pipe would block
        raise ImageError(f"{path}: {'is not a file' if path.exists() else 'there is no such file'}")
    try:
        # libav gets an open file: it would take a name such as http:clip.mp4 for an address.
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise ImageError(f"{path}: is empty")
            try:
                container = av.open(file, "r", options={"format_whitelist": _CONTAINERS}, metadata_errors="replace")
            except (av.FFmpegError, ValueError) as error:
                raise ImageError(f"{path}: {_describe(file, path)} ({error_text(error)})") from error
            with container:
                yield container
    except GleansrError:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise ImageError(f"{path}: cannot be read, it is damaged or cut off ({error_text(error)})") from error


def start_time(container: Any) -> float:
    """The time at which a container's video starts, in seconds: 0, except for containers with clock times."""
    return (container.start_time or 0) / 1_000_000 if container.format.name in _CLOCKS else 0.0


def _describe(file: BinaryIO, path: Path) -> str:
    """The error message for a file that cannot be opened as a video."""
    file_format = identify(file)
    if file_format is None:
        return "is not a video of a supported format, or is damaged or cut off"
    if file_format.group == "video":
        return f"is a {file_format.name} that is damaged or cut off, or of an unusual kind"
    if file_format.group == "image":
        return f"is not a video but a {file_format.name}: rename it to {path.stem}{file_format.suffixes[0]}"
    return f"is not a video but a {file_format.name}"


def error_text(error: BaseException) -> str:
    """An error of libav or the system, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()).lower() or type(error).__name__
