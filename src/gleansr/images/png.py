"""What Pillow does not tell of PNG files: what damaged them, their coded colour, and their pixels without the metadata."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEFLATE = 1032
"""The most that a byte of deflate stands for."""
_GREY, _RGB = 0, 2
_SAMPLES = {2: 3, 4: 2, 6: 4}
"""Of a pixel, by the kind of colour; of others it is 1."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced image: where each begins, and its steps."""
_AT_ONCE = 2**20
_OF_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"pHYs"}
"""Chunks that are kept where metadata stops Pillow: those of the pixels, and small ones of fixed size."""


def is_png(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(8) == SIGNATURE


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, place and length of the contents of each chunk, up to the end of the file or what is no chunk; none if it is no PNG."""
    if not is_png(file):
        return
    place = 8
    while len(head := file.read(8)) == 8 and head[4:].isalpha():
        length = int.from_bytes(head[:4], "big")
        yield head[4:], place + 8, length
        place += 12 + length
        file.seek(place)


def coded_colour(file: BinaryIO) -> tuple[int, int, int, int] | None:
    """Primaries, transfer, matrix and range (of ITU-T H.273) of the chunk cICP, which Pillow does not read. Leaves `file` as it was."""
    before = file.tell()
    try:
        for name, place, length in chunks(file):
            if name == b"cICP" and length == 4:
                file.seek(place)
                content, check = file.read(4), file.read(4)
                return struct.unpack("4B", content) if check == _checksum(name, content) else None
            if name == b"IDAT":
                return None
        return None
    finally:
        file.seek(before)


def scale_transparency(info: dict[Any, Any], file: BinaryIO) -> None:
    """The transparent value in an image's `info` as its pixels are. Pillow widens grey of 2 and 4 bits to 8 and narrows colour of 16, but
    leaves the value as it is in the file. Leaves `file` as it was."""
    before, value = file.tell(), info.get("transparency")
    _, _, bits, colour, _ = _header(file) or (0, 0, 0, 0, 0)
    file.seek(before)
    if colour == _GREY and bits in (2, 4) and isinstance(value, int):
        info["transparency"] = value * 255 // (2**bits - 1)
    if colour == _RGB and bits == 16 and isinstance(value, tuple):
        info["transparency"] = tuple(one >> 8 for one in value)


def lacks_rows(file: BinaryIO) -> bool:
    """Whether the compressed data of a PNG ends before its last row; Pillow leaves such rows black."""
    if not (header := _header(file)):
        return False
    width, height, bits, colour, interlaced = header
    passes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in (_PASSES if interlaced else [(0, 0, 1, 1)])]
    lacking = sum(rows * (1 + -(-columns * bits * _SAMPLES.get(colour, 1) // 8)) for columns, rows in passes if columns > 0 and rows > 0)
    inflate = zlib.decompressobj()
    for name, place, length in chunks(file):
        if name == b"IDAT":
            file.seek(place)
            data = file.read(length)
            while data and lacking > 0 and not inflate.eof:
                lacking -= len(inflate.decompress(data, _AT_ONCE))
                data = inflate.unconsumed_tail
            file.seek(place + length + 4)
    return lacking > 0


def _header(file: BinaryIO) -> tuple[int, int, int, int, int] | None:
    """Width, height, bits, kind of colour, and whether it is interlaced."""
    for name, place, length in chunks(file):
        file.seek(place)
        if name == b"IHDR" and length == 13 and len(header := file.read(13)) == 13:
            width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
            return width, height, bits, colour, interlaced
        break
    return None


def damage(file: BinaryIO) -> str:
    """Which chunk is damaged first, empty if none is."""
    size, last = file.seek(0, io.SEEK_END), b""
    for name, place, length in chunks(file):
        last = name
        if place + length + 4 > size:
            return f"the file ends within its chunk {name.decode()}"
        file.seek(place)
        content = file.read(length)
        if file.read(4) != _checksum(name, content):
            return f"the checksum of its chunk {name.decode()} is wrong"
    return "" if last == b"IEND" else "its end is missing"


def ends_early(file: BinaryIO) -> bool:
    """Whether nothing else is wrong with a PNG than that its end is missing."""
    return damage(file).startswith(("the file ends", "its end"))


def is_too_short(file: BinaryIO) -> bool:
    """Whether a PNG has fewer bytes than its pixels need however well they are compressed. It saves the memory for them."""
    if not (header := _header(file)):
        return False
    width, height, bits, colour, _ = header
    return height * (1 + width * bits * _SAMPLES.get(colour, 1) // 8) > _DEFLATE * file.seek(0, io.SEEK_END)


def without_metadata(file: BinaryIO) -> bytes | None:
    """A copy with nothing but the (first) image. None if there is nothing to leave out, or the file is damaged or no PNG."""
    if damage(file):
        return None
    kept, left_out = [SIGNATURE], False
    for name, place, length in list(chunks(file)):
        if name not in _OF_PIXELS:
            left_out = True
            continue
        file.seek(place - 8)
        kept.append(file.read(length + 12))
    return b"".join(kept) if left_out and len(kept) > 1 else None


def _checksum(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(name + content))
