"""A folder of numbered frames as a video."""

import os
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from gleansr.errors import ImageError, RequestError
from gleansr.files import printable
from gleansr.images.codec import decode, readable_suffixes
from gleansr.jobs import LocalStorage
from gleansr.video.colour import Tags
from gleansr.video.reading import Shot

RATE = Fraction(25)
"""Frames per second where nothing is said."""


class Numbered:
    """The images of a folder whose names have a number, in the natural order of their names. A `Footage`.

    Numbers need no leading zeros, and some may be missing. Other files are left out, with a note; so are folders.
    """

    def __init__(self, folder: Path, rate: Fraction | None = None):
        """
        Raises:
            RequestError: there is no numbered image in it, or it cannot be read.
        """
        self.name, self.source, self.tags = str(folder), None, Tags()
        self.rate = rate or RATE
        self.time_base = 1 / self.rate
        try:
            names = [name for name in os.listdir(folder) if not name.startswith(".")]  # noqa: PTH208, of a bytes-safe str
        except OSError as error:
            raise RequestError(f"{folder}: cannot be read: {error.strerror}") from error
        found = [name for name in names if Path(name).suffix.lower() in readable_suffixes() and re.search(r"\d", Path(name).stem)]
        if not found:
            raise RequestError(printable(f"{folder}: no numbered frames in this folder, such as 0001.png"))
        self.frames = [folder / name for name in sorted(found, key=natural)]
        """Paths in order."""
        self.expected: int | None = len(found)
        others = sorted(set(names) - set(found))
        self.notes = dict.fromkeys([_left_out(others)] if others else [])

    def shots(self, *, lenient: bool = False) -> Iterator[Shot]:
        """One after the other. Raises ImageError where one cannot be read; with `lenient` it is left out."""
        storage = LocalStorage()
        for number, path in enumerate(self.frames):
            try:
                image = decode(storage.read(str(path)), name=str(path))
            except ImageError:
                if lenient:
                    continue
                raise
            yield Shot(image, number, 1)


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """A key to sort names by, in which numbers count as such: f2 before f10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)], name


def _left_out(names: list[str]) -> str:
    listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {'files are' if len(names) > 1 else 'file is'} no numbered image and left out: {listed}"
