"""Facts of PNG files that Pillow does not give: damage, cICP, and a copy without metadata."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEFLATE = 1032
"""Largest compression ratio of deflate."""
_GREY, _RGB = 0, 2
_SAMPLES = {2: 3, 4: 2, 6: 4}
"""Samples per pixel by colour type; 1 for others."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Passes of an interlaced image: first column and row, and their steps."""
_CHUNK_SIZE = 2**20
_PIXEL_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"pHYs"}
"""Chunks that `without_metadata` keeps: those of the pixels, and small ones of fixed size."""


def is_png(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(8) == SIGNATURE


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Name, offset and length of the contents of each chunk, up to the end of the file or an invalid chunk; none for other files."""
    if not is_png(file):
        return
    offset = 8
    while len(head := file.read(8)) == 8 and head[4:].isalpha():
        length = int.from_bytes(head[:4], "big")
        yield head[4:], offset + 8, length
        offset += 12 + length
        file.seek(offset)


def read_cicp(file: BinaryIO) -> tuple[int, int, int, int] | None:
    """Primaries, transfer, matrix and range (ITU-T H.273) of the chunk cICP, which Pillow does not read. Keeps the file's position."""
    before = file.tell()
    try:
        for name, offset, length in chunks(file):
            if name == b"cICP" and length == 4:
                file.seek(offset)
                content, check = file.read(4), file.read(4)
                return struct.unpack("4B", content) if check == _checksum(name, content) else None
            if name == b"IDAT":
                return None
        return None
    finally:
        file.seek(before)


def scale_transparency(info: dict[Any, Any], file: BinaryIO) -> None:
    """Scales the transparent value in an image's `info` to 8 bits: Pillow converts grey of 2 and 4 bits and colour of 16, but not this
    value. Keeps the file's position."""
    before, value = file.tell(), info.get("transparency")
    _, _, bits, colour, _ = _header(file) or (0, 0, 0, 0, 0)
    file.seek(before)
    if colour == _GREY and bits in (2, 4) and isinstance(value, int):
        info["transparency"] = value * 255 // (2**bits - 1)
    if colour == _RGB and bits == 16 and isinstance(value, tuple):
        info["transparency"] = tuple(sample >> 8 for sample in value)


def has_missing_rows(file: BinaryIO) -> bool:
    """Whether the compressed data of a PNG ends before the last row; Pillow leaves missing rows black."""
    if not (header := _header(file)):
        return False
    width, height, bits, colour, interlaced = header
    passes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in (_PASSES if interlaced else [(0, 0, 1, 1)])]
    missing = sum(rows * (1 + -(-columns * bits * _SAMPLES.get(colour, 1) // 8)) for columns, rows in passes if columns > 0 and rows > 0)
    inflate = zlib.decompressobj()
    for name, offset, length in chunks(file):
        if name == b"IDAT":
            file.seek(offset)
            data = file.read(length)
            while data and missing > 0 and not inflate.eof:
                missing -= len(inflate.decompress(data, _CHUNK_SIZE))
                data = inflate.unconsumed_tail
            file.seek(offset + length + 4)
    return missing > 0


def _header(file: BinaryIO) -> tuple[int, int, int, int, int] | None:
    """Width, height, bits, colour type, and whether it is interlaced."""
    for name, offset, length in chunks(file):
        file.seek(offset)
        if name == b"IHDR" and length == 13 and len(header := file.read(13)) == 13:
            width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", header)
            return width, height, bits, colour, interlaced
        break
    return None


def find_damage(file: BinaryIO) -> str:
    """A description of the first damaged chunk; empty if there is none."""
    size, last = file.seek(0, io.SEEK_END), b""
    for name, offset, length in chunks(file):
        last = name
        if offset + length + 4 > size:
            return f"the file ends within its chunk {name.decode()}"
        file.seek(offset)
        content = file.read(length)
        if file.read(4) != _checksum(name, content):
            return f"the checksum of its chunk {name.decode()} is wrong"
    return "" if last == b"IEND" else "its end is missing"


def is_truncated(file: BinaryIO) -> bool:
    """Whether the only damage of a PNG is a missing end."""
    return find_damage(file).startswith(("the file ends", "its end"))


def is_too_short(file: BinaryIO) -> bool:
    """Whether a PNG has fewer bytes than its pixels need at the best compression. Checked before their memory is allocated."""
    if not (header := _header(file)):
        return False
    width, height, bits, colour, _ = header
    return height * (1 + width * bits * _SAMPLES.get(colour, 1) // 8) > _DEFLATE * file.seek(0, io.SEEK_END)


def without_metadata(file: BinaryIO) -> bytes | None:
    """A copy with the (first) image alone; None if there is no metadata, or the file is damaged or not a PNG."""
    if find_damage(file):
        return None
    kept, left_out = [SIGNATURE], False
    for name, offset, length in list(chunks(file)):
        if name not in _PIXEL_CHUNKS:
            left_out = True
            continue
        file.seek(offset - 8)
        kept.append(file.read(length + 12))
    return b"".join(kept) if left_out and len(kept) > 1 else None


def _checksum(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(name + content))
