"""Jobs, one per image, and the destinations of their results."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gleansr.errors import RequestError
from gleansr.stores import normalize

MANIFEST = "gleansr.jsonl"
"""Name of the manifest in a results folder."""

Suffix = str | Callable[[Path], str]
"""Suffix of the names of results, the same for all inputs or a function of their paths."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image and the file of its result. Small and picklable."""

    source: str
    """Path or URL of the image. Undecodable bytes of a path are surrogates, as in `os.fsdecode`."""
    target: str
    """Path or URL of the result."""
    source_key: str
    """Name of the source in the manifest: the path relative to the manifest's folder, with forward slashes. Whole if there is none."""
    target_key: str
    """Name of the target in the manifest, formed in the same way. Unique within a destination."""
    destination: int = 0
    """Index of its destination."""
    replaces: Literal["anything", "results", "nothing"] = "anything"
    """Which existing file at `target` may be replaced, whatever `Work.overwrite` says. "results": only an earlier result, as inputs lie
    in the same folder. "nothing": the target is an input."""


@dataclass(frozen=True, slots=True)
class UnreadableFolder:
    """A folder that cannot be read. Its images are unknown."""

    folder: str
    reason: str


@dataclass(frozen=True)
class Destination:
    """A results folder and the inputs whose results it receives."""

    root: Path
    """The results folder."""
    inputs: tuple[Path, ...]
    """Images, and folders whose trees are mirrored in `root`. The mirrored trees may overlap."""
    suffix: str = ""
    """Suffix of the names of the results, before the extension."""
    extension: str = ".png"
    """Extension of the names of the results, which sets their format."""
    target: Path | None = None
    """Path of the result, for a single image with an explicit output name."""
    manifest: Path | None = None
    """Path of the manifest; None for results next to their images."""
    others: tuple[Path, ...] = ()
    """Inputs of the other destinations, which are never replaced."""


def destinations(
    inputs: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str] | None,
    suffix: Suffix,
    *,
    to_file: bool = False,
    manifest: str | os.PathLike[str] | None = None,
    extension: str = ".png",
) -> list[Destination]:
    """Groups `inputs` by the folders of their results.

    Args:
        inputs: images and folders of images. Duplicates count once.
        output: the folder of all results, or with `to_file` the file of the only result. By default FOLDER`suffix` next to each
            folder and NAME`suffix``extension` next to each image.
        suffix: such as "_8x", or a function of the path of an input, called for those next to which results lie.
        manifest: path of the manifest, instead of gleansr.jsonl in each results folder. Results next to their images and a single named
            result have a manifest only if this is given.
        extension: of the names of results, one of `codec.FORMATS`.
    """
    paths = tuple(dict.fromkeys(Path(normalize(path)) for path in inputs))
    folder = None if output is None else Path(normalize(output))
    file = None if manifest is None else Path(normalize(manifest))
    if to_file and folder is not None:
        return [Destination(folder.parent, paths, target=folder, manifest=file)]
    grouped: dict[tuple[Path, str, bool], dict[Path, None]] = {}

    def suffix_of(path: Path) -> str:
        return suffix if isinstance(suffix, str) else suffix(path)

    for path in paths:
        if folder is not None:
            key = (folder, "", True)
        elif path.is_dir():
            key = (_sibling(path, suffix_of(path)), "", True)
        else:
            key = (path.parent, suffix_of(path), False)
        grouped.setdefault(key, {})[path] = None
    return [
        Destination(
            root,
            tuple(group),
            added_suffix,
            extension,
            manifest=file or (root / MANIFEST if has_manifest else None),
            others=tuple(path for path in paths if path not in group),
        )
        for (root, added_suffix, has_manifest), group in grouped.items()
    ]


def _sibling(folder: Path, suffix: str) -> Path:
    """FOLDER_8x, also for the folders . and .. and paths that end in them."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    if not folder.name:
        raise RequestError(f"{folder} has no parent folder for the results; give one with --output")
    return folder.with_name(f"{folder.name}{suffix}")
