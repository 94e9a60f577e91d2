"""PyAV, which the extra `video` installs: loaded when it is wanted, and its errors in one line."""

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
"""Suffixes of what is taken for a video. What a file is read as goes by its contents; a .gif may also be an image."""

WRITTEN = {".mp4": "mp4", ".mkv": "matroska", ".webm": "webm"}
"""Suffixes of the videos that are written, and the names of their containers."""

# Others are playlists and lists of files, with which a file could make us read further ones, streams of a network, and single images.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,asf,flv,ogg,gif"
_CLOCKS = {"mpegts", "mpeg", "asf"}
"""Containers whose times are those of a clock that ran before, so that they begin anywhere."""


@functools.cache
def pyav() -> Any:
    """The module `av`. Raises RequestError where it is not installed."""
    try:
        return importlib.import_module("av")
    except ImportError:
        raise RequestError("videos need PyAV: install it with `pip install 'gleansr[video]'`, or give a folder of frames") from None


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The container of a video file, to be read from. What goes wrong with it in the block is a ImageError."""
    av = pyav()  # outside of what is caught
    if not path.is_file():  # a pipe would be waited for
        raise ImageError(f"{path}: {'is not a file' if path.exists() else 'there is no such file'}")
    try:
        # Handed over as an open file: a name such as http:clip.mp4 would be an address to libav.
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise ImageError(f"{path}: is empty")
            try:
                container = av.open(file, "r", options={"format_whitelist": _CONTAINERS}, metadata_errors="replace")
            except (av.FFmpegError, ValueError) as error:
                raise ImageError(f"{path}: {_other(file, path)} ({reason(error)})") from error
            with container:
                yield container
    except GleansrError:
        raise
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        raise ImageError(f"{path}: cannot be read, it is damaged or cut off ({reason(error)})") from error


def start(container: Any) -> float:
    """The second of a container that is the first of its video: 0, but where times are those of a clock."""
    return (container.start_time or 0) / 1_000_000 if container.format.name in _CLOCKS else 0.0


def _other(file: BinaryIO, path: Path) -> str:
    """What to say of a file that is no video that can be read."""
    found = identify(file)
    if found is None:
        return "is not a video of a known kind, or is damaged or cut off"
    if found.group == "video":
        return f"is a {found.name} that is damaged or cut off, or of an unusual kind"
    if found.group == "image":
        return f"is not a video but a {found.name}: rename it to {path.stem}{found.suffixes[0]}"
    return f"is not a video but a {found.name}"


def reason(error: BaseException) -> str:
    """An error of libav or the system, in one line."""
    return " ".join(str(getattr(error, "strerror", None) or error).split()).lower() or type(error).__name__
