"""What is to be done where images or results have addresses: the jobs of `folders.walk`, of lists that stores give."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from gleansr.cluster.urls import file_system, is_url, normal
from gleansr.errors import RequestError
from gleansr.images.formats import by_suffix, readable_suffixes
from gleansr.jobs import MANIFEST, Counted, Job, UnreadableFolder
from gleansr.jobs.walk import _targets  # names are given in the same way

_AHEAD = 16
"""Folders that are listed at once."""


@dataclass(frozen=True)
class RemoteDestination:
    """A folder of results, and what is put there; at least one of them has an address. What `folders.Place` is for paths."""

    root: str
    inputs: tuple[str, ...]
    """Images, and folders whose trees are mirrored in `root`."""
    folders: frozenset[str]
    """Which of them are folders."""
    manifest: Path | str
    """The file, or the address of the folder of parts, that remembers what is done."""

    @classmethod
    def of(
        cls, inputs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str], manifest: str | os.PathLike[str] | None = None
    ) -> "RemoteDestination":
        """Asks what the inputs are.

        Raises:
            RequestError: there is no such input, its store cannot be used, or results would lie among the images.
        """
        taken, root = tuple(dict.fromkeys(map(_absolute, inputs))), _absolute(output)
        if root in taken:
            raise RequestError(f"{root}: results need a folder of their own, where images or results have addresses")
        file = f"{root}/{MANIFEST}" if manifest is None else _absolute(manifest)
        return cls(root, taken, frozenset(one for one in taken if _is_folder(one)), file if is_url(file) else Path(file))


def listed(place: RemoteDestination, number: int = 0, counted: Counted | None = None) -> Iterator[Job | UnreadableFolder]:
    """The jobs of a place, folder by folder, with the order, the names and the exceptions of `folders.walk`.

    Several folders are listed at once, ahead of what is asked for. `counted` is told of the files that are left out, by their names.
    """
    suffixes = readable_suffixes()
    beside = str(place.manifest) == f"{place.root}/{MANIFEST}"
    with ThreadPoolExecutor(_AHEAD, "gleansr-list") as pool:
        begun: dict[str, list[Future[_RemoteListing]]] = {}
        waiting: list[tuple[str, list[str]]] = [("", [one for one in place.inputs if one in place.folders])]
        while waiting:
            for relative, inputs in waiting[-_AHEAD:]:
                if relative not in begun:
                    begun[relative] = [pool.submit(_list, _join(one, relative), suffixes) for one in inputs]
            relative, inputs = waiting.pop()
            singles = [] if relative else [one for one in place.inputs if one not in place.folders]
            found = [(one.rpartition("/")[0], [one.rpartition("/")[2]]) for one in singles]
            inner: dict[str, list[str]] = {}
            for one, listing in zip(inputs, (future.result() for future in begun.pop(relative)), strict=True):
                folder = _join(one, relative)
                if listing.unlisted:
                    yield listing.unlisted
                elif not relative or not (listing.manifest or folder == place.root):
                    found.append((folder, listing.names))
                    if counted:
                        counted.leave_out(folder, (name for name in listing.others if by_suffix(name)))
                    for name in listing.folders:
                        inner.setdefault(name, []).append(one)
            targets = iter(_targets([name for _, names in found for name in names], ""))
            for folder, names in found:
                for name in names:
                    source, key = f"{folder}/{name}", _join(relative, next(targets))
                    target = _join(place.root, key)
                    replaces = "nothing" if _is_input(target, place) else "anything"
                    yield Job(source, target, _key(source, place.root), key if beside else target, number, replaces)
            waiting += [(_join(relative, name), inner[name]) for name in sorted(inner, reverse=True)]


class _RemoteListing(NamedTuple):
    names: list[str]
    """Of the images in a folder, sorted."""
    folders: list[str]
    manifest: bool
    unlisted: UnreadableFolder | None = None
    others: tuple[str, ...] = ()
    """Of its other files."""


def _list(folder: str, suffixes: frozenset[str]) -> _RemoteListing:
    names, folders, others, manifest = [], [], [], False
    try:
        system, path = file_system(folder)
        entries = system.ls(path, detail=True)
    except Exception as error:  # fsspec's stores have many
        return _RemoteListing([], [], False, UnreadableFolder(folder, " ".join(str(error).split()) or type(error).__name__))
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
    text = normal(path)
    return text if is_url(text) else str(Path(text).absolute())


def _is_folder(path: str) -> bool:
    if not is_url(path):
        if not Path(path).exists():
            raise RequestError(f"{path}: there is no such file or folder")
        return Path(path).is_dir()
    system, name = file_system(path)
    if os.path.splitext(path)[1].lower() in readable_suffixes():  # noqa: PTH122
        return False
    try:
        if system.isdir(name):
            return True
    except Exception as error:
        raise RequestError(f"{path}: cannot be asked for: {' '.join(str(error).split()) or type(error).__name__}") from error
    raise RequestError(f"{path}: there is no such folder")


def _is_input(target: str, place: RemoteDestination) -> bool:
    """Whether a file at `target` is read: results lie below inputs only in their own folder, which is not."""
    inner = [one for one in place.folders if one.startswith(f"{place.root}/")]
    return target in place.inputs or any(target.startswith(f"{one}/") for one in inner)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _key(path: str, root: str) -> str:
    """What the manifest in `root` calls a source: its address, or its path."""
    if is_url(path) or is_url(root):
        return path
    return os.path.relpath(path, root).replace(os.sep, "/")
