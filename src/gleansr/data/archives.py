"""The images in tar and zip archives: where they lie."""

import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from gleansr.errors import RequestError
from gleansr.images.codec import readable_suffixes

RAW = -1
"""In addition to zipfile's compression methods: raw bytes in a tar, or an LMDB."""


def is_image(name: PurePosixPath) -> bool:
    """Whether a file is taken for an image: by its suffix, unless it or a folder above is hidden."""
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return not hidden and name.suffix.lower() in readable_suffixes()


class Location(NamedTuple):
    """Where the file of an image lies in an archive, and how it is packed."""

    offset: int
    size: int
    method: int
    crc: int
    unpacked: int


def members(label: str, path: Path) -> dict[str, Location]:
    """Lists the images in an archive by name; of members with the same name the last counts."""
    try:
        members = _zip_members(label, path) if zipfile.is_zipfile(path) else _tar_members(path)
        images = {name.as_posix(): location for name, location in members}
        length = path.stat().st_size
        for name, location in images.items():
            if min(location) < RAW or location.offset + location.size > length:
                raise ValueError(f"{name} lies beyond its end")
        return images
    except RequestError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, ValueError, LookupError, struct.error, NotImplementedError, EOFError) as error:
        with path.open("rb") as file:
            compressed = file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))
        reason = "it is compressed: decompress it for random access" if compressed else str(error)
        if is_image(PurePosixPath(path.name)):
            reason = "it is an image: give its folder"
        raise RequestError(f"{label}: cannot be read as a zip or tar archive: {reason}") from None


def _zip_members(label: str, path: Path) -> Iterator[tuple[PurePosixPath, Location]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename.lstrip("/"))
            if not is_image(name) or info.is_dir():
                continue
            if info.flag_bits & 1:
                raise RequestError(f"{label}: {name} is encrypted; create an archive without a password")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RequestError(f"{label}: {name} uses another compression than deflate; create a stored archive, as with zip -0")
            yield name, Location(info.header_offset, info.compress_size, info.compress_type, info.CRC, info.file_size)


def _tar_members(path: Path) -> Iterator[tuple[PurePosixPath, Location]]:
    sample, has_image = None, False
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            name = PurePosixPath(info.name.lstrip("/"))
            key = name.with_name(name.name.partition(".")[0]) if name.name.partition(".")[0] else name
            if key != sample:
                sample, has_image = key, False
            if info.isreg() and not info.issparse() and not has_image and is_image(name):
                has_image = True
                yield name, Location(info.offset_data, info.size, RAW, 0, info.size)
