"""Results put together: a video file, or a folder of frames; whole or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol

from PIL import Image

from gleansr.errors import ImageError
from gleansr.files import replacing
from gleansr.images.codec import Metadata, save
from gleansr.jobs.steps import sidecar as sidecar_of
from gleansr.jobs.storage import write_error
from gleansr.video.encoding import VideoFile
from gleansr.video.pyav import WRITTEN
from gleansr.video.reading import Footage


class Sink(Protocol):
    """Takes the images of a video in their order."""

    notes: list[str]
    """What could not be done, one line each."""

    def add(self, image: Image.Image, time: int, duration: int) -> None:
        """An image, and when and how long it is shown, in time bases of the footage. Raises ImageError, OutputError."""
        ...


class FrameFiles:
    """Writes numbered PNG files, from 000001.png on. A `Sink`."""

    def __init__(self, folder: Path, model: str | None):
        self.notes: list[str] = []
        self._folder, self._model, self._number = folder, model, 0

    def add(self, image: Image.Image, time: int, duration: int) -> None:  # noqa: ARG002, a folder has no times
        self._number += 1
        save(image, self._folder / f"{self._number:06d}.png", "PNG", Metadata(), self._model, compress_level=1)


@contextmanager
def written(target: Path, footage: Footage, *, quality: int, model: str | None, overwrite: bool) -> Iterator[Sink]:
    """What to write results to: a video file where the suffix of `target` is one of `WRITTEN`, otherwise a folder.

    All is written beside the target, which gets its name when the block ends well.

    Raises:
        ImageError: it exists and may not be replaced, or the encoder refuses.
        OutputError: nothing can be written there.
    """
    check_target(target, overwrite=overwrite)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix.lower() in WRITTEN:
            with (
                replacing(target) as temporary,
                temporary.open("w+b", buffering=0) as raw,
                closing(VideoFile(raw, target, footage, quality, model)) as file,
            ):
                yield file
                file.end()
        else:
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
            temporary.mkdir()
            try:
                yield FrameFiles(temporary, model)
                _put(temporary, target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise write_error(f"{target}: cannot be written: {error.strerror or error}", error) from error


def check_target(target: Path, *, overwrite: bool, sidecar: bool = False) -> None:
    """Raises ImageError where results, or with `sidecar` the file that tells of them, may not be put there."""
    video = target.suffix.lower() in WRITTEN
    if video and target.is_dir():
        raise ImageError(f"{target}: is a folder")
    if not video and target.exists() and not target.is_dir():
        raise ImageError(f"{target}: is a file; results are {', '.join(WRITTEN)} files or folders")
    if not overwrite and (os.path.lexists(target) if video else target.is_dir() and any(target.iterdir())):
        what = ("exists already", "it") if video else ("is a folder that is not empty", "the frames in it")
        raise ImageError(f"{target}: {what[0]} and may not be overwritten; --overwrite replaces {what[1]}")
    if sidecar and not overwrite and (told := Path(sidecar_of(str(target)))).exists():
        raise ImageError(f"{told}: exists already and may not be overwritten; --overwrite replaces it")


def _put(frames: Path, target: Path) -> None:
    """A folder of frames at its place. Into one that has files its files are moved one by one."""
    if not target.is_dir() or not any(target.iterdir()):
        frames.replace(target)
        return
    for frame in sorted(frames.iterdir()):
        frame.replace(target / frame.name)
