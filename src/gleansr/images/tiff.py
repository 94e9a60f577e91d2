"""TIFF layouts that Pillow reads wrongly or not at all: more than 8 bits, signed and float samples, separate planes.

Pillow reads the others: see `layout`.
"""

import zlib
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

_GREY, _RGB, _PALETTE, _CMYK, _YCBCR, _LAB = (0, 1), 2, 3, 5, 6, 8
_NAMES = {0: "grey (white is 0)", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab"}
_NAMES |= {32803: "a camera's colour filter", 32844: "LogL", 32845: "LogLuv", 34892: "a camera's linear raw"}
_COMPRESSIONS = {1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits", 32946: "deflate", 34925: "LZMA", 50000: "Zstandard"}
_KINDS = {1: "u", 2: "i", 3: "f", 4: "u"}
_WHITE_LEVELS: dict[str, tuple[int, ...]] = {"f": (1, 255, 65535), "u32": (65535, 2**32 - 1), "i32": (65535, 2**31 - 1)}
"""Possible values of white: the first that no value exceeds. For other types it is the largest value of the type."""
_MIN_VALUE = -0.05
"""As a share of white: a lower value is not the overshoot of an interpolation."""


@dataclass(frozen=True)
class TIFFLayout:
    """How the samples of a TIFF's first image are stored."""

    width: int
    height: int
    kind: str
    """u, i or f: unsigned, signed, float."""
    bits: int
    samples: int
    """Per pixel."""
    inverted: bool
    """Whether 0 is white."""
    colours: int
    """1 or 3."""
    alpha: int | None
    """The index of the alpha sample."""
    premultiplied: bool
    planar: bool
    """Whether each sample has its own plane."""
    tiled: bool
    block_size: tuple[int, int]
    """Width and height of a tile or a strip; the last strip may be lower."""
    blocks: tuple[tuple[int, int], ...]
    """Offset and length of each tile or strip."""
    deflated: bool
    predictor: int
    order: str
    """< or >."""
    big: bool
    """Whether it is a BigTIFF."""
    white: int | None
    """The value of white, if the file states it."""
    pages: bool
    """Whether there are more pages."""
    tags: Any
    """The tags of the first directory by number."""

    @property
    def info(self) -> dict[str, Any]:
        """The entries of a Pillow image's `info` that are used."""
        info = {"icc_profile": self.tags.get(34675), "xmp": self.tags.get(700)}
        if self.tags.get(296, 2) in (2, 3) and 282 in self.tags and 283 in self.tags:
            per_inch = 2.54 if self.tags.get(296) == 3 else 1
            info["dpi"] = (self.tags[282] * per_inch, self.tags[283] * per_inch)
        return info

    def exif(self, file: BinaryIO) -> Image.Exif:
        exif = Image.Exif()
        exif.bigtiff, exif.endian = self.big, self.order
        exif.load_from_fp(file, self.tags.offset)
        return exif

    def read(self, file: BinaryIO) -> np.ndarray:
        """(1 or 3 and the alpha, height, width) float32 in [0, 1], where white is 1.

        Raises ValueError if the file is truncated, damaged, or has values far below 0.
        """
        channels = [*range(self.colours), *([] if self.alpha is None else [self.alpha])]
        result = np.zeros((len(channels), self.height, self.width), np.float32)
        across, down = -(-self.width // self.block_size[0]), -(-self.height // self.block_size[1])
        planes = self.samples if self.planar else 1
        if len(self.blocks) < across * down * planes:
            raise ValueError(f"it is truncated: {len(self.blocks)} of {across * down * planes} strips or tiles are present")
        for number in range(across * down * planes):
            plane, block = divmod(number, across * down)
            if self.planar and plane not in channels:
                continue
            y, x = block // across * self.block_size[1], block % across * self.block_size[0]
            rows = self.block_size[1] if self.tiled else min(self.block_size[1], self.height - y)
            values = self._values(file, *self.blocks[number], rows)
            visible = values[: self.height - y, : self.width - x]
            for channel, sample in enumerate(channels):
                if not self.planar:
                    result[channel, y : y + rows, x : x + self.block_size[0]] = visible[..., sample]
                elif sample == plane:
                    result[channel, y : y + rows, x : x + self.block_size[0]] = visible[..., 0]
        return self._scaled(result)

    def _values(self, file: BinaryIO, offset: int, length: int, rows: int) -> np.ndarray:
        """(rows, columns, samples) of a strip or tile."""
        columns, samples = self.block_size[0], 1 if self.planar else self.samples
        per_row = -(-columns * samples * self.bits // 8)
        file.seek(offset)
        content = file.read(length)
        if self.deflated:
            content = zlib.decompressobj().decompress(content, per_row * rows)
        if len(content) < per_row * rows:
            raise ValueError(f"it is truncated: a strip or tile has {len(content)} instead of {per_row * rows} bytes")
        lines = np.frombuffer(content, np.uint8, per_row * rows).reshape(rows, per_row)
        if self.bits % 8:
            bits = np.unpackbits(lines, axis=1)[:, : columns * samples * self.bits].reshape(rows, columns, samples, self.bits)
            return bits @ (1 << np.arange(self.bits)[::-1])
        size = self.bits // 8
        if self.predictor == 3:  # bytes of equal significance are stored together, the highest first, as differences
            sums = np.cumsum(lines.reshape(rows, -1, samples), 1, np.uint8).reshape(rows, size, -1)
            return np.ascontiguousarray(sums.swapaxes(1, 2)).view(f">{self.kind}{size}").reshape(rows, columns, samples)
        values = lines.view(f"{self.order}{self.kind}{size}").reshape(rows, columns, samples)
        if self.predictor == 2:
            return np.cumsum(values, 1, values.dtype.newbyteorder("="))
        return values

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        largest, smallest = float(values.max()), float(values.min())
        white = self.white or white_level(self.kind, self.bits, largest)
        if smallest < _MIN_VALUE * white:
            raise ValueError(f"it has values below 0, down to {smallest:g}; shift them to start at 0")
        values = np.clip(values / np.float32(white), 0, None, out=values)
        if self.inverted:
            np.subtract(1, values[: self.colours], out=values[: self.colours])
        return values


def white_level(kind: str, bits: int, largest: float) -> int:
    """The value of white for samples of a kind (u, i or f), given their largest value."""
    levels = _WHITE_LEVELS.get(kind if kind == "f" else f"{kind}{bits}") or (2 ** (bits - (kind == "i")) - 1,)
    return next((level for level in levels if largest <= level), levels[-1])


def layout(file: BinaryIO) -> TIFFLayout | None:
    """The layout of a TIFF to read with `TIFFLayout.read`; None for other files and TIFFs that Pillow reads correctly or refuses.

    Raises ValueError, which names the layout and a remedy, for a TIFF that neither reads correctly.
    """
    file.seek(0)
    header = file.read(16)
    file.seek(0)
    if header[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    if header[:4] == b"MM\0+":
        raise _UnreadError("big-endian BigTIFF is not read; save the image as a usual TIFF, or as PNG")
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(header[: 16 if header[2:3] == b"+" else 8])
        file.seek(tags.next)
        tags.load(file)
        return _layout(tags, "<" if header[:2] == b"II" else ">", header[2:3] == b"+")
    except _UnreadError:
        raise
    except Exception:  # damaged tags, which Pillow reports
        return None
    finally:
        file.seek(0)


class _UnreadError(ValueError):
    """An unsupported layout."""


def _layout(tags: Any, order: str, big: bool) -> TIFFLayout | None:
    def many(tag: int, default: tuple[int, ...]) -> tuple[int, ...]:
        value = tags.get(tag, default)
        values = value if isinstance(value, tuple) else (value,)
        if not all(isinstance(number, int) for number in values):
            raise ValueError(f"tag {tag} has no integers")
        return values

    width, height, compression, photometric = (int(tags.get(tag, default)) for tag, default in ((256, 0), (257, 0), (259, 1), (262, 0)))
    samples, planar, fill = (int(tags.get(tag, 1)) for tag in (277, 284, 266))
    all_bits, formats, extra = many(258, (1,)), many(339, (1,)), many(338, ())
    bits, planar = all_bits[0], planar == 2 and samples > 1
    kind = _KINDS.get(formats[0], "?")
    colours = {_RGB: 3}.get(photometric, 1)
    usual = kind == "u" and bits <= 8
    sort = {"u": "", "i": "signed ", "f": "float "}.get(kind, "complex ")
    description = f"{sort}{bits}-bit {_NAMES.get(photometric, f'colour {photometric}')}" + (f" in {samples} planes" if planar else "")
    description += "" if compression == 1 else f", compressed ({_COMPRESSIONS.get(compression, f'scheme {compression}')})"
    hint = "save the image as 8- or 16-bit RGB or grey, without compression, or as PNG"
    unread = _UnreadError(f"a TIFF of this layout is not read: {description}; {hint}")
    if photometric == _YCBCR and compression == 1 and many(530, (2, 2)) != (1, 1):
        raise unread
    if photometric in (_CMYK, _LAB) and planar and not (usual and photometric == _CMYK):
        raise unread
    if photometric not in (*_GREY, _RGB):
        if usual or (photometric == _CMYK and kind == "u" and bits == 16):
            return None
        raise unread
    if usual and (not planar or (samples == 3 and compression not in (1, 8, 32946))):
        return None
    if len({*all_bits}) != 1 or len({*formats}) != 1 or fill != 1 or samples < colours or min(width, height) < 1:
        raise unread
    readable = {"u": bits in (8, *range(9, 17), 32), "i": bits in (8, 16, 32), "f": bits in (16, 32, 64)}.get(kind)
    stated = max(many(281, (0,)))
    # The tag may also hold the largest value that occurs, which is not white.
    depth = stated if kind == "u" and 255 < stated < 2**bits - 1 and not stated & (stated + 1) else None
    if compression not in (1, 8, 32946) or not readable:
        # Pillow reads these correctly with libtiff.
        known = (photometric, samples) in ((1, 1), (_RGB, 3), (_RGB, 4))
        if kind == "u" and bits == 16 and known and compression != 1 and not depth:
            return None
        raise unread
    alphas = [colours + i for i, sort in enumerate(extra) if sort in (1, 2)]
    alphas = alphas or ([3] if not extra and (colours, samples) == (3, 4) else [])
    alpha = alphas[0] if alphas and alphas[0] < samples else None
    tiled = 324 in tags
    block_size = (int(tags[322]), int(tags[323])) if tiled else (width, min(height, int(tags.get(278, height))))
    if min(block_size) < 1 or max(block_size) > 2 * max(width, height, 1024):
        raise unread
    offsets = many(324 if tiled else 273, ())
    sizes = many(325 if tiled else 279, ())
    if len(sizes) < len(offsets):
        sizes = (-(-block_size[0] * bits * (1 if planar else samples) // 8) * block_size[1],) * len(offsets)
    return TIFFLayout(
        width,
        height,
        kind,
        bits,
        samples,
        inverted=photometric == 0,
        colours=colours,
        alpha=alpha,
        premultiplied=alpha is not None and alpha - colours < len(extra) and extra[alpha - colours] == 1,
        planar=planar,
        tiled=tiled,
        block_size=block_size,
        blocks=tuple(zip(offsets, sizes, strict=False)),
        deflated=compression != 1,
        predictor=int(tags.get(317, 1)),
        order=order,
        big=big,
        white=depth,
        pages=bool(tags.next),
        tags=tags,
    )
