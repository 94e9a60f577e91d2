"""File formats identified by their first bytes: images, camera raw files, videos, documents and others; and advice for each.

Registers the readers of HEIC and JPEG XL from the extra `heif` in Pillow.
"""

import contextlib
import functools
import importlib
import io
import os
import struct
import threading
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO, Literal

from PIL import Image

from gleansr.errors import ImageError, TooLargeError

Group = Literal["image", "raw", "video", "audio", "document", "archive", "other"]

NOT_READ = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR"}
"""Pillow's names of formats that are not read: EPS is a program to execute; Pillow has no decoder for the others."""

_LOCK = threading.Lock()

HEAD = 4096
"""Number of first bytes that `identify` needs."""


@dataclass(frozen=True, slots=True)
class Format:
    """A file format."""

    name: str
    """The name for messages: "PNG image", "Matroska video"."""
    group: Group
    suffixes: tuple[str, ...]
    """File name suffixes, the usual one first."""


_IMAGES = {
    name: Format(f"{name} image", "image", suffixes)
    for name, suffixes in {
        "PNG": (".png", ".apng"),
        "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe", ".mpo"),
        "GIF": (".gif",),
        "WebP": (".webp",),
        "TIFF": (".tif", ".tiff"),
        "BMP": (".bmp", ".dib"),
        "JPEG 2000": (".jp2", ".j2k", ".jpx", ".jpc", ".j2c", ".jpf"),
        "HEIC": (".heic", ".heif", ".hif", ".heics", ".heifs"),
        "AVIF": (".avif", ".avifs"),
        "JPEG XL": (".jxl",),
        "Photoshop": (".psd", ".psb"),
        "OpenEXR": (".exr",),
        "Radiance HDR": (".hdr",),
        "QOI": (".qoi",),
        "ICO": (".ico", ".cur"),
        "DDS": (".dds",),
        "PNM": (".ppm", ".pgm", ".pbm", ".pnm", ".pam", ".pfm"),
        "JPEG XR": (".jxr", ".wdp", ".hdp"),
        "BPG": (".bpg",),
        "FLIF": (".flif",),
        "GIMP": (".xcf",),
        "SVG": (".svg", ".svgz"),
    }.items()
}
_RAWS = {
    name: Format(f"camera raw file ({name})", "raw", suffixes)
    for name, suffixes in {
        "DNG": (".dng",),
        "Canon CR2": (".cr2",),
        "Canon CR3": (".cr3",),
        "Canon CRW": (".crw",),
        "Nikon NEF": (".nef", ".nrw"),
        "Sony ARW": (".arw", ".srf", ".sr2"),
        "Fujifilm RAF": (".raf",),
        "Olympus ORF": (".orf", ".ori"),
        "Panasonic RW2": (".rw2", ".raw", ".rwl"),
        "Pentax PEF": (".pef",),
        "Samsung SRW": (".srw",),
        "Sigma X3F": (".x3f",),
        "Minolta MRW": (".mrw",),
        "Hasselblad 3FR": (".3fr", ".fff"),
        "Phase One IIQ": (".iiq", ".cap"),
        "Kodak": (".kdc", ".dcr", ".dcs"),
        "Epson ERF": (".erf",),
        "Leaf MOS": (".mos",),
        "Mamiya MEF": (".mef",),
        "GoPro GPR": (".gpr",),
    }.items()
}
_VIDEOS = {
    name: Format(f"video ({name})", "video", suffixes)
    for name, suffixes in {
        "MP4": (".mp4", ".m4v"),
        "QuickTime": (".mov", ".qt"),
        "3GP": (".3gp", ".3g2"),
        "Matroska": (".mkv",),
        "WebM": (".webm",),
        "AVI": (".avi",),
        "MPEG transport stream": (".ts", ".m2ts", ".mts"),
        "MPEG": (".mpg", ".mpeg", ".vob"),
        "Windows Media": (".wmv", ".asf"),
        "Flash": (".flv",),
        "Ogg": (".ogv",),
    }.items()
}
_OTHERS = {
    kind.name: kind
    for kind in (
        Format("PDF document", "document", (".pdf", ".ai")),
        Format("PostScript document", "document", (".eps", ".ps")),
        Format("office document", "document", (".docx", ".xlsx", ".pptx", ".odt", ".doc", ".xls", ".ppt")),
        Format("web page", "document", (".html", ".htm")),
        Format("ZIP archive", "archive", (".zip",)),
        Format("RAR archive", "archive", (".rar",)),
        Format("7-Zip archive", "archive", (".7z",)),
        Format("gzip archive", "archive", (".gz", ".tgz")),
        Format("bzip2 archive", "archive", (".bz2",)),
        Format("xz archive", "archive", (".xz",)),
        Format("tar archive", "archive", (".tar",)),
        Format("MP3 sound", "audio", (".mp3",)),
        Format("Ogg sound", "audio", (".ogg", ".oga", ".opus")),
        Format("FLAC sound", "audio", (".flac",)),
        Format("WAV sound", "audio", (".wav",)),
        Format("AAC sound", "audio", (".m4a", ".aac")),
        Format("program", "other", ("",)),
        Format("SQLite database", "other", (".db", ".sqlite")),
        Format("torch file", "other", (".pth", ".pt")),
        Format("Git LFS pointer, not the file itself (`git lfs pull` fetches it)", "other", ("",)),
    )
}
FORMATS: Sequence[Format] = (*_IMAGES.values(), *_RAWS.values(), *_VIDEOS.values(), *_OTHERS.values())
_AMBIGUOUS = {"", ".ts", ".mts", ".raw", ".cap", ".mos", ".ai"}
"""Suffixes with other meanings, too: a .ts may be TypeScript."""
_BY_SUFFIX = {suffix: kind for kind in reversed(FORMATS) for suffix in kind.suffixes if suffix not in _AMBIGUOUS}

_MAGIC: Sequence[tuple[int, bytes, Format]] = (
    (0, b"\x89PNG", _IMAGES["PNG"]),
    (0, b"\xff\xd8\xff", _IMAGES["JPEG"]),
    (0, b"GIF8", _IMAGES["GIF"]),
    (0, b"\x00\x00\x00\x0cjP  ", _IMAGES["JPEG 2000"]),
    (0, b"\xff\x4f\xff\x51", _IMAGES["JPEG 2000"]),
    (0, b"\xff\x0a", _IMAGES["JPEG XL"]),
    (0, b"\x00\x00\x00\x0cJXL ", _IMAGES["JPEG XL"]),
    (0, b"8BPS", _IMAGES["Photoshop"]),
    (0, b"\x76\x2f\x31\x01", _IMAGES["OpenEXR"]),
    (0, b"#?RADIANCE", _IMAGES["Radiance HDR"]),
    (0, b"#?RGBE", _IMAGES["Radiance HDR"]),
    (0, b"qoif", _IMAGES["QOI"]),
    (0, b"DDS ", _IMAGES["DDS"]),
    (0, b"II\xbc\x01", _IMAGES["JPEG XR"]),
    (0, b"BPG\xfb", _IMAGES["BPG"]),
    (0, b"FLIF", _IMAGES["FLIF"]),
    (0, b"gimp xcf", _IMAGES["GIMP"]),
    (0, b"FUJIFILMCCD-RAW", _RAWS["Fujifilm RAF"]),
    (0, b"IIRO", _RAWS["Olympus ORF"]),
    (0, b"IIRS", _RAWS["Olympus ORF"]),
    (0, b"MMOR", _RAWS["Olympus ORF"]),
    (0, b"IIU\0", _RAWS["Panasonic RW2"]),
    (0, b"FOVb", _RAWS["Sigma X3F"]),
    (0, b"\0MRM", _RAWS["Minolta MRW"]),
    (6, b"HEAPCCDR", _RAWS["Canon CRW"]),
    (0, b"FLV\x01", _VIDEOS["Flash"]),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _VIDEOS["Windows Media"]),
    (0, b"\x00\x00\x01\xba", _VIDEOS["MPEG"]),
    (0, b"\x00\x00\x01\xb3", _VIDEOS["MPEG"]),
    (0, b"%PDF", _OTHERS["PDF document"]),
    (0, b"%!PS", _OTHERS["PostScript document"]),
    (0, b"\xc5\xd0\xd3\xc6", _OTHERS["PostScript document"]),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", _OTHERS["office document"]),
    (0, b"Rar!\x1a\x07", _OTHERS["RAR archive"]),
    (0, b"7z\xbc\xaf\x27\x1c", _OTHERS["7-Zip archive"]),
    (0, b"\x1f\x8b\x08", _OTHERS["gzip archive"]),
    (0, b"BZh", _OTHERS["bzip2 archive"]),
    (0, b"\xfd7zXZ\0", _OTHERS["xz archive"]),
    (257, b"ustar", _OTHERS["tar archive"]),
    (0, b"ID3", _OTHERS["MP3 sound"]),
    (0, b"fLaC", _OTHERS["FLAC sound"]),
    (0, b"\x7fELF", _OTHERS["program"]),
    (0, b"MZ\x90\0", _OTHERS["program"]),
    (0, b"SQLite format 3\0", _OTHERS["SQLite database"]),
    (0, b"version https://git-lfs.github.com", _OTHERS["Git LFS pointer, not the file itself (`git lfs pull` fetches it)"]),
)

_SUBFILE, _COMPRESSION, _PHOTOMETRIC, _MAKE, _SUB_IFDS, _DNG_VERSION = 254, 259, 262, 271, 330, 50706
_RAW_COMPRESSIONS = {32767, 32769, 32770, 34713, 34892, 65000, 65535}
"""Of Sony, Epson, Samsung, Nikon, lossy DNG, Kodak and Pentax."""
_RAW_PHOTOMETRICS = {32803, 34892}
"""A colour filter array, and linear raw."""
_MAKERS = {
    "nikon": "Nikon NEF",
    "sony": "Sony ARW",
    "pentax": "Pentax PEF",
    "ricoh": "Pentax PEF",
    "samsung": "Samsung SRW",
    "hasselblad": "Hasselblad 3FR",
    "phase one": "Phase One IIQ",
    "kodak": "Kodak",
    "eastman kodak": "Kodak",
    "seiko epson": "Epson ERF",
    "leaf": "Leaf MOS",
    "mamiya": "Mamiya MEF",
    "canon": "Canon CR2",
    "panasonic": "Panasonic RW2",
    "olympus": "Olympus ORF",
    "fujifilm": "Fujifilm RAF",
}


def identify(source: bytes | BinaryIO) -> Format | None:
    """The format of a file by its contents; None if it is unknown.

    Args:
        source: at least the first `HEAD` bytes, or an open file, of which more is read if the tags of a TIFF are further on. Its position
            is kept. A file that cannot seek is not read.
    """
    if not isinstance(source, bytes):
        if not source.seekable():
            return None
        position = source.tell()
        try:
            source.seek(0)
            head = source.read(HEAD)
            return _tiff(head, source) or _by_head(head)
        finally:
            source.seek(position)
    return _tiff(source, io.BytesIO(source)) or _by_head(source)


def by_suffix(name: str) -> Format | None:
    """The format that a file name suggests."""
    return _BY_SUFFIX.get(PurePath(name).suffix.lower())


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
    if kind in (_IMAGES["HEIC"], _IMAGES["JPEG XL"]):
        return "`pip install 'gleansr[heif]'` adds support"
    if kind is _IMAGES["AVIF"]:
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
    if kind is _IMAGES["JPEG XL"]:
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


def readers() -> list[str]:
    """Pillow's names of the supported formats."""
    with _LOCK:  # the first call loads plugins, which Pillow lists one by one
        _add_readers()
    return [kind for kind in Image.ID if kind not in NOT_READ]


@functools.cache
def readable_suffixes() -> frozenset[str]:
    """The suffixes, such as ".png", of supported files, for searching folders; `decode` itself goes by contents."""
    kinds = {*readers(), "MPO"}  # a JPEG followed by others
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds)


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


def _by_head(head: bytes) -> Format | None:
    for at, magic, kind in _MAGIC:
        if head.startswith(magic, at):
            return kind
    if head[4:8] == b"ftyp":
        return _of_ftyp(head)
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip") and head[:4] != b"RIFF":
        return _VIDEOS["QuickTime"]
    if head.startswith(b"RIFF"):
        return {b"WEBP": _IMAGES["WebP"], b"AVI ": _VIDEOS["AVI"], b"WAVE": _OTHERS["WAV sound"]}.get(head[8:12])
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _VIDEOS["WebM" if b"webm" in head[:64] else "Matroska"]
    if head.startswith(b"OggS"):
        return _VIDEOS["Ogg"] if b"theora" in head[:128] else _OTHERS["Ogg sound"]
    if head.startswith(b"PK\x03\x04"):
        if head[30:].startswith((b"[Content_Types].xml", b"mimetypeapplication/vnd.oasis")):
            return _OTHERS["office document"]
        return _OTHERS["torch file" if b"/data.pkl" in head[:256] else "ZIP archive"]
    if head.startswith(b"BM") and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in (12, 40, 52, 56, 64, 108, 124):
        return _IMAGES["BMP"]
    if head.startswith((b"\0\0\1\0", b"\0\0\2\0")) and 0 < int.from_bytes(head[4:6], "little") < 256 and head[9:10] == b"\0":
        return _IMAGES["ICO"]
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"1234567Ff" and head[2:3].isspace():
        return _IMAGES["PNM"]
    for packet, first in ((188, 0), (192, 4)):
        if len(head) >= first + 2 * packet and all(head[i] == 0x47 for i in range(first, len(head), packet)):
            return _VIDEOS["MPEG transport stream"]
    text = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text):
        return _IMAGES["SVG"]
    if text.startswith((b"<!doctype html", b"<html")):
        return _OTHERS["web page"]
    return None


def _of_ftyp(head: bytes) -> Format:
    """The format of an ISO base media file by its brands."""
    size = min(max(int.from_bytes(head[:4], "big"), 16), 256)
    major, brands = head[8:12], {head[i : i + 4] for i in range(8, size, 4)}
    if b"crx " in brands:
        return _RAWS["Canon CR3"]
    if major in (b"avif", b"avis"):
        return _IMAGES["AVIF"]
    if major in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"):
        return _IMAGES["HEIC"]
    if major in (b"mif1", b"msf1"):
        return _IMAGES["AVIF" if brands & {b"avif", b"avis"} else "HEIC"]
    if major.startswith((b"3gp", b"3g2", b"3ge", b"3gg")):
        return _VIDEOS["3GP"]
    if major in (b"M4A ", b"M4B ", b"M4P "):
        return _OTHERS["AAC sound"]
    return _VIDEOS["QuickTime" if major == b"qt  " else "MP4"]


def _tiff(head: bytes, file: BinaryIO) -> Format | None:
    """TIFF, or the camera raw format that the tags of the first directory tell; for classic TIFF and BigTIFF."""
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return None
    version = struct.unpack_from(f"{order}H", head, 2)[0]
    if version not in (42, 43):
        return None
    if head[8:10] == b"CR" and version == 42:
        return _RAWS["Canon CR2"]
    if head[8:12] in (b"IIII", b"MMMM"):
        return _RAWS["Phase One IIQ"]
    tags = _directory(order, version, head, file)
    if _DNG_VERSION in tags:
        return _RAWS["DNG"]
    make = tags.get(_MAKE, b"").split(b"\0")[0].decode("latin-1").strip().lower()

    def number(tag: int) -> int:
        """Of type SHORT or LONG."""
        data = tags.get(tag, b"")
        return int.from_bytes(data[: 4 if tag == _SUBFILE else 2], "little" if order == "<" else "big")

    preview = _SUB_IFDS in tags and number(_SUBFILE) & 1
    if make and (preview or number(_COMPRESSION) in _RAW_COMPRESSIONS or number(_PHOTOMETRIC) in _RAW_PHOTOMETRICS):
        kind = next((kind for maker, kind in _MAKERS.items() if make.startswith(maker)), None)
        return _RAWS[kind] if kind else Format("camera raw file", "raw", ())
    return _IMAGES["TIFF"]


def _directory(order: str, version: int, head: bytes, file: BinaryIO) -> dict[int, bytes]:
    """The tags of the first directory with their first bytes; damaged ones are left out."""
    count_format, entry_size, value_format = ("H", 12, "I") if version == 42 else ("Q", 20, "Q")
    at, value_size = struct.unpack_from(order + value_format, head, 4 if version == 42 else 8)[0], struct.calcsize(value_format)
    tags: dict[int, bytes] = {}
    with contextlib.suppress(struct.error, OSError, OverflowError, ValueError):
        file.seek(at)
        [count] = struct.unpack(order + count_format, file.read(struct.calcsize(count_format)))
        entries = file.read(min(count, 512) * entry_size)
        for start in range(0, len(entries) - entry_size + 1, entry_size):
            tag, _, length = struct.unpack_from(f"{order}HH{value_format}", entries, start)
            data = entries[start + entry_size - value_size : start + entry_size]
            if tag == _MAKE and length > value_size:
                file.seek(struct.unpack(order + value_format, data)[0])
                data = file.read(min(length, 64))
            tags[tag] = data
    return tags


def _size(source: bytes | BinaryIO) -> int | None:
    if isinstance(source, bytes):
        return len(source)
    return source.seek(0, io.SEEK_END) if source.seekable() else None


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIO' or name[:3] in ('MP3', 'SVG', 'RAR', 'xz ') else 'a'} {name}"
