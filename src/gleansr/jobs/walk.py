"""Walks folder trees lazily, and names the results. Order and names follow from the file names alone."""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from gleansr.errors import RequestError
from gleansr.files import check_not_input, printable
from gleansr.images.codec import readable_suffixes
from gleansr.images.metadata import is_marked
from gleansr.images.readers import skip_reason
from gleansr.jobs.jobs import MANIFEST, Destination, Job, UnreadableFolder

IsResult = Callable[[str], bool]
"""Whether a manifest records a path, relative to its folder, as a result of an earlier run."""

_MARKED_BYTES = 2**17
"""Bytes that contain the mark of a result; up to 64 KB of Exif may precede it."""

_RESULT_NAME = re.compile(r"(.+)_\d+x\.(?:png|jpe?g|webp|tiff?)", re.DOTALL)
"""Names of results next to their images."""


@dataclass
class InputCounts:
    """Numbers of files below the inputs of a destination."""

    images: int = 0
    links: int = 0
    """Links to folders, which are not followed."""
    results: int = 0
    """Results folders of other runs, and results next to their images. They are not read."""
    left_out: dict[str, "LeftOut"] = field(default_factory=dict)
    """Unread images and videos, by the reason and remedy from `readers.skip_reason`."""

    def leave_out(self, folder: str, names: Iterable[str]) -> None:
        """Counts the unread images and videos among the files."""
        for name in names:
            if (why := skip_reason(folder, name)) is not None:
                group = self.left_out.setdefault(why, LeftOut())
                group.files += 1
                group.first = group.first or os.path.join(folder, name)  # noqa: PTH118

    def leave_out_results(self, folder: str, suffixes: frozenset[str]) -> None:
        """Counts images in a results folder that has no manifest yet and that gleansr did not write."""
        with contextlib.suppress(OSError):  # writing reports it
            listing = _list_folder(folder, suffixes)
            for name in () if listing.manifest else listing.names:
                if not _is_marked(os.path.join(folder, name)):  # noqa: PTH118
                    group = self.left_out.setdefault("in the results folder, which is not read; give another one with -o", LeftOut())
                    group.files += 1
                    group.first = group.first or os.path.join(folder, name)  # noqa: PTH118


@dataclass
class LeftOut:
    """Files that are not read for one reason."""

    files: int = 0
    first: str = ""
    """Path of the first file."""


def walk(destination: Destination, number: int = 0, is_result: IsResult | None = None) -> Iterator[Job | UnreadableFolder]:
    """The jobs of a destination, folder by folder: the images of a folder, then its subfolders, both sorted by name.

    Suffixes identify images. Skipped are hidden files and folders (.NAME), links to folders below the inputs (links to images and links
    given as inputs are followed), the results folder itself, results folders of other runs (they contain a gleansr.jsonl), results next
    to their images, and, where results go into the folder of their images, marked files for which `is_result` is true.

    A result has the name of its image, with the extension of results. If several images claim one name, the one with that extension keeps
    it, and the others append their own or a number. The assignment depends on the names alone, not on what is done.

    Args:
        destination: the inputs and the results folder.
        number: index of the destination, for `Job.destination`.
        is_result: identifies results of earlier runs, see `Manifest.is_result`.
    """
    base = destination.manifest.parent if destination.manifest else None
    if destination.target is not None:
        source = destination.inputs[0]
        replaces = "nothing" if _is_input(destination.target, (*destination.inputs, *destination.others)) else "anything"
        yield Job(str(source), str(destination.target), _key(source, base), _key(destination.target, base), number, replaces)
        return
    inputs = {path: _prefixes(path if path.is_dir() else path.parent, base) for path in destination.inputs}
    results, results_key = _prefixes(destination.root, base)
    input_files = _InputFiles(destination)
    for folder in _folders(destination, is_result):
        if isinstance(folder, UnreadableFolder):
            yield folder
            continue
        relative, groups = folder
        targets = iter(result_names([name for _, names in groups for name in names], destination.suffix, destination.extension))
        replaces = input_files.of(results + relative)
        for path, names in groups:
            prefix, key = (part + relative for part in inputs[path])
            for name in names:
                file = next(targets)
                target = relative + file
                yield Job(prefix + name, results + target, key + name, results_key + target, number, replaces(file))


def count(destination: Destination, is_result: IsResult | None = None) -> InputCounts:
    """Counts what `walk` will yield.

    Raises:
        RequestError: a folder contains no image.
    """
    if destination.target is not None:
        return InputCounts(1)
    counted = InputCounts()
    empty = {path for path in destination.inputs if path.is_dir()}
    for folder in _folders(destination, is_result, counted):
        if isinstance(folder, UnreadableFolder):  # it may contain images
            empty -= {path for path in empty if Path(folder.folder).is_relative_to(path)}
            continue
        counted.images += sum(len(names) for _, names in folder[1])
        empty -= {path for path, names in folder[1] if names}
    for path in sorted(empty):
        names = sorted(os.listdir(path))  # noqa: PTH208
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        missed = [(why, group.first) for why, group in counted.left_out.items() if Path(group.first).is_relative_to(path)]
        unread = "; ".join(f"{first} is left out ({why})" for why, first in missed)
        contents = f"{path}: no images in this folder, only {listed}{f'; {unread}' if unread else ''}"
        raise RequestError(printable(contents if names else f"{path}: is an empty folder"))
    return counted


def _folders(
    destination: Destination, is_result: IsResult | None, counted: InputCounts | None = None
) -> Iterator[UnreadableFolder | tuple[str, list[tuple[Path, list[str]]]]]:
    """Each folder, relative to the inputs and with a final /, with the image names of each input. Counts other files in `counted`; it may
    open them."""
    top = {path: os.path.realpath(path) for path in destination.inputs if path.is_dir()}
    root = os.path.realpath(destination.root)
    suffixes = readable_suffixes()
    manifest = destination.manifest
    within = {path: _prefixes(path, manifest.parent)[1] for path, real in top.items() if real == root and manifest and is_result}
    waiting: list[tuple[str, list[Path]]] = [("", list(top))]
    while waiting:
        relative, paths = waiting.pop()
        groups = [] if relative else [(path, [path.name]) for path in destination.inputs if path not in top]
        inner: dict[str, list[Path]] = {}
        for path in paths:
            # No links are followed below the inputs, so real paths can be joined without system calls.
            folder = os.path.join(path, relative)  # noqa: PTH118
            if relative and os.path.join(top[path], relative[:-1]) == root:  # noqa: PTH118
                if counted:
                    counted.leave_out_results(folder, suffixes)
                continue
            try:
                listing = _list_folder(folder, suffixes)
            except OSError as error:
                yield UnreadableFolder(folder.rstrip("/"), error.strerror or str(error))
                continue
            if listing.manifest and relative:
                if counted:
                    counted.results += 1
                continue
            names = _without_results(folder, listing.names)
            if is_result and path in within:
                keys = {name: f"{within[path]}{relative}{name}" for name in names}
                names = [name for name in names if not (is_result(keys[name]) and _is_marked(os.path.join(folder, name)))]  # noqa: PTH118
            if counted:
                counted.links += listing.links
                counted.results += len(listing.names) - len(names)
                counted.leave_out(folder, listing.others)
            groups.append((path, names))
            for name in listing.folders:
                inner.setdefault(name, []).append(path)
        yield relative, groups
        waiting += [(f"{relative}{name}/", inner[name]) for name in sorted(inner, reverse=True)]


class _Listing(NamedTuple):
    names: list[str]
    """Names of the images, sorted."""
    folders: list[str]
    links: int
    """Number of links to folders."""
    manifest: bool
    others: list[str]
    """Names of the other files, sorted."""


def _list_folder(folder: str, suffixes: frozenset[str]) -> _Listing:
    names, folders, others, links, manifest = [], [], [], 0, False
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            manifest |= name == MANIFEST
            if name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(name)
            elif entry.is_symlink() and _leads_to_folder(entry):
                links += 1
            elif os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122, here and below a Path for each of a million files is slow
                names.append(name)
            else:
                others.append(name)
    return _Listing(sorted(names), folders, links, manifest, sorted(others))


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # a loop, or a folder that cannot be read
        return False


def _without_results(folder: str, names: list[str]) -> list[str]:
    """The names without marked results next to their images, such as NAME_8x.png next to NAME."""
    stems_of = {name: match[1] for name in names if (match := _RESULT_NAME.fullmatch(name))}
    if not stems_of:
        return names
    stems = {_stem(name) for name in names}
    return [name for name in names if name not in stems_of or stems_of[name] not in stems or not _is_marked(os.path.join(folder, name))]  # noqa: PTH118


def _is_marked(path: str) -> bool:
    """Whether a file has gleansr's mark."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            return is_marked(file.read(_MARKED_BYTES))
    except OSError:
        return False


class _InputFiles:
    """The files that this destination and the others read. None of them is replaced."""

    def __init__(self, destination: Destination):
        self._root = os.path.realpath(destination.root)
        self._own = [os.path.realpath(path) for path in destination.inputs if path.is_dir()]
        self._others = [os.path.realpath(path) for path in destination.others if path.is_dir()]
        files = [path for path in (*destination.inputs, *destination.others) if not path.is_dir()]
        # Each under its own name, and links also under the name of their target.
        self._files = {(os.path.realpath(path.parent), path.name.casefold()) for path in files}
        self._files |= {(folder, name.casefold()) for folder, name in map(os.path.split, map(os.path.realpath, files))}

    def of(self, folder: str) -> Callable[[str], Literal["anything", "results", "nothing"]]:
        """For a results folder: a function from a file name to `Job.replaces`."""
        real = os.path.realpath(folder or ".")
        if any(self._searched(tree, real, None) for tree in self._others):
            return lambda _: "nothing"
        default = "results" if any(self._searched(tree, real, self._root) for tree in self._own) else "anything"
        return lambda name: "nothing" if (real, name.casefold()) in self._files else default

    def _searched(self, tree: str, folder: str, results: str | None) -> bool:
        """Whether `walk` reads a folder below the input `tree`. All paths are real paths."""
        while folder != tree:
            above, name = os.path.split(folder)
            manifest = os.path.join(folder, MANIFEST)  # noqa: PTH118
            if above == folder or name.startswith(".") or folder == results or os.path.exists(manifest):  # noqa: PTH110
                return False
            folder = above
        return True


def _is_input(target: Path, paths: Sequence[Path]) -> bool:
    try:
        check_not_input(target, paths)
    except RequestError:
        return True
    return False


def result_names(names: Sequence[str], suffix: str, extension: str = ".png") -> list[str]:
    """Names of the results of the images in one folder. They are unique, also on case-insensitive file systems."""
    taken: set[str] = set()
    targets = [""] * len(names)

    def claim(number: int, stem: str) -> bool:
        target = f"{stem}{suffix}{extension}"
        if target.casefold() not in taken:
            taken.add(target.casefold())
            targets[number] = target
        return bool(targets[number])

    for number, name in enumerate(names):
        if name.lower().endswith(extension):
            claim(number, _stem(name))
    for number, name in enumerate(names):
        if not targets[number]:
            candidates = itertools.chain([_stem(name), name], (f"{_stem(name)}_{i}" for i in itertools.count(2)))
            next(filter(partial(claim, number), candidates))
    return targets


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122


def _prefixes(folder: Path, base: Path | None) -> tuple[str, str]:
    """Prefixes for relative paths in a folder: of the path itself, and of its key in a manifest in `base`."""
    path = "" if str(folder) == "." else os.path.join(folder, "")  # noqa: PTH118
    key = _key(folder, base)
    return path, "" if key == "." else key.rstrip("/") + "/"


def _key(path: Path, base: Path | None) -> str:
    """A path relative to the manifest's folder, with forward slashes; whole without a manifest or on another drive."""
    try:
        relative = os.path.relpath(path, base) if base else os.fspath(path)
    except ValueError:
        relative = os.path.abspath(path)  # noqa: PTH100, pathlib's resolves links
    return relative.replace(os.sep, "/")
