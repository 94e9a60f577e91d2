"""Where training images lie: folders, archives here or far away, LMDB. A source gives each image's bytes by its number."""

import abc
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from gleansr.data.lmdbs import values
from gleansr.data.shards import expand, fetch, shown
from gleansr.documents import DocumentError, read_json
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import readable_suffixes

PREPARED = "gleansr-pictures/1"
"""What the manifest of a prepared set says of its format."""

MANIFEST = "manifest.json"
"""The file by which a folder is known as a prepared set, see `gleansr.data.prepare`."""

LARGEST = 2**30
"""Bytes of an image's file in an archive or a database."""

_PLAIN = -1  # beside zipfile's numbers of compression methods: bytes as they are, of a tar or an LMDB


# ----------------------------------------------------------------------------------------------------------- one image


@dataclass(frozen=True)
class Item(abc.ABC):
    """Where one image lies; small, so that it can be sent to another process."""

    label: str
    """What messages call it: its path, or its archive and its name in there."""

    def read(self) -> bytes:
        """The contents of the image's file. Raises ImageError that says why not; `label` is not repeated in it."""
        try:
            return self._bytes()
        except ImageError:
            raise
        except (OSError, ValueError, zlib.error) as error:
            raise ImageError(f"cannot be read: {getattr(error, 'strerror', None) or error}") from error

    @abc.abstractmethod
    def _bytes(self) -> bytes: ...


@dataclass(frozen=True)
class FileItem(Item):
    """A file of its own."""

    path: Path

    def _bytes(self) -> bytes:
        if not stat.S_ISREG(self.path.stat().st_mode):  # a pipe would be waited for, and a device has no end
            raise ImageError("is no file but a folder, a pipe or a device")
        return self.path.read_bytes()


@dataclass(frozen=True)
class MemberItem(Item):
    """A member of a tar or zip archive, or a value of an LMDB."""

    path: Path
    offset: int
    """Of its bytes; in a zip archive, of its local header."""
    size: int
    """Bytes in the archive."""
    method: int
    crc: int
    whole: int
    """Bytes of the image's file, which a compressed member makes."""

    def _bytes(self) -> bytes:
        # Opened anew for each image: next to decoding it costs nothing, and no handle or position is shared with a thread or a fork.
        if max(self.size, self.whole) > LARGEST:
            raise ValueError(f"it has {max(self.size, self.whole):,} bytes, and no image that can be read has more than {LARGEST:,}")
        with self.path.open("rb") as file:
            file.seek(self.offset)
            if self.method != _PLAIN:
                header = file.read(30)
                if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
                    raise ValueError("the archive has changed since it was listed")
                file.seek(sum(struct.unpack("<26x2H", header)), os.SEEK_CUR)  # past the name and the extra field
            data = file.read(self.size)
        if len(data) != self.size:
            raise ValueError("the archive has changed since it was listed")
        if self.method == zipfile.ZIP_DEFLATED:
            stream = zlib.decompressobj(-zlib.MAX_WBITS)
            data = stream.decompress(data, self.whole + 1)  # a few bytes can make gigabytes
            if len(data) != self.whole or not stream.eof:
                raise ValueError(f"it has not the {self.whole:,} bytes that the archive states")
        if self.method != _PLAIN and zlib.crc32(data) != self.crc:
            raise ValueError("its checksum is wrong")
        return data


# ----------------------------------------------------------------------------------------------------------- the sources


class Source(abc.ABC):
    """Images by number. It can be pickled, and read in several threads and processes at once, forked ones too."""

    names: Sequence[str]
    """The images' names in the source, sorted, none twice, with / between folders; those of an LMDB have no suffix."""

    def __len__(self) -> int:
        return len(self.names)

    @abc.abstractmethod
    def item(self, index: int) -> Item:
        """Where an image lies, for another process to read it."""

    def read(self, index: int) -> bytes:
        """The contents of an image's file. Raises ImageError that says why not, without `label`."""
        return self.item(index).read()

    def label(self, index: int) -> str:
        """What messages call an image: its path, or its archive and its name in there."""
        return self.item(index).label


class FolderSource(Source):
    """The images of a folder and the folders in it."""

    def __init__(self, root: Path, names: Sequence[str]):
        self.root, self.names = root, names

    def item(self, index: int) -> Item:
        path = self.root / self.names[index]
        return FileItem(str(path), path)


class ArchiveSource(Source):
    """The images of one or more tar and zip archives."""

    def __init__(self, archives: Sequence[tuple[str, Path]]):
        """`archives`: what messages call them, and their local files."""
        self.archives = archives
        found = [(name, i, *place) for i, (label, path) in enumerate(archives) for name, place in _members(label, path).items()]
        if len({name for name, *_ in found}) < len(found):  # the shards number their images each for itself
            stems = [PurePosixPath(label.replace(os.sep, "/")).stem for label, _ in archives]
            folders = stems if len(set(stems)) == len(stems) else [f"{i:06}" for i in range(len(stems))]
            found = [(f"{folders[row[0]]}/{name}", *row) for name, *row in found]
        found.sort()
        self.names = [name for name, *_ in found]
        self.places = np.array([row for _, *row in found], np.int64).reshape(-1, 6)  # archive, and a `_Place`

    def item(self, index: int) -> Item:
        archive, *place = self.places[index].tolist()
        label, path = self.archives[archive]
        return MemberItem(f"{label}: {self.names[index]}", path, *place)


class LMDBSource(Source):
    """The values of an LMDB, all of them images, as LSUN has them."""

    def __init__(self, folder: Path):
        self.file = folder.resolve() / "data.mdb"
        found = sorted((key.decode(errors="surrogateescape"), offset, size) for key, offset, size in values(self.file))
        self.names = [name for name, *_ in found]
        self.places = np.array([row for _, *row in found], np.int64).reshape(-1, 2)  # offset, size

    def item(self, index: int) -> Item:
        offset, size = self.places[index].tolist()
        return MemberItem(f"{self.file.parent}: {self.names[index]}", self.file, offset, size, _PLAIN, 0, size)


def open_source(spec: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Source:
    """The images of a place, recognised by what is there.

    Args:
        spec: a folder (searched with all its folders, those behind links too); a set made by `gleansr data prepare`; an LMDB folder; a zip
            or uncompressed tar archive (WebDataset), or several by a pattern with braces, `cats-{0000..0011}.tar`; such archives by
            address, `https://…`, `s3://…`, which are fetched into the cache folder first. Files and folders whose names begin with a dot
            are left out. Of consecutive members of a tar that differ after the first dot of their names only, which WebDataset calls a
            sample, the first with an image's suffix is the image.
        progress: called with the number of remote archives that are here and the number of all.

    Raises:
        RequestError: it is missing, empty, damaged or of no known kind, or reading it wants an optional package.
        DownloadError: a remote archive could not be fetched.
    """
    spec = os.fspath(spec)
    if not spec or "\0" in spec:  # an empty one, as of a variable that is not set, would be the folder here
        raise RequestError(f"{spec!r} is no name of a folder or file; for the folder here give .")
    try:
        source = _open(spec, progress)
    except OSError as error:
        raise RequestError(f"{error.filename or spec}: cannot be read: {error.strerror or error}") from None
    if not len(source):
        raise RequestError(f"{shown(spec)}: no images in it{_contents(Path(spec))}")
    return source


def _open(spec: str, progress: Callable[[int, int], None] | None) -> Source:
    path = Path(spec).expanduser()
    if "://" in spec:
        urls = expand(spec)
        return ArchiveSource([(shown(url), file) for url, file in zip(urls, fetch(urls, progress), strict=True)])
    if (path / "data.mdb").is_file():
        return LMDBSource(path)
    if manifest := read_manifest(path):
        images = path / manifest["pictures"]
        if not manifest["complete"]:
            raise RequestError(
                f"{spec}: its preparation was stopped; go on with the same `gleansr data prepare`, or give {images} as it is"
            )
        return FolderSource(images, sorted(_files(images)))
    if path.is_dir():
        return FolderSource(path, sorted(_files(path)))
    archives = [path] if path.exists() else [Path(name) for name in expand(str(path))]
    missing = [archive for archive in archives if not archive.is_file()]
    if missing:
        of_many = f", {len(missing):,} of {len(archives):,} files of {spec} are missing" if len(archives) > 1 else ""
        raise RequestError(
            f"{missing[0]}: no such file or folder{of_many}; expected a folder, an LMDB folder, a zip or tar archive, or a URL"
        )
    return ArchiveSource([(str(archive), archive) for archive in archives])


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a prepared set, None for any other folder. Raises RequestError for one that is damaged or leads out of the folder."""
    file = folder / MANIFEST
    mend = "prepare the set again, or move the file away for the folder to be taken as it is"
    try:
        manifest = read_json(file, hint=mend)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except DocumentError:
        with file.open("rb") as opened:
            ours = PREPARED.encode() in opened.read(1000)  # it begins so
        if ours:
            raise
        return None  # many programs call a file so
    if not isinstance(manifest, dict) or manifest.get("format") != PREPARED:
        return None
    lr = manifest.get("low")
    folders = [manifest.get("pictures"), *(lr.values() if isinstance(lr, dict) else [None])]
    if (
        not all(is_inside(one) for one in folders)
        or not isinstance(manifest.get("complete"), bool)
        or not isinstance(manifest.get("options"), dict)
    ):
        raise RequestError(f"{file}: lacks facts of a prepared set, or names folders outside of it; {mend}")
    return manifest


def is_inside(path: object) -> bool:
    """Whether that is a path, with / between folders, to something in a folder and not out of it, whatever a damaged file may hold."""
    if not isinstance(path, str) or not path.strip("./") or "\\" in path or "\0" in path or ":" in path:
        return False
    parts = PurePosixPath(path).parts
    return not PurePosixPath(path).is_absolute() and ".." not in parts


# ------------------------------------------------------------------------------------------------------------------ pairs


def stem(name: str) -> str:
    """An image's name without its suffix; of a name without an image's suffix, such as an LMDB's key, all of it."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in readable_suffixes() else name


def prepared_lr(spec: str, scale: int) -> str | None:
    """The folder with the low-resolution images of the prepared set `spec`, None where there are none at that scale."""
    manifest = read_manifest(Path(spec).expanduser())
    folder = (manifest or {}).get("low", {}).get(str(scale))
    return str(Path(spec) / folder) if folder else None


def pairs_of(gt_source: Source, lr_source: Source, gt_spec: str, lr_spec: str) -> list[tuple[int, int]]:
    """(index in `high_source`, index in `low_source`) of each image, matched by name without suffix, sorted by name.

    `high_spec` and `low_spec` are what messages call them. Raises RequestError where an image of either has no partner or more than one.
    """
    sources = ((gt_source, gt_spec), (lr_source, lr_spec))
    gt, lr = ({stem(name): i for i, name in enumerate(_unambiguous(source, spec))} for source, spec in sources)
    problems = [
        f"{len(alone):,} of {spec} have no partner in {other}, such as {', '.join(alone[:3])}"
        for spec, other, alone in (
            (gt_spec, lr_spec, [name for name in gt if name not in lr]),
            (lr_spec, gt_spec, [name for name in lr if name not in gt]),
        )
        if alone
    ]
    if problems:
        raise RequestError(f"images and low-resolution images do not match by name: {'; '.join(problems)}")
    return [(index, lr[name]) for name, index in gt.items()]


def _unambiguous(source: Source, spec: str) -> Sequence[str]:
    seen: dict[str, str] = {}
    for name in source.names:
        if (other := seen.setdefault(stem(name), name)) != name:
            raise RequestError(f"{spec}: {other} and {name} differ in their suffix only, so that they cannot be matched by name")
    return source.names


# ---------------------------------------------------------------------------------------------------------------- listing


def _is_image(name: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in name.parts)
    return not hidden and name.suffix.lower() in readable_suffixes()


def _files(root: Path) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        raise error

    seen = {root.resolve()}
    for base, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        below = Path(base).relative_to(root)
        # Each real folder is searched once, or links could lead in a circle.
        folders[:] = [f for f in sorted(folders) if not f.startswith(".") and _first_time((Path(base) / f).resolve(), seen)]
        yield from ((below / file).as_posix() for file in files if _is_image(PurePosixPath(file)))


def _first_time(folder: Path, seen: set[Path]) -> bool:
    if folder in seen:
        return False
    seen.add(folder)
    return True


class _Place(NamedTuple):
    """As `MemberItem` has it."""

    offset: int
    size: int
    method: int
    crc: int
    whole: int


def _members(label: str, path: Path) -> dict[str, _Place]:
    """The images in an archive by name; of members of one name the last."""
    try:
        members = _zip_members(label, path) if zipfile.is_zipfile(path) else _tar_members(path)
        found = {name.as_posix(): place for name, place in members}
        length = path.stat().st_size
        for name, place in found.items():
            if min(place) < _PLAIN or place.offset + place.size > length:
                raise ValueError(f"{name} lies beyond its end")
        return found
    except RequestError:
        raise
    except (tarfile.TarError, zipfile.BadZipFile, ValueError, LookupError, struct.error, NotImplementedError, EOFError) as error:
        with path.open("rb") as file:
            compressed = file.read(4).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX", b"\x28\xb5\x2f\xfd"))
        mend = "it is compressed: decompress it, since images are read out of its middle" if compressed else str(error)
        if _is_image(PurePosixPath(path.name)):
            mend = "it is an image: give the folder that it is in"
        raise RequestError(f"{label}: cannot be read as a zip or tar archive: {mend}") from None


def _zip_members(label: str, path: Path) -> Iterator[tuple[PurePosixPath, _Place]]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename.lstrip("/"))
            if not _is_image(name) or info.is_dir():
                continue
            if info.flag_bits & 1:
                raise RequestError(f"{label}: {name} is encrypted; make an archive without a password")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RequestError(f"{label}: {name} is compressed by another method than deflate; make a stored archive, as with zip -0")
            yield name, _Place(info.header_offset, info.compress_size, info.compress_type, info.CRC, info.file_size)


def _tar_members(path: Path) -> Iterator[tuple[PurePosixPath, _Place]]:
    sample, has_image = None, False
    with tarfile.open(path, "r:") as archive:
        for info in archive:
            name = PurePosixPath(info.name.lstrip("/"))
            key = name.with_name(name.name.partition(".")[0]) if name.name.partition(".")[0] else name
            if key != sample:
                sample, has_image = key, False
            if info.isreg() and not info.issparse() and not has_image and _is_image(name):
                has_image = True
                yield name, _Place(info.offset_data, info.size, _PLAIN, 0, info.size)


def _contents(path: Path) -> str:
    """What there is instead of images, where that can be seen."""
    if not path.is_dir():
        return ""
    files = sorted(str((Path(base) / name).relative_to(path)) for base, _, names in os.walk(path) for name in names)
    return (
        f", only {', '.join(files[:3])}{f' and {len(files) - 3:,} more' if len(files) > 3 else ''}" if files else ": it is an empty folder"
    )
