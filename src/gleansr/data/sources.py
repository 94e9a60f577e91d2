"""Sources of training images: folders, local and remote archives, LMDB. A source reads the bytes of an image by index."""

import abc
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from gleansr.data.archives import RAW, is_image, members
from gleansr.data.lmdbs import values
from gleansr.data.prepared import read_manifest
from gleansr.data.shards import expand, fetch, without_query
from gleansr.errors import ImageError, RequestError
from gleansr.images.codec import readable_suffixes

MAX_BYTES = 2**30
"""Limit of an image's file in an archive or a database."""


# ----------------------------------------------------------------------------------------------------------- one image


@dataclass(frozen=True)
class Item(abc.ABC):
    """The location of an image, which other processes can read."""

    label: str
    """Name for messages: the path, or the archive and the name in it."""

    def read(self) -> bytes:
        """Reads the image's file. Raises ImageError, without `label` in its message."""
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
    """An image file."""

    path: Path

    def _bytes(self) -> bytes:
        if not stat.S_ISREG(self.path.stat().st_mode):  # reading a pipe or a device may never end
            raise ImageError("is a folder, a pipe or a device, not a file")
        return self.path.read_bytes()


@dataclass(frozen=True)
class MemberItem(Item):
    """A member of a tar or zip archive, or a value of an LMDB."""

    path: Path
    offset: int
    """Offset of its bytes; in a zip archive, of its local header."""
    size: int
    """Bytes in the archive."""
    method: int
    crc: int
    unpacked: int
    """Bytes of the image's file after decompression."""

    def _bytes(self) -> bytes:
        # Opening the file for each image is cheap next to decoding, and shares no handle or position with threads or forks.
        if max(self.size, self.unpacked) > MAX_BYTES:
            raise ValueError(f"it has {max(self.size, self.unpacked):,} bytes, but at most {MAX_BYTES:,} are read")
        with self.path.open("rb") as file:
            file.seek(self.offset)
            if self.method != RAW:
                header = file.read(30)
                if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
                    raise ValueError("the archive has changed since it was listed")
                file.seek(sum(struct.unpack("<26x2H", header)), os.SEEK_CUR)  # skips the name and the extra field
            data = file.read(self.size)
        if len(data) != self.size:
            raise ValueError("the archive has changed since it was listed")
        if self.method == zipfile.ZIP_DEFLATED:
            stream = zlib.decompressobj(-zlib.MAX_WBITS)
            data = stream.decompress(data, self.unpacked + 1)  # a few bytes may expand to gigabytes
            if len(data) != self.unpacked or not stream.eof:
                raise ValueError(f"it does not have the {self.unpacked:,} bytes that the archive states")
        if self.method != RAW and zlib.crc32(data) != self.crc:
            raise ValueError("its checksum is wrong")
        return data


# ----------------------------------------------------------------------------------------------------------- the sources


class Source(abc.ABC):
    """Images by index. A source can be pickled, and read by several threads and processes at once, forked ones too."""

    names: Sequence[str]
    """Sorted, unique names of the images, with / between folders; those of an LMDB have no suffix."""

    def __len__(self) -> int:
        return len(self.names)

    @abc.abstractmethod
    def item(self, index: int) -> Item:
        """Returns the location of an image, which another process can read."""

    def read(self, index: int) -> bytes:
        """Reads an image's file. Raises ImageError, without `label` in its message."""
        return self.item(index).read()

    def label(self, index: int) -> str:
        """Name of an image for messages: the path, or the archive and the name in it."""
        return self.item(index).label


class FolderSource(Source):
    """The images of a folder and its subfolders."""

    def __init__(self, root: Path, names: Sequence[str]):
        self.root, self.names = root, names

    def item(self, index: int) -> Item:
        path = self.root / self.names[index]
        return FileItem(str(path), path)


class ArchiveSource(Source):
    """The images of one or more tar and zip archives."""

    def __init__(self, archives: Sequence[tuple[str, Path]]):
        """`archives`: labels for messages, and local files."""
        self.archives = archives
        rows = [(name, i, *location) for i, (label, path) in enumerate(archives) for name, location in members(label, path).items()]
        if len({name for name, *_ in rows}) < len(rows):  # shards use the same names
            stems = [PurePosixPath(label.replace(os.sep, "/")).stem for label, _ in archives]
            folders = stems if len(set(stems)) == len(stems) else [f"{i:06}" for i in range(len(stems))]
            rows = [(f"{folders[row[0]]}/{name}", *row) for name, *row in rows]
        rows.sort()
        self.names = [name for name, *_ in rows]
        self.locations = np.array([row for _, *row in rows], np.int64).reshape(-1, 6)  # archive, and a `Location`

    def item(self, index: int) -> Item:
        archive, *location = self.locations[index].tolist()
        label, path = self.archives[archive]
        return MemberItem(f"{label}: {self.names[index]}", path, *location)


class LMDBSource(Source):
    """The values of an LMDB, all of them images, as in LSUN."""

    def __init__(self, folder: Path):
        self.file = folder.resolve() / "data.mdb"
        rows = sorted((key.decode(errors="surrogateescape"), offset, size) for key, offset, size in values(self.file))
        self.names = [name for name, *_ in rows]
        self.locations = np.array([row for _, *row in rows], np.int64).reshape(-1, 2)  # offset, size

    def item(self, index: int) -> Item:
        offset, size = self.locations[index].tolist()
        return MemberItem(f"{self.file.parent}: {self.names[index]}", self.file, offset, size, RAW, 0, size)


def open_source(spec: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Source:
    """Opens a source of images and detects its kind.

    Args:
        spec: a folder (with subfolders, and links followed); a set of `gleansr data prepare`; an LMDB folder; a zip or uncompressed tar
            archive (WebDataset), or several by a pattern with braces, `cats-{0000..0011}.tar`; URLs of such archives, `https://…`,
            `s3://…`, which are downloaded to the cache folder. Files and folders with a leading dot are ignored. Consecutive members of a
            tar whose names differ only after the first dot are a WebDataset sample; its image is the first with an image's suffix.
        progress: called with the number of local archives and the total, while remote ones are downloaded.

    Raises:
        RequestError: the source is missing, empty, damaged or of no known kind, or reading it needs an optional package.
        DownloadError: a remote archive could not be downloaded.
    """
    spec = os.fspath(spec)
    if not spec or "\0" in spec:  # an empty one, such as an unset variable, would be the current folder
        raise RequestError(f"{spec!r} is not the name of a folder or file; give . for the current folder")
    try:
        source = _open(spec, progress)
    except OSError as error:
        raise RequestError(f"{error.filename or spec}: cannot be read: {error.strerror or error}") from None
    if not len(source):
        raise RequestError(f"{without_query(spec)}: no images in it{_contents(Path(spec))}")
    return source


def _open(spec: str, progress: Callable[[int, int], None] | None) -> Source:
    path = Path(spec).expanduser()
    if "://" in spec:
        urls = expand(spec)
        return ArchiveSource([(without_query(url), file) for url, file in zip(urls, fetch(urls, progress), strict=True)])
    if (path / "data.mdb").is_file():
        return LMDBSource(path)
    if manifest := read_manifest(path):
        images = path / manifest["pictures"]
        if not manifest["complete"]:
            raise RequestError(
                f"{spec}: its preparation was stopped; resume it with the same `gleansr data prepare`, or give {images} as it is"
            )
        return FolderSource(images, sorted(_files(images)))
    if path.is_dir():
        return FolderSource(path, sorted(_files(path)))
    archives = [path] if path.exists() else [Path(name) for name in expand(str(path))]
    missing = [archive for archive in archives if not archive.is_file()]
    if missing:
        count = f", {len(missing):,} of {len(archives):,} files of {spec} are missing" if len(archives) > 1 else ""
        raise RequestError(
            f"{missing[0]}: no such file or folder{count}; expected a folder, an LMDB folder, a zip or tar archive, or a URL"
        )
    return ArchiveSource([(str(archive), archive) for archive in archives])


# ------------------------------------------------------------------------------------------------------------------ pairs


def stem(name: str) -> str:
    """An image's name without its suffix; names without an image's suffix, such as an LMDB's keys, stay whole."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in readable_suffixes() else name


def pairs_of(gt_source: Source, lr_source: Source, gt_spec: str, lr_spec: str) -> list[tuple[int, int]]:
    """Matches images by name without suffix: (index in `gt_source`, index in `lr_source`) of each, sorted by name.

    `gt_spec` and `lr_spec` are names for messages. Raises RequestError if an image of either source has no partner or more than one.
    """
    sources = ((gt_source, gt_spec), (lr_source, lr_spec))
    gt, lr = ({stem(name): i for i, name in enumerate(_unique_stems(source, spec))} for source, spec in sources)
    problems = [
        f"{len(unmatched):,} of {spec} have no partner in {other}, such as {', '.join(unmatched[:3])}"
        for spec, other, unmatched in (
            (gt_spec, lr_spec, [name for name in gt if name not in lr]),
            (lr_spec, gt_spec, [name for name in lr if name not in gt]),
        )
        if unmatched
    ]
    if problems:
        raise RequestError(f"images and low-resolution images do not match by name: {'; '.join(problems)}")
    return [(index, lr[name]) for name, index in gt.items()]


def _unique_stems(source: Source, spec: str) -> Sequence[str]:
    seen: dict[str, str] = {}
    for name in source.names:
        if (other := seen.setdefault(stem(name), name)) != name:
            raise RequestError(f"{spec}: {other} and {name} differ in their suffix only and cannot be matched by name")
    return source.names


# ---------------------------------------------------------------------------------------------------------------- listing


def _files(root: Path) -> Iterator[str]:
    def unreadable(error: OSError) -> None:
        raise error

    seen = {root.resolve()}
    for base, folders, files in os.walk(root, onerror=unreadable, followlinks=True):
        below = Path(base).relative_to(root)
        # Each real folder is searched once: links may form a cycle.
        folders[:] = [f for f in sorted(folders) if not f.startswith(".") and _is_new((Path(base) / f).resolve(), seen)]
        yield from ((below / file).as_posix() for file in files if is_image(PurePosixPath(file)))


def _is_new(folder: Path, seen: set[Path]) -> bool:
    if folder in seen:
        return False
    seen.add(folder)
    return True


def _contents(path: Path) -> str:
    """Describes what a folder contains instead of images."""
    if not path.is_dir():
        return ""
    files = sorted(str((Path(base) / name).relative_to(path)) for base, _, names in os.walk(path) for name in names)
    return (
        f", only {', '.join(files[:3])}{f' and {len(files) - 3:,} more' if len(files) > 3 else ''}" if files else ": it is an empty folder"
    )
