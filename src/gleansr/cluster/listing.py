"""`destinations`, `count` and `walk` of `gleansr.jobs`, also for images or results at URLs."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gleansr import jobs
from gleansr.cluster.urls import file_system
from gleansr.errors import RequestError, one_line
from gleansr.images.formats import by_suffix
from gleansr.images.readers import readable_suffixes
from gleansr.jobs import MANIFEST, Destination, InputCounts, Job, UnreadableFolder
from gleansr.jobs.walk import IsResult, result_names
from gleansr.stores import is_url, normalize

_CONCURRENT = 16
"""Number of folders that are listed at the same time."""


@dataclass(frozen=True)
class RemoteDestination:
    """A results folder and its inputs, of which at least one is a URL. The counterpart of `jobs.Destination`."""

    root: str
    inputs: tuple[str, ...]
    """Images, and folders whose trees are mirrored in `root`."""
    folders: frozenset[str]
    """The inputs that are folders."""
    manifest: Path | str
    """Path of the manifest, or URL of the folder of its parts."""
    extension: str = ".png"
    """As `jobs.Destination.extension`."""

    @classmethod
    def of(
        cls,
        inputs: Sequence[str | os.PathLike[str]],
        output: str | os.PathLike[str],
        manifest: str | os.PathLike[str] | None = None,
        extension: str = ".png",
    ) -> "RemoteDestination":
        """Determines which inputs are folders.

        Raises:
            RequestError: an input does not exist, its store cannot be used, or results would lie among the images.
        """
        paths, root = tuple(dict.fromkeys(map(_absolute, inputs))), _absolute(output)
        if root in paths:
            raise RequestError(f"{root}: results need a folder of their own if images or results are at URLs")
        file = f"{root}/{MANIFEST}" if manifest is None else _absolute(manifest)
        folders = frozenset(path for path in paths if _is_folder(path))
        return cls(root, paths, folders, file if is_url(file) else Path(file), extension)


def destinations(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    suffix: str | Callable[[Path], str],
    *,
    to_file: bool = False,
    manifest: str | os.PathLike[str] | None = None,
    extension: str = ".png",
) -> list[Destination] | list[RemoteDestination]:
    """As `jobs.destinations`. If any path is a URL, all results go into one folder, which is required.

    Raises:
        RequestError: the folder is missing, or an input URL does not exist.
    """
    if not any(is_url(normalize(path)) for path in (*inputs, output, manifest) if path is not None):
        return jobs.destinations(inputs, output, suffix, to_file=to_file, manifest=manifest, extension=extension)
    if output is None or to_file:
        raise RequestError("URLs of images or results require a results folder: --output FOLDER or --output s3://...")
    return [RemoteDestination.of(inputs, output, manifest, extension)]


def walk(
    destination: Destination | RemoteDestination, number: int = 0, is_result: IsResult | None = None
) -> Iterator[Job | UnreadableFolder]:
    """As `jobs.walk`."""
    if isinstance(destination, RemoteDestination):
        return _walk_remote(destination, number)
    return jobs.walk(destination, number, is_result)


def count(destination: Destination | RemoteDestination, is_result: IsResult | None = None) -> InputCounts:
    """As `jobs.count`. It lists remote folders, and `walk` lists them again."""
    if not isinstance(destination, RemoteDestination):
        return jobs.count(destination, is_result)
    counts, unreadable = InputCounts(), 0
    for item in _walk_remote(destination, counts=counts):
        counts.images += isinstance(item, Job)
        unreadable += isinstance(item, UnreadableFolder)
    if not counts.images and not unreadable:
        raise RequestError(f"{', '.join(destination.inputs)}: no images found")
    return counts


def _walk_remote(destination: RemoteDestination, number: int = 0, counts: InputCounts | None = None) -> Iterator[Job | UnreadableFolder]:
    """The jobs of a destination, folder by folder, with the order, names and exceptions of `jobs.walk`.

    Several folders are listed concurrently and ahead of use. Unread files are counted in `counts`, by their names.
    """
    suffixes = readable_suffixes()
    relative_keys = str(destination.manifest) == f"{destination.root}/{MANIFEST}"
    with ThreadPoolExecutor(_CONCURRENT, "gleansr-list") as pool:
        futures: dict[str, list[Future[_RemoteListing]]] = {}
        waiting: list[tuple[str, list[str]]] = [("", [path for path in destination.inputs if path in destination.folders])]
        while waiting:
            for relative, inputs in waiting[-_CONCURRENT:]:
                if relative not in futures:
                    futures[relative] = [pool.submit(_list, _join(path, relative), suffixes) for path in inputs]
            relative, inputs = waiting.pop()
            singles = [] if relative else [path for path in destination.inputs if path not in destination.folders]
            groups = [(path.rpartition("/")[0], [path.rpartition("/")[2]]) for path in singles]
            inner: dict[str, list[str]] = {}
            for path, listing in zip(inputs, (future.result() for future in futures.pop(relative)), strict=True):
                folder = _join(path, relative)
                if listing.unreadable:
                    yield listing.unreadable
                elif not relative or not (listing.manifest or folder == destination.root):
                    groups.append((folder, listing.names))
                    if counts:
                        counts.leave_out(folder, (name for name in listing.others if by_suffix(name)))
                    for name in listing.folders:
                        inner.setdefault(name, []).append(path)
            targets = iter(result_names([name for _, names in groups for name in names], "", destination.extension))
            for folder, names in groups:
                for name in names:
                    source, key = f"{folder}/{name}", _join(relative, next(targets))
                    target = _join(destination.root, key)
                    replaces = "nothing" if _is_input(target, destination) else "anything"
                    yield Job(source, target, _key(source, destination.root), key if relative_keys else target, number, replaces)
            waiting += [(_join(relative, name), inner[name]) for name in sorted(inner, reverse=True)]


class _RemoteListing(NamedTuple):
    names: list[str]
    """Names of the images, sorted."""
    folders: list[str]
    manifest: bool
    unreadable: UnreadableFolder | None = None
    others: tuple[str, ...] = ()
    """Names of the other files, sorted."""


def _list(folder: str, suffixes: frozenset[str]) -> _RemoteListing:
    names, folders, others, manifest = [], [], [], False
    try:
        system, path = file_system(folder)
        entries = system.ls(path, detail=True)
    except Exception as error:  # the stores of fsspec raise many kinds
        return _RemoteListing([], [], False, UnreadableFolder(folder, one_line(error)))
    for entry in entries:
        name = entry["name"].rstrip("/").rpartition("/")[2]
        manifest |= name == MANIFEST
        if name.startswith(".") or name == MANIFEST:
            continue
        if entry.get("type") == "directory":
            if not entry.get("islink"):
                folders.append(name)
        elif os.path.splitext(name)[1].lower() in suffixes and name:  # noqa: PTH122
            names.append(name)
        elif name:
            others.append(name)
    return _RemoteListing(sorted(set(names)), folders, manifest, None, tuple(sorted(others)))


def _absolute(path: str | os.PathLike[str]) -> str:
    text = normalize(path)
    return text if is_url(text) else str(Path(text).absolute())


def _is_folder(path: str) -> bool:
    if not is_url(path):
        if not Path(path).exists():
            raise RequestError(f"{path}: no such file or folder")
        return Path(path).is_dir()
    system, name = file_system(path)
    if os.path.splitext(path)[1].lower() in readable_suffixes():  # noqa: PTH122
        return False
    try:
        if system.isdir(name):
            return True
    except Exception as error:
        raise RequestError(f"{path}: cannot be queried: {one_line(error)}") from error
    raise RequestError(f"{path}: no such folder")


def _is_input(target: str, destination: RemoteDestination) -> bool:
    """Whether `target` is an input. Results lie below inputs only in their own folder, which is not read."""
    inner = [path for path in destination.folders if path.startswith(f"{destination.root}/")]
    return target in destination.inputs or any(target.startswith(f"{path}/") for path in inner)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _key(path: str, root: str) -> str:
    """Name of a source in the manifest in `root`: its URL, or its relative path."""
    if is_url(path) or is_url(root):
        return path
    return os.path.relpath(path, root).replace(os.sep, "/")
