"""The size of a JPEG XL, which its reader tells only after decoding."""

import struct


def jxl_size(data: bytes) -> tuple[int, int] | None:
    """Width and height from the header of a JPEG XL (ISO/IEC 18181-1, SizeHeader); None for other files."""
    stream = _jxl_codestream(data)
    if stream is None or len(stream) < 12:
        return None
    value, position = int.from_bytes(stream[2:12], "little"), 0

    def bits(count: int) -> int:
        nonlocal position
        position += count
        return value >> (position - count) & ((1 << count) - 1)

    def side() -> int:
        return 8 * (bits(5) + 1) if small else bits((9, 13, 18, 30)[bits(2)]) + 1

    small = bits(1)
    height = side()
    ratio = bits(3)
    if not ratio:
        return side(), height
    above, below = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * above // below, height


def _jxl_codestream(data: bytes) -> bytes | None:
    if data.startswith(b"\xff\x0a"):
        return data[:12]
    if not data.startswith(b"\x00\x00\x00\x0cJXL "):
        return None
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1 and at + 16 <= len(data):
            size, start = struct.unpack_from(">Q", data, start)[0], at + 16
        if kind in (b"jxlc", b"jxlp"):
            start += 4 * (kind == b"jxlp")
            return data[start : start + 12]
        if size < start - at:  # to the end of the file, or damaged
            return None
        at += size
    return None
