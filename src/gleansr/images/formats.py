"""File formats identified by their first bytes: images, camera raw files, videos, documents and others."""

import contextlib
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import BinaryIO, Literal

Group = Literal["image", "raw", "video", "audio", "document", "archive", "other"]

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


IMAGES = {
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
FORMATS: Sequence[Format] = (*IMAGES.values(), *_RAWS.values(), *_VIDEOS.values(), *_OTHERS.values())
_AMBIGUOUS = {"", ".ts", ".mts", ".raw", ".cap", ".mos", ".ai"}
"""Suffixes with other meanings, too: a .ts may be TypeScript."""
_BY_SUFFIX = {suffix: kind for kind in reversed(FORMATS) for suffix in kind.suffixes if suffix not in _AMBIGUOUS}

_MAGIC: Sequence[tuple[int, bytes, Format]] = (
    (0, b"\x89PNG", IMAGES["PNG"]),
    (0, b"\xff\xd8\xff", IMAGES["JPEG"]),
    (0, b"GIF8", IMAGES["GIF"]),
    (0, b"\x00\x00\x00\x0cjP  ", IMAGES["JPEG 2000"]),
    (0, b"\xff\x4f\xff\x51", IMAGES["JPEG 2000"]),
    (0, b"\xff\x0a", IMAGES["JPEG XL"]),
    (0, b"\x00\x00\x00\x0cJXL ", IMAGES["JPEG XL"]),
    (0, b"8BPS", IMAGES["Photoshop"]),
    (0, b"\x76\x2f\x31\x01", IMAGES["OpenEXR"]),
    (0, b"#?RADIANCE", IMAGES["Radiance HDR"]),
    (0, b"#?RGBE", IMAGES["Radiance HDR"]),
    (0, b"qoif", IMAGES["QOI"]),
    (0, b"DDS ", IMAGES["DDS"]),
    (0, b"II\xbc\x01", IMAGES["JPEG XR"]),
    (0, b"BPG\xfb", IMAGES["BPG"]),
    (0, b"FLIF", IMAGES["FLIF"]),
    (0, b"gimp xcf", IMAGES["GIMP"]),
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


def _by_head(head: bytes) -> Format | None:
    for at, magic, kind in _MAGIC:
        if head.startswith(magic, at):
            return kind
    if head[4:8] == b"ftyp":
        return _of_ftyp(head)
    if head[4:8] in (b"moov", b"mdat", b"wide", b"free", b"skip") and head[:4] != b"RIFF":
        return _VIDEOS["QuickTime"]
    if head.startswith(b"RIFF"):
        return {b"WEBP": IMAGES["WebP"], b"AVI ": _VIDEOS["AVI"], b"WAVE": _OTHERS["WAV sound"]}.get(head[8:12])
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _VIDEOS["WebM" if b"webm" in head[:64] else "Matroska"]
    if head.startswith(b"OggS"):
        return _VIDEOS["Ogg"] if b"theora" in head[:128] else _OTHERS["Ogg sound"]
    if head.startswith(b"PK\x03\x04"):
        if head[30:].startswith((b"[Content_Types].xml", b"mimetypeapplication/vnd.oasis")):
            return _OTHERS["office document"]
        return _OTHERS["torch file" if b"/data.pkl" in head[:256] else "ZIP archive"]
    if head.startswith(b"BM") and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in (12, 40, 52, 56, 64, 108, 124):
        return IMAGES["BMP"]
    if head.startswith((b"\0\0\1\0", b"\0\0\2\0")) and 0 < int.from_bytes(head[4:6], "little") < 256 and head[9:10] == b"\0":
        return IMAGES["ICO"]
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"1234567Ff" and head[2:3].isspace():
        return IMAGES["PNM"]
    for packet, first in ((188, 0), (192, 4)):
        if len(head) >= first + 2 * packet and all(head[i] == 0x47 for i in range(first, len(head), packet)):
            return _VIDEOS["MPEG transport stream"]
    text = head[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<svg") or (text.startswith((b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text):
        return IMAGES["SVG"]
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
        return IMAGES["AVIF"]
    if major in (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"):
        return IMAGES["HEIC"]
    if major in (b"mif1", b"msf1"):
        return IMAGES["AVIF" if brands & {b"avif", b"avis"} else "HEIC"]
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
    return IMAGES["TIFF"]


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
