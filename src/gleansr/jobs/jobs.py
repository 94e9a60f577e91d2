"""What is to be done: one job for each image, and the places where their results go."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gleansr.errors import RequestError

MANIFEST = "gleansr.jsonl"
"""Name of the manifest in a folder of results."""


@dataclass(frozen=True, slots=True)
class Job:
    """One image to read and where its result goes. Small, and can be sent to another process."""

    source: str
    """Path or address of the image; bytes of a name that are no text are surrogates, as in `os.fsdecode`."""
    target: str
    """Path or address of the result."""
    source_key: str
    """What the manifest calls the source: its path relative to the manifest's folder, with forward slashes; whole where there is none."""
    target_key: str
    """What the manifest calls the target, in the same way. No other job of the same place has it."""
    place: int = 0
    """Which of the places it belongs to."""
    replaces: Literal["anything", "ours", "nothing"] = "anything"
    """Which file at `target` may be replaced, whatever `Work.overwrite` says: only an earlier result where inputs lie in its folder, none
    where the target is an input."""


@dataclass(frozen=True, slots=True)
class UnreadableFolder:
    """A folder that could not be read, so that the images in it are unknown."""

    folder: str
    reason: str


@dataclass(frozen=True)
class Destination:
    """A folder of results and what is put there."""

    root: Path
    """The folder of results."""
    inputs: tuple[Path, ...]
    """Images, and folders whose trees are mirrored in `root`; their trees may overlap there."""
    suffix: str = ""
    """Added to the names of the results."""
    target: Path | None = None
    """The result itself, for one image that has been given a name."""
    manifest: Path | None = None
    """The file that remembers what is done; None for images whose results lie beside them."""
    others: tuple[Path, ...] = ()
    """Inputs of other places, which are not replaced either."""


def places(
    inputs: Sequence[Path], output: Path | None, suffix: str, *, to_file: bool = False, manifest: Path | None = None
) -> list[Destination]:
    """Where the results of `inputs` go.

    Args:
        inputs: images and folders of images; one that is given twice counts once.
        output: the folder of all results, or with `to_file` the one result. Without it the results of a folder go into FOLDER`suffix`
            beside it, that of an image into NAME`suffix`.png beside it.
        suffix: such as "_8x".
        manifest: the file that remembers what is done, instead of gleansr.jsonl in each folder of results. Images whose results lie
            beside them or that have been given a name have a manifest only so.
    """
    if to_file and output is not None:
        return [Destination(output.parent, tuple(inputs), target=output, manifest=manifest)]
    every = tuple(dict.fromkeys(inputs))
    grouped: dict[tuple[Path, str, bool], dict[Path, None]] = {}
    for path in inputs:
        if output is not None:
            key = (output, "", True)
        elif path.is_dir():
            key = (_beside(path, suffix), "", True)
        else:
            key = (path.parent, suffix, False)
        grouped.setdefault(key, {})[path] = None
    return [
        Destination(
            root,
            tuple(paths),
            added,
            manifest=manifest or (root / MANIFEST if kept else None),
            others=tuple(path for path in every if path not in paths),
        )
        for (root, added, kept), paths in grouped.items()
    ]


def _beside(folder: Path, suffix: str) -> Path:
    """FOLDER_8x, also of the folder . and .. and of one that ends in them."""
    folder = folder if folder.name not in ("", "..") else folder.resolve()
    if not folder.name:
        raise RequestError(f"{folder}: has no folder beside it; give one for the results with --output")
    return folder.with_name(f"{folder.name}{suffix}")
