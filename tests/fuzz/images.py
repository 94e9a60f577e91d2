"""Damaged image files: what plain Pillow refuses is refused, what it accepts is read with the same pixels or refused with a reason."""

import io
import random
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image, PngImagePlugin
from PIL.ExifTags import IFD, Base

from gleansr.errors import ImageError
from gleansr.images import png, tiff
from gleansr.images.codec import decode, to_image
from tests.fuzz import finding

KINDS = (
    *("PNG", "JPEG", "WEBP", "TIFF", "GIF", "BMP", "TGA", "PPM", "ICO", "PCX", "JPEG2000", "AVIF"),
    *("DDS", "DIB", "SGI", "QOI", "MSP", "XBM"),
)


def seeds() -> dict[str, bytes]:
    """Small files of every kind, by name."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(24) * 5, np.arange(20) * 6).astype(np.uint8)
    colour = Image.fromarray(np.dstack((ramp, 255 - ramp, rng.integers(0, 256, ramp.shape, dtype=np.uint8))))
    clear = colour.copy()
    clear.putalpha(Image.fromarray(ramp))
    exif = Image.Exif()
    exif[Base.Artist], exif[Base.Orientation] = "somebody", 6
    exif[IFD.Exif] = {Base.DateTimeOriginal: "2020:01:02 03:04:05"}
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a cat", zip=True)
    info.add_itxt("Title", "Bañeza")
    written: dict[str, bytes] = {}
    Image.init()
    for kind in KINDS:
        if kind not in Image.SAVE:
            continue
        options: dict[str, dict] = {"": {}}
        if kind in ("PNG", "JPEG", "WEBP"):
            options["exif"] = {"exif": exif}
        if kind == "PNG":
            options |= {"text": {"pnginfo": info}, "stored": {"compress_level": 0}}
        if kind == "JPEG":
            options |= {"progressive": {"progressive": True}, "comment": {"comment": "a cat", "subsampling": 0}}
        if kind == "WEBP":
            options["lossless"] = {"lossless": True}
        if kind == "TIFF":
            options |= {name: {"compression": f"tiff_{name}"} for name in ("lzw", "adobe_deflate", "jpeg")}
        for mode in ("RGB", "RGBA", "L", "P", "1", "I;16", "CMYK", "LA"):
            image = clear.convert(mode) if mode in ("RGBA", "LA") else colour.convert(mode if mode != "I;16" else "L")
            image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else image
            for name, more in options.items():
                file = io.BytesIO()
                try:
                    image.save(file, kind, **more)
                except (OSError, ValueError, KeyError, SystemError):  # which this kind does not hold
                    continue
                written[f"{kind} {mode} {name}".strip()] = file.getvalue()
    return written


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """The file with bits flipped, bytes changed, cut, doubled or swapped; of a PNG sometimes with checksums that fit again."""
    data = bytearray(whole)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(7) if data else -1:
            case 0 | 1:
                data[at] ^= 1 << rng.randrange(8)
            case 2:
                data[at] = rng.choice((0, 1, 127, 128, 255))
            case 3:
                del data[at:]
            case 4:
                del data[at : at + rng.randrange(1, 9)]
            case 5:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 6:
                data[at : at + 4] = rng.randbytes(4)
    return _checked(bytes(data)) if rng.random() < 0.5 else bytes(data)


def _checked(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks put right, so that the damage goes deeper."""
    result = bytearray(data)
    for name, place, length in png.chunks(io.BytesIO(data)):
        if place + length + 4 <= len(data):
            result[place + length : place + length + 4] = zlib.crc32(name + data[place : place + length]).to_bytes(4, "big")
    return bytes(result)


def plain(data: bytes) -> Image.Image | Exception:
    """What Pillow by itself makes of a file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data))
            if image.width * image.height > 1_000_000:
                return OverflowError("too large to compare")
            image.load()
            return image
    except Exception as error:
        return error


def check(data: bytes, counts: Counter[str], reads: Callable[[bytes], object] = plain) -> None:
    """Counts what became of one file."""
    expected = reads(data)
    if isinstance(expected, OverflowError):
        counts["too large to compare"] += 1
        return
    try:
        image = decode(data, max_pixels=1_000_000)
    except ImageError as error:
        said = str(error)
        if "\n" in said or not said.startswith("bytes: ") or len(said) > 600:
            finding(counts, "an error that is no plain line", data)
        counts["refused by both" if isinstance(expected, Exception) else "refused, though Pillow reads it"] += 1
        return
    except Exception as error:
        finding(counts, f"{type(error).__name__} instead of a ImageError", data)
        return
    if isinstance(expected, Exception):
        if _own_layout(data):
            counts["read by its tags"] += 1
        elif any("metadata was ignored" in note for note in image.notes):
            counts["read without its metadata"] += 1
        else:
            finding(counts, "read, though Pillow refuses it", data)
        return
    if not isinstance(expected, Image.Image) or _own_layout(data):
        return
    counts["read by both"] += 1
    if _colour(expected) or expected.mode in ("F", "I", "LAB"):
        return
    mode = "RGBA" if image.alpha is not None else "RGB"
    if expected.mode.startswith("I;16"):
        same = np.array_equal(image.pixels[0].mul(65535).round().numpy(), _upright(expected))
    else:
        whole = expected.convert("RGBA") if expected.has_transparency_data else expected
        same = np.array_equal(np.asarray(to_image(image.pixels, image.alpha)), _upright(whole.convert(mode)))
    if not same:
        finding(counts, "other pixels than Pillow's", data)


def _own_layout(data: bytes) -> bool:
    try:
        with warnings.catch_warnings():  # which tests make errors
            warnings.simplefilter("ignore")
            return tiff.layout(io.BytesIO(data)) is not None
    except ValueError:
        return True


def _colour(image: Image.Image) -> bool:
    """Whether the file states a colour, which is converted."""
    return bool({"icc_profile", "gamma", "chromaticity"} & set(image.info)) or (image.format == "PNG" and "transparency" in image.info)


def _upright(image: Image.Image) -> np.ndarray:
    try:
        with warnings.catch_warnings():  # which tests make errors
            warnings.simplefilter("ignore")
            orientation = image.getexif().get(Base.Orientation, 1)
    except Exception:
        orientation = 1
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }.get(orientation)
    return np.asarray(image if turn is None else image.transpose(turn))


def run(chances: Iterable[random.Random]) -> Counter[str]:
    """Damages a file of each trial; see the top."""
    counts: Counter[str] = Counter()
    files = seeds()
    names = sorted(files)
    for rng in chances:
        check(damaged(files[rng.choice(names)], rng), counts)
    return counts
