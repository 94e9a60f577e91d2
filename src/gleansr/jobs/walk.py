"""What is read and where its result goes: trees of folders, lazily, in an order and with names that follow from the names in them alone."""

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
from gleansr.images.formats import skip_reason
from gleansr.images.metadata import is_marked
from gleansr.jobs.jobs import MANIFEST, Destination, Job, UnreadableFolder

Ours = Callable[[str], bool]
"""Whether a manifest names a path, relative to its folder, as a result of an earlier run."""

_MARKED_BYTES = 2**17
"""In which the mark of a result is; before it there may be 64 KB of Exif."""

_BESIDE = re.compile(r"(.+)_\d+x\.png", re.DOTALL)
"""Names of results that lie beside their images."""


@dataclass
class Counted:
    """What is below the inputs of a place."""

    images: int = 0
    links: int = 0
    """Links to folders, which are not followed."""
    results: int = 0
    """Folders of results of other runs, and results beside their images, which are not read."""
    left_out: dict[str, "LeftOut"] = field(default_factory=dict)
    """Images and videos that are not read, by what they are and what to do with them, see `formats.skip_reason`."""

    def leave_out(self, folder: str, names: Iterable[str]) -> None:
        """Counts those of the other files that somebody may miss."""
        for name in names:
            if (why := skip_reason(folder, name)) is not None:
                one = self.left_out.setdefault(why, LeftOut())
                one.files += 1
                one.first = one.first or os.path.join(folder, name)  # noqa: PTH118

    def leave_out_results(self, folder: str, suffixes: frozenset[str]) -> None:
        """Counts the images of somebody else in the folder for results, where this is the first run into it."""
        with contextlib.suppress(OSError):  # it is told where something is written there
            listing = _listed(folder, suffixes)
            for name in () if listing.manifest else listing.names:
                if not _is_marked(os.path.join(folder, name)):  # noqa: PTH118
                    one = self.left_out.setdefault("in the folder for results, which is not read; give another one with -o", LeftOut())
                    one.files += 1
                    one.first = one.first or os.path.join(folder, name)  # noqa: PTH118


@dataclass
class LeftOut:
    """Files that are not read, all for one reason."""

    files: int = 0
    first: str = ""
    """The path of the first of them."""


def walk(place: Destination, number: int = 0, ours: Ours | None = None) -> Iterator[Job | UnreadableFolder]:
    """The jobs of a place, folder by folder: each folder's images, then the folders in it, both sorted by name.

    Images are known by the suffixes of their names. Not taken are hidden files and folders (.NAME), links to folders (one that is given
    as an input is followed, and so are links to images), the folder of results itself, folders of results of other runs (they hold a
    gleansr.jsonl), results that lie beside their images, and what is `ours`, and says so, where results go into the folder of their
    images.

    A result has the name of its image, with .png. Where several images would have the same, one that is a .png keeps it, and the others
    add their suffix, or a number. Which gets which depends on the names alone, whatever is done already.

    Args:
        place: what to read, and where to write.
        number: the place's, for `Job.place`.
        ours: knows the results of earlier runs.
    """
    base = place.manifest.parent if place.manifest else None
    if place.target is not None:
        source = place.inputs[0]
        replaces = "nothing" if _is_one_of(place.target, (*place.inputs, *place.others)) else "anything"
        yield Job(str(source), str(place.target), _key(source, base), _key(place.target, base), number, replaces)
        return
    inputs = {path: _prefixes(path if path.is_dir() else path.parent, base) for path in place.inputs}
    results, results_key = _prefixes(place.root, base)
    among = _Inputs(place)
    for found in _folders(place, ours):
        if isinstance(found, UnreadableFolder):
            yield found
            continue
        relative, groups = found
        targets = iter(_targets([name for _, names in groups for name in names], place.suffix))
        replaces = among.of(results + relative)
        for path, names in groups:
            prefix, key = (part + relative for part in inputs[path])
            for name in names:
                file = next(targets)
                target = relative + file
                yield Job(prefix + name, results + target, key + name, results_key + target, number, replaces(file))


def count(place: Destination, ours: Ours | None = None) -> Counted:
    """How much `walk` will find.

    Raises:
        RequestError: there is no image in a folder that was given.
    """
    if place.target is not None:
        return Counted(1)
    counted = Counted()
    empty = {path for path in place.inputs if path.is_dir()}
    for found in _folders(place, ours, counted):
        if isinstance(found, UnreadableFolder):  # there may be images in it
            empty -= {path for path in empty if Path(found.folder).is_relative_to(path)}
            continue
        counted.images += sum(len(names) for _, names in found[1])
        empty -= {path for path, names in found[1] if names}
    for path in sorted(empty):
        names = sorted(os.listdir(path))  # noqa: PTH208
        listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        missed = [(why, one.first) for why, one in counted.left_out.items() if Path(one.first).is_relative_to(path)]
        told = "; ".join(f"{first} is left out ({why})" for why, first in missed)
        only = f"{path}: no images in this folder, only {listed}{f'; {told}' if told else ''}"
        raise RequestError(printable(only if names else f"{path}: is an empty folder"))
    return counted


def _folders(
    place: Destination, ours: Ours | None, counted: Counted | None = None
) -> Iterator[UnreadableFolder | tuple[str, list[tuple[Path, list[str]]]]]:
    """Each folder, relative to the inputs and with a final /, with the names of the images in it by input. Adds to `counted`,
    for which other files may be looked into."""
    top = {path: os.path.realpath(path) for path in place.inputs if path.is_dir()}
    root = os.path.realpath(place.root)
    suffixes = readable_suffixes()
    within = {path: _prefixes(path, place.manifest.parent)[1] for path, real in top.items() if real == root and place.manifest and ours}
    waiting: list[tuple[str, list[Path]]] = [("", list(top))]
    while waiting:
        relative, paths = waiting.pop()
        groups = [] if relative else [(path, [path.name]) for path in place.inputs if path not in top]
        inner: dict[str, list[Path]] = {}
        for path in paths:
            # No link is followed below the inputs, so that a real path can be put together and need not be asked for.
            folder = os.path.join(path, relative)  # noqa: PTH118
            if relative and os.path.join(top[path], relative[:-1]) == root:  # noqa: PTH118
                if counted:
                    counted.leave_out_results(folder, suffixes)
                continue
            try:
                listing = _listed(folder, suffixes)
            except OSError as error:
                yield UnreadableFolder(folder.rstrip("/"), error.strerror or str(error))
                continue
            if listing.manifest and relative:
                if counted:
                    counted.results += 1
                continue
            names = _without_results(folder, listing.names)
            if ours and path in within:
                keys = {name: f"{within[path]}{relative}{name}" for name in names}
                names = [name for name in names if not (ours(keys[name]) and _is_marked(os.path.join(folder, name)))]  # noqa: PTH118
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
    """Of the images in a folder, sorted."""
    folders: list[str]
    links: int
    """How many there are to folders."""
    manifest: bool
    others: list[str]
    """Of its other files."""


def _listed(folder: str, suffixes: frozenset[str]) -> _Listing:
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
            elif os.path.splitext(name)[1].lower() in suffixes:  # noqa: PTH122, here and below a Path for each of a million takes long
                names.append(name)
            else:
                others.append(name)
    return _Listing(sorted(names), folders, links, manifest, sorted(others))


def _leads_to_folder(link: os.DirEntry[str]) -> bool:
    try:
        return link.is_dir()
    except OSError:  # it leads to itself, or through a folder that cannot be read
        return False


def _without_results(folder: str, names: list[str]) -> list[str]:
    """The names without those of results that lie beside their images: NAME_8x.png beside NAME, with our mark in it."""
    found = {name: match[1] for name in names if (match := _BESIDE.fullmatch(name))}
    if not found:
        return names
    stems = {_stem(name) for name in names}
    return [name for name in names if name not in found or found[name] not in stems or not _is_marked(os.path.join(folder, name))]  # noqa: PTH118


def _is_marked(path: str) -> bool:
    """Whether a file says at its beginning that gleansr wrote it."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            return is_marked(file.read(_MARKED_BYTES))
    except OSError:
        return False


class _Inputs:
    """The files that a place, and others of the same command, read: none of them is replaced."""

    def __init__(self, place: Destination):
        self._root = os.path.realpath(place.root)
        self._own = [os.path.realpath(path) for path in place.inputs if path.is_dir()]
        self._others = [os.path.realpath(path) for path in place.others if path.is_dir()]
        files = [path for path in (*place.inputs, *place.others) if not path.is_dir()]
        # By its own name, and by that of the file that it leads to if it is a link.
        self._files = {(os.path.realpath(path.parent), path.name.casefold()) for path in files}
        self._files |= {(folder, name.casefold()) for folder, name in map(os.path.split, map(os.path.realpath, files))}

    def of(self, folder: str) -> Callable[[str], Literal["anything", "ours", "nothing"]]:
        """For a folder of results: what the file of a name in it may replace."""
        real = os.path.realpath(folder or ".")
        if any(self._searched(tree, real, None) for tree in self._others):
            return lambda _: "nothing"
        usual = "ours" if any(self._searched(tree, real, self._root) for tree in self._own) else "anything"
        return lambda name: "nothing" if (real, name.casefold()) in self._files else usual

    def _searched(self, tree: str, folder: str, results: str | None) -> bool:
        """Whether `walk` looks for images in a folder, below a tree that is an input. All are real paths."""
        while folder != tree:
            above, name = os.path.split(folder)
            manifest = os.path.join(folder, MANIFEST)  # noqa: PTH118
            if above == folder or name.startswith(".") or folder == results or os.path.exists(manifest):  # noqa: PTH110
                return False
            folder = above
        return True


def _is_one_of(target: Path, paths: Sequence[Path]) -> bool:
    try:
        check_not_input(target, paths)
    except RequestError:
        return True
    return False


def _targets(names: Sequence[str], suffix: str) -> list[str]:
    """The names of the results of images that lie in one folder, each once, also where a file system takes a for A."""
    taken: set[str] = set()
    targets = [""] * len(names)

    def claim(number: int, stem: str) -> bool:
        target = f"{stem}{suffix}.png"
        if target.casefold() not in taken:
            taken.add(target.casefold())
            targets[number] = target
        return bool(targets[number])

    for number, name in enumerate(names):
        if name.lower().endswith(".png"):
            claim(number, _stem(name))
    for number, name in enumerate(names):
        if not targets[number]:
            candidates = itertools.chain([_stem(name), name], (f"{_stem(name)}_{i}" for i in itertools.count(2)))
            next(filter(partial(claim, number), candidates))
    return targets


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122


def _prefixes(folder: Path, base: Path | None) -> tuple[str, str]:
    """What comes before a relative path in a folder: of the path itself, and of what a manifest in `base` calls it."""
    path = "" if str(folder) == "." else os.path.join(folder, "")  # noqa: PTH118
    key = _key(folder, base)
    return path, "" if key == "." else key.rstrip("/") + "/"


def _key(path: Path, base: Path | None) -> str:
    """A path relative to the folder of the manifest, with forward slashes; whole where there is none or it is on another drive."""
    try:
        relative = os.path.relpath(path, base) if base else os.fspath(path)
    except ValueError:
        relative = os.path.abspath(path)  # noqa: PTH100, pathlib's resolves links
    return relative.replace(os.sep, "/")
