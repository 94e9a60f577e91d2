"""Image files to Pillow images: clear errors, metadata that Pillow fails on, truncated files."""

import contextlib
import io
import struct
import threading
import warnings
import zlib
from collections.abc import Collection, Iterator
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image, ImageFile

from gleansr.errors import ImageError, TooLargeError, one_line
from gleansr.images import png, readers

_BY_ROWS = {"PNG", "JPEG", "MPO", "BMP", "PPM", "TGA"}
"""Formats that Pillow decodes row by row, so that a truncated file has its first rows."""

ALLOW_TRUNCATED = "; --allow-truncated reads it as far as it goes"
"""Advice for truncated files."""

_PILLOW = r"PIL\.(?#gleansr)"  # marked, to recognize the filter of `_quiet`
DAMAGE = (OSError, EOFError, SyntaxError, ValueError, ArithmeticError, LookupError, RuntimeError, struct.error, zlib.error)
"""Exceptions that damaged files cause around Pillow. Inside calls of Pillow any exception counts as damage; outside, others are bugs."""

_READERS = 0
_FILTERED: list[Any] = []  # lists of warning filters that contain the one of `_quiet`
_LOCK = threading.Lock()  # over these three


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Suppresses Pillow's warnings and turns its errors into an ImageError of one line."""
    try:
        with _quiet():
            yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to read it") from error
    except DAMAGE as error:
        raise ImageError(f"{name}: cannot be read: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses warnings of Pillow's modules while any thread is inside.

    Filters belong to the process: with `warnings.catch_warnings`, threads would restore each other's, and a lock would be slow. So readers
    add one filter, and the last reader removes it from the lists that it was added to.
    """
    global _READERS
    with _LOCK:
        _READERS += 1
        if not (warnings.filters and _is_quiet_filter(warnings.filters[0])):
            # Moving a filter to the front removes it for a moment: not if it already works for other threads.
            warnings.filterwarnings("ignore", module=_PILLOW)
        if not any(warnings.filters is filters for filters in _FILTERED):
            _FILTERED.append(warnings.filters)
    try:
        yield
    finally:
        with _LOCK:
            _READERS -= 1
            while not _READERS and _FILTERED:
                filters = _FILTERED.pop()
                filters[:] = [item for item in filters if not _is_quiet_filter(item)]


def _is_quiet_filter(item: tuple[Any, ...]) -> bool:
    """Whether a filter of the module `warnings` is the one of `_quiet`."""
    return bool(item[3]) and getattr(item[3], "pattern", "") == _PILLOW


def open_image(file: BinaryIO, name: str, kinds: Collection[str] | None, notes: list[str]) -> tuple[Image.Image, BinaryIO]:
    """The image of a file, not yet loaded, and the file that it is read from. Raises ImageError.

    Args:
        file: at any position.
        name: the name for messages.
        kinds: Pillow's names of the allowed formats; None for all.
        notes: extended.
    """
    try:
        image, contents = _open(file, kinds), file
    except Exception as error:
        image, contents = _without_metadata(error, file, name, kinds, notes)
    multiple = False
    with contextlib.suppress(Exception):  # Pillow reads on in a GIF
        multiple = image.format != "MPO" and getattr(image, "is_animated", False)  # an MPO is a JPEG and a preview
    if multiple:
        notes.append(f"{name}: {'has several pages, the first' if image.format == 'TIFF' else 'is animated, its first frame'} was used")
    return _open(contents, kinds) if image.format == "GIF" else image, contents


def load_pixels(
    image: Image.Image | None,
    contents: BinaryIO,
    file: BinaryIO,
    name: str,
    kinds: Collection[str] | None,
    notes: list[str],
    *,
    allow_truncated: bool,
) -> Image.Image:
    """The image of `open_image` with its pixels; of a truncated file as far as they go, if allowed."""
    assert image is not None  # noqa: S101, for type checkers
    try:
        _load(image, contents)
        return image
    except Exception as error:
        if allow_truncated and "truncated" in str(error) and (partial := _load_truncated(file, kinds)):
            notes.append(f"{name}: {partial[1]}")
            return partial[0]
        if contents is not file:
            raise _explained(error, file, name, kinds) from error
        image, contents = _without_metadata(error, file, name, kinds, notes)
    _load(image, contents)
    return image


def _load(image: Image.Image, contents: BinaryIO) -> None:
    """Reads the pixels. Raises for missing ones that Pillow does not report."""
    if image.format == "PNG" and png.is_too_short(contents):  # of PNG alone: other readers go on where opening left the file, or close it
        raise OSError("image file is truncated")
    image.load()
    if image.format == "PNG":
        png.scale_transparency(image.info, contents)
        last = image.crop((0, image.height - 1, *image.size))
        if (image.info.get("interlace") or not np.asarray(last).any()) and png.has_missing_rows(contents):
            raise OSError("its last rows are missing")
    elif image.format in ("JPEG", "MPO") and _lacks_end(contents):
        raise OSError("image file is truncated")


def _lacks_end(file: BinaryIO) -> bool:
    """Whether a JPEG ends with zeros in place of an end marker, as an interrupted copy does; a decoder takes them for pixels."""
    file.seek(-1, io.SEEK_END)
    if file.read(1) != b"\0":
        return False
    file.seek(0)
    content = file.read()
    offset = 2
    while content[offset : offset + 1] == b"\xff" and content[offset : offset + 2] != b"\xff\xda":  # skips thumbnails
        offset += 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
    return content.find(b"\xff\xd9", offset) < 0


def _open(file: BinaryIO, kinds: Collection[str] | None) -> Image.Image:
    file.seek(0)
    return Image.open(file, formats=[kind for kind in readers.available() if kinds is None or kind in kinds])


def _without_metadata(
    error: Exception, file: BinaryIO, name: str, kinds: Collection[str] | None, notes: list[str]
) -> tuple[Image.Image, BinaryIO]:
    """Opens an undamaged PNG without its metadata, which Pillow may refuse, such as a text that exceeds its limit.

    Raises ImageError, which explains `error`, for all other files.
    """
    if (plain := png.without_metadata(file)) is None:
        raise _explained(error, file, name, kinds) from error
    contents = io.BytesIO(plain)
    try:
        image = _open(contents, kinds)
    except Exception:
        raise _explained(error, file, name, kinds) from error
    notes.append(f"{name}: its metadata was ignored: {one_line(error)}")
    return image, contents


def _explained(error: Exception, file: BinaryIO, name: str, kinds: Collection[str] | None) -> ImageError:
    if isinstance(error, Image.DecompressionBombError):
        return too_large(name, str(error))
    damage = png.find_damage(file) if png.is_png(file) else ""
    if isinstance(error, Image.UnidentifiedImageError | RuntimeError) and not damage:  # RuntimeError: from the reader of JPEG XL
        return ImageError(f"{name}: {readers.explain_unreadable(name, file, kinds)}")
    reason = [] if damage and isinstance(error, Image.UnidentifiedImageError) else [one_line(error)]
    hint = ALLOW_TRUNCATED if "truncated" in str(error) else ""
    return ImageError(f"{name}: cannot be read: {'; '.join(filter(None, [*reason, damage]))}{hint}")


def too_large(name: str, problem: str) -> TooLargeError:
    hint = "raise PIL.Image.MAX_IMAGE_PIXELS and gleansr.images.codec.MAX_PIXELS, or give --max-megapixels (max_pixels of decode)"
    return TooLargeError(f"{name}: is too large: {problem}; if you trust it, {hint}")


def _load_truncated(file: BinaryIO, kinds: Collection[str] | None) -> tuple[Image.Image, str] | None:
    """The image of a truncated file and a description of what is missing; None if it has no rows or other damage, too.

    It is read twice, with different values for missing pixels: rows that differ are missing. They become black.
    """
    if png.is_png(file) and not png.is_truncated(file):
        return None
    kind = _open(file, kinds).format
    if kind in ("JPEG", "MPO"):
        first, second = _ended_jpeg(file, b""), _ended_jpeg(file, b"\x5a" * 64)
    elif kind in _BY_ROWS:
        first, second = _filled(_open(file, kinds), 0), _filled(_open(file, kinds), 255)
    else:
        return None
    if first is None or second is None:
        return None
    missing = np.array((np.asarray(first) != np.asarray(second)).reshape(first.height, -1).any(1))
    if kind in ("JPEG", "MPO"):
        missing[missing.argmax() :] = missing.any()  # decoded from the top down
    count, height = int(missing.sum()), len(missing)
    if count == height:
        return None
    for row in missing.nonzero()[0].tolist():
        first.paste(0, (0, row, first.width, row + 1))
    rows = f"{count} of {height} rows are missing" if count > 1 else f"of {height} rows is missing"
    if not count:
        return first, "its end is missing, after the last row"
    if missing[height - count :].all():
        return first, f"the last {rows}"
    if missing[:count].all():
        return first, f"the first {rows}"
    return first, f"{count} of {height} rows are incomplete and left black"


def _filled(image: Image.Image, value: int) -> Image.Image:
    """The image of a truncated file; missing pixels have this value in the first channel."""
    image.im = Image.new(image.mode, image.size, value).im  # Pillow allocates one only if there is none
    with contextlib.suppress(OSError, SyntaxError):
        image.load()
    cast("ImageFile.ImageFile", image).tile = []  # or reading its pixels would load them again
    return image


def _ended_jpeg(file: BinaryIO, padding: bytes) -> Image.Image | None:
    """A JPEG with `padding` and an end marker appended; None unless all of its colours are in one scan: then every row is incomplete."""
    file.seek(0)
    content = file.read().rstrip(b"\0")  # which an interrupted copy may have in place of the rest
    scan = content.rfind(b"\xff\xda")
    image = Image.open(io.BytesIO(content + padding + b"\xff\xd9"), formats=["JPEG"])
    if image.info.get("progressive") or scan < 0 or content[scan + 4 : scan + 5] != bytes([len(image.getbands())]):
        return None
    image.load()
    return image
