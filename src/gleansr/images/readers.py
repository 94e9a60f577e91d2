"""Which formats Pillow reads here, and what to say of files of others.

Registers the readers of HEIC and JPEG XL from the extra `heif` in Pillow.
"""

import contextlib
import functools
import importlib
import io
import os
import threading
from collections.abc import Collection
from pathlib import PurePath
from typing import BinaryIO

from PIL import Image

from gleansr.errors import ImageError, TooLargeError
from gleansr.images.formats import IMAGES, Format, by_suffix, identify
from gleansr.images.jxl import jxl_size

NOT_READ = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}
"""Pillow's names of formats that are not read: EPS is a program to execute; Pillow has no decoder for the others."""

_LOCK = threading.Lock()

_NEVER = {".txt", ".json", ".jsonl", ".xml", ".xmp", ".csv", ".md", ".log", ".yaml", ".py", ".npy", ".aae"}
"""Suffixes of files that are never opened to look for an image."""


def skip_reason(folder: str, name: str) -> str | None:
    """Why a file in a folder is skipped, by its name or, if that is inconclusive, its contents: its format and what to do. None for files
    that are neither images nor videos."""
    kind, suffix = by_suffix(name), PurePath(name).suffix.lower()
    if kind is None and suffix not in _NEVER:
        with contextlib.suppress(OSError), open(PurePath(folder, name), "rb", opener=_without_waiting) as file:
            kind = identify(file)
    if kind is None or kind.group not in ("image", "raw", "video"):
        return None
    if is_supported(kind) and suffix not in readable_suffixes():
        return f"{kind.name} with another suffix: rename it to NAME{kind.suffixes[0]}"
    return f"{kind.name}: {remedy(kind)}"


def _without_waiting(path: str, flags: int) -> int:
    """Opens a named pipe without waiting for its writer; it cannot seek and is skipped."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def explain_unreadable(name: str, source: bytes | BinaryIO, kinds: Collection[str] | None = None) -> str:
    """Why a file cannot be read as an image, for a message after its name: its format, and what to do.

    `kinds`: Pillow's names of the allowed formats; None for all.
    """
    kind = identify(source)
    if kind is None:
        unknown = "is not an image of a known kind" + (f"; {SUPPORTED}" if kinds is None else "")
        return "is empty" if _size(source) == 0 else unknown
    description = f"is {_article(kind.name)}"
    if kind.group == "video" and PurePath(name).suffix.lower() not in kind.suffixes:
        return f"{description}, not an image: rename it to {PurePath(name).stem}{kind.suffixes[0]}, and {remedy(kind)}"
    if kind.group == "image" and is_supported(kind):
        reason = "damaged or truncated" if kinds is None else "damaged or truncated, or of a kind that is not taken here"
        return f"cannot be read: this {kind.name} is {reason}"
    if kinds is not None:
        return f"{description}, which is not taken here"
    return f"{description}{'' if kind.group in ('image', 'raw') else ', not an image'}: {remedy(kind)}"


SUPPORTED = "supported: PNG, JPEG, WebP, TIFF, GIF, BMP, AVIF and others; HEIC and JPEG XL with `pip install 'gleansr[heif]'`"


def is_supported(kind: Format) -> bool:
    """Whether images of a format can be read with the installed packages."""
    return kind.group == "image" and bool(readable_suffixes() & {*kind.suffixes})


def remedy(kind: Format) -> str:
    """What to do with a file of a format that is not read as an image."""
    if kind.group == "raw":
        return "develop it to a TIFF or JPEG first, for example with darktable or RawTherapee (its small preview is not used)"
    if kind.group == "video":
        return "pass it to `gleansr upscale` in a separate command"
    if kind in (IMAGES["HEIC"], IMAGES["JPEG XL"]):
        return "`pip install 'gleansr[heif]'` adds support"
    if kind is IMAGES["AVIF"]:
        return "the installed Pillow cannot read it; `pip install --upgrade pillow`"
    if kind.group == "archive":
        return "unpack it and pass the folder"
    return {"image": "save it as a PNG or TIFF", "document": "save its pages as PNG files"}.get(kind.group, "pass an image")


def check(file: BinaryIO, name: str, max_pixels: int, kinds: Collection[str] | None = None) -> None:
    """Rejects files that Pillow would read, but must not: the small preview in a camera raw file, and a JPEG XL of more than `max_pixels`
    pixels, whose reader decodes it before it tells its size.

    Raises ImageError that begins with `name`.
    """
    kind = identify(file)
    if kind is None:
        return
    if kind.group == "raw":
        raise ImageError(f"{name}: {explain_unreadable(name, file, kinds)}")
    if kind is IMAGES["JPEG XL"]:
        file.seek(0)
        size = jxl_size(file.read(2**20))
        file.seek(0)
        if size and size[0] * size[1] > max_pixels:
            raise TooLargeError(f"{name}: is too large: {size[0]}x{size[1]} pixels are more than {max_pixels}")


@functools.cache
def _add_readers() -> None:
    """Registers Pillow's readers, and those of HEIC and JPEG XL if they are installed. A broken reader is ignored."""
    Image.init()
    with contextlib.suppress(Exception):
        importlib.import_module("pillow_heif").register_heif_opener(thumbnails=False)
    with contextlib.suppress(Exception):
        importlib.import_module("pillow_jxl")


def available() -> list[str]:
    """Pillow's names of the supported formats."""
    with _LOCK:  # the first call loads plugins, which Pillow lists one by one
        _add_readers()
    return [kind for kind in Image.ID if kind not in NOT_READ]


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """The suffixes, such as ".png", of supported files, for searching folders; `decode` itself goes by contents."""
    kinds = {*available(), "MPO"}  # a JPEG followed by others
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds)


def _size(source: bytes | BinaryIO) -> int | None:
    if isinstance(source, bytes):
        return len(source)
    return source.seek(0, io.SEEK_END) if source.seekable() else None


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIO' or name[:3] in ('MP3', 'SVG', 'RAR', 'xz ') else 'a'} {name}"
