"""Image files to Pillow's images: what is refused and why, metadata that Pillow stumbles over, files that end too early."""

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
from gleansr.images import formats, png

_BY_ROWS = {"PNG", "JPEG", "MPO", "BMP", "PPM", "TGA"}
"""Kinds of files that Pillow decodes row by row, so that the first rows of a file that ends too early are there."""

ALLOW_TRUNCATED = "; --allow-truncated reads it as far as it goes"
"""How to mend a truncated file on the command line."""

_PILLOW = r"PIL\.(?#gleansr)"  # with a mark, so that it is no one else's filter
DAMAGE = (OSError, EOFError, SyntaxError, ValueError, ArithmeticError, LookupError, RuntimeError, struct.error, zlib.error)
"""What damaged files raise around Pillow. Within a call of Pillow's any exception is taken for damage, beyond it the others are mistakes
in a program, and not in an image."""

_READERS = 0
_FILTERED: list[Any] = []  # the lists of warnings' filters that have ours
_LOCK = threading.Lock()  # over these three


@contextlib.contextmanager
def reading(name: str) -> Iterator[None]:
    """Keep Pillow's warnings in, and make its errors one line."""
    try:
        with _quiet():
            yield
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: there is not enough memory to read it") from error
    except DAMAGE as error:
        raise ImageError(f"{name}: cannot be read: {one_line(error)}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No warnings of Pillow's modules while any thread is in here.

    Filters belong to the process: threads that restore them as `warnings.catch_warnings` does would restore each other's, and one at a time
    would be slow. So one filter is put in by whoever reads, and taken out of the very lists that it was put into by the last.
    """
    global _READERS
    with _LOCK:
        _READERS += 1
        if not (warnings.filters and _ours(warnings.filters[0])):
            # Moves it to the front if it is there, and meanwhile it is not: never where it already does its work for other threads.
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
                filters[:] = [item for item in filters if not _ours(item)]


def _ours(item: tuple[Any, ...]) -> bool:
    """Whether a filter of the module `warnings` is that of `_quiet`."""
    return bool(item[3]) and getattr(item[3], "pattern", "") == _PILLOW


def opened(file: BinaryIO, name: str, kinds: Collection[str] | None, notes: list[str]) -> tuple[Image.Image, BinaryIO]:
    """The image of a file, not yet loaded, and what it is read from. Raises ImageError; `notes` is added to.

    Args:
        file: at any place.
        name: what messages call it.
        kinds: Pillow's names of the kinds of files that are read; None: all.
        notes: is added to.
    """
    try:
        image, contents = _open(file, kinds), file
    except Exception as error:
        image, contents = _without_metadata(error, file, name, kinds, notes)
    several = False
    with contextlib.suppress(Exception):  # Pillow then reads on in a GIF
        several = image.format != "MPO" and getattr(image, "is_animated", False)  # MPO: cameras make it of a JPEG and a preview
    if several:
        notes.append(f"{name}: {'has several pages, the first' if image.format == 'TIFF' else 'is animated, its first frame'} was taken")
    return _open(contents, kinds) if image.format == "GIF" else image, contents


def loaded(
    image: Image.Image | None,
    contents: BinaryIO,
    file: BinaryIO,
    name: str,
    kinds: Collection[str] | None,
    notes: list[str],
    *,
    allow_truncated: bool,
) -> Image.Image:
    """What `opened` gave, with its pixels; or as far as they go, if that is allowed."""
    assert image is not None  # noqa: S101, for type checkers
    try:
        _load(image, contents)
        return image
    except Exception as error:
        if allow_truncated and "truncated" in str(error) and (cut := _cut_off(file, kinds)):
            notes.append(f"{name}: {cut[1]}")
            return cut[0]
        if contents is not file:
            raise _explained(error, file, name, kinds) from error
        image, contents = _without_metadata(error, file, name, kinds, notes)
    _load(image, contents)
    return image


def _load(image: Image.Image, contents: BinaryIO) -> None:
    """Reads the pixels. Raises where some are missing of which Pillow says nothing."""
    if png.is_too_short(contents):
        raise OSError("image file is truncated")
    image.load()
    if image.format == "PNG":
        png.scale_transparency(image.info, contents)
        last = image.crop((0, image.height - 1, *image.size))
        if (image.info.get("interlace") or not np.asarray(last).any()) and png.lacks_rows(contents):
            raise OSError("its last rows are missing")
    elif image.format in ("JPEG", "MPO") and _lacks_end(contents):
        raise OSError("image file is truncated")


def _lacks_end(file: BinaryIO) -> bool:
    """Whether a JPEG has no end behind its pixels, but others' zeros, which a decoder takes for pixels: as a copy that was interrupted
    leaves it."""
    file.seek(-1, io.SEEK_END)
    if file.read(1) != b"\0":
        return False
    file.seek(0)
    content = file.read()
    place = 2
    while content[place : place + 1] == b"\xff" and content[place : place + 2] != b"\xff\xda":  # a thumbnail in a segment has an end, too
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return content.find(b"\xff\xd9", place) < 0


def _open(file: BinaryIO, kinds: Collection[str] | None) -> Image.Image:
    read = formats.readers()
    file.seek(0)
    return Image.open(file, formats=[kind for kind in read if kinds is None or kind in kinds])


def _without_metadata(
    error: Exception, file: BinaryIO, name: str, kinds: Collection[str] | None, notes: list[str]
) -> tuple[Image.Image, BinaryIO]:
    """The image of an undamaged PNG again, whose metadata Pillow does not take: its text may be longer than Pillow allows.

    Raises ImageError, which says what `error` means, for all other files.
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
    damage = png.damage(file) if png.is_png(file) else ""
    if isinstance(error, Image.UnidentifiedImageError | RuntimeError) and not damage:  # RuntimeError: of the reader of JPEG XL
        return ImageError(f"{name}: {formats.unreadable(name, file, kinds)}")
    said = [] if damage and isinstance(error, Image.UnidentifiedImageError) else [one_line(error)]
    mend = ALLOW_TRUNCATED if "truncated" in str(error) else ""
    return ImageError(f"{name}: cannot be read: {'; '.join(filter(None, [*said, damage]))}{mend}")


def too_large(name: str, what: str) -> TooLargeError:
    mend = "raise PIL.Image.MAX_IMAGE_PIXELS and gleansr.images.codec.MAX_PIXELS, or give --max-megapixels (max_pixels of decode)"
    return TooLargeError(f"{name}: is too large: {what}; if you trust it, {mend}")


def _cut_off(file: BinaryIO, kinds: Collection[str] | None) -> tuple[Image.Image, str] | None:
    """The image of a file that ends too early, and what is missing of it. None where nothing of it is there, or other damage is, too.

    It is read twice, with different values for what is not there: rows that differ are missing. They become black.
    """
    if png.is_png(file) and not png.ends_early(file):
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
        missing[missing.argmax() :] = missing.any()  # it goes from the top down
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
    """An image whose file ends too early, with a value of the first channel where it has none."""
    image.im = Image.new(image.mode, image.size, value).im  # Pillow makes one only where there is none
    with contextlib.suppress(OSError, SyntaxError):
        image.load()
    cast("ImageFile.ImageFile", image).tile = []  # or asking for its pixels would load them again
    return image


def _ended_jpeg(file: BinaryIO, more: bytes) -> Image.Image | None:
    """A JPEG with an end put on, after `more` data, if all of its colours come together. Otherwise all rows lack something."""
    file.seek(0)
    content = file.read().rstrip(b"\0")  # what an interrupted copy may have in place of the rest
    scan = content.rfind(b"\xff\xda")
    image = Image.open(io.BytesIO(content + more + b"\xff\xd9"), formats=["JPEG"])
    if image.info.get("progressive") or scan < 0 or content[scan + 4 : scan + 5] != bytes([len(image.getbands())]):
        return None
    image.load()
    return image
