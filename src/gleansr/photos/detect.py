"""Finding the objects of a model's category in a photo."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gleansr.errors import RequestError
from gleansr.photos.align import Frame

_SAME = 0.5
"""Share of the smaller of two boxes that lies in the other from which on they are the same object."""


@dataclass(frozen=True)
class Found:
    """An object in a photo."""

    box: tuple[float, float, float, float]
    """Left, top, width and height in pixels of the photo; of a turned object, of an upright square with its middle."""
    frame: Frame
    """What the model is to see."""
    score: float | None = None
    """How sure the detector is, in its own unit; None for what was given."""
    landmarks: tuple[tuple[float, float], ...] | None = None
    """In pixels of the photo; see `gleansr.photos.faces`."""


class Finder(Protocol):
    """A detector of one category. Several threads may use it at once."""

    def search(self, photo: Tensor, *, least_score: float | None, turned: bool) -> list[Found]:
        """The objects in a photo (3, H, W) in [0, 1], the surest first, none twice."""
        ...


def nouns(category: str | None) -> tuple[str, str]:
    """What one object of a category is called, and several."""
    category = (category or "").strip().lower()
    if category in ("face", "faces", "human faces"):
        return "face", "faces"
    if category in ("cat", "cats"):
        return "cat", "cats"
    return "object", "objects"


def finder(category: str | None, name: str) -> Finder:
    """The detector of a model's category.

    Args:
        category: of the model.
        name: of the model, for the error.

    Raises:
        RequestError: there is none, or the extra `photos` is not installed.
    """
    kind = nouns(category)[1]
    if kind == "faces":
        from gleansr.photos.faces import Faces

        return Faces()
    if kind == "cats":
        from gleansr.photos.cats import Cats

        return Cats()
    raise RequestError(
        f"{name} is a model of {category or 'an unnamed category'}, for which there is no detector, but for faces and cats: tell where the "
        "objects are with --box x,y,w,h, or that the image shows one alone with --aligned"
    )


def distinct(found: Iterable[Found]) -> list[Found]:
    """The surest first, without those that are a surer one again."""
    kept: list[Found] = []
    for one in sorted(found, key=lambda one: one.score or 0, reverse=True):
        if all(_shared(one, other) < _SAME for other in kept):
            kept.append(one)
    return kept


def _shared(a: Found, b: Found) -> float:
    """The share of the smaller box that lies in the other."""
    (left, top, width, height), (left2, top2, width2, height2) = a.box, b.box
    across = min(left + width, left2 + width2) - max(left, left2)
    down = min(top + height, top2 + height2) - max(top, top2)
    return max(0.0, across) * max(0.0, down) / min(width * height, width2 * height2)


def search_size(height: int, width: int, *, most_pixels: int, most_enlarged: float) -> tuple[int, int]:
    """Height and width at which a photo is searched: enlarged for small objects as far as the bounds allow, or shrunk."""
    factor = min(most_enlarged, math.sqrt(most_pixels / (height * width)))
    return max(1, round(height * factor)), max(1, round(width * factor))


def pixels_at(photo: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A photo (3, H, W) in [0, 1] at another size as bytes (h, w, 3)."""
    image = Image.fromarray(photo.mul(255).add_(0.5).to(torch.uint8).permute(1, 2, 0).numpy())
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Turn:
    """How an image was turned for a search, and where its places lie in the photo."""

    angle: float
    """Degrees clockwise of the objects that are upright in the turned image."""
    inner: tuple[float, float]
    """Width and height of the turned image."""
    outer: tuple[float, float]
    """Width and height of the photo."""
    density: float
    """Pixels of the turned image for one of the photo."""

    def to_photo(self, x: float, y: float) -> tuple[float, float]:
        """A place in the turned image, in the photo. The middles of both are the same place."""
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        across, down = (x - self.inner[0] / 2) / self.density, (y - self.inner[1] / 2) / self.density
        return self.outer[0] / 2 + across * cos - down * sin, self.outer[1] / 2 + across * sin + down * cos

    def box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """A box in the turned image: the upright one with its middle and sides in the photo."""
        x, y = self.to_photo(left + width / 2, top + height / 2)
        width, height = width / self.density, height / self.density
        return x - width / 2, y - height / 2, width, height


def within(found: Sequence[Found], height: int, width: int) -> list[Found]:
    """Those whose middle lies in the photo."""
    return [one for one in found if 0 <= one.box[0] + one.box[2] / 2 < width and 0 <= one.box[1] + one.box[3] / 2 < height]
