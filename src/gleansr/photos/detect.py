"""What all detectors share: their results, the scale of the search, rotated searches, non-maximum suppression."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gleansr.photos.align import Frame

_T = TypeVar("_T")
_SAME_OBJECT = 0.5
"""Two boxes are the same object if at least this share of the smaller one lies in the other."""


@dataclass(frozen=True)
class Detection:
    """An object in a photo."""

    box: tuple[float, float, float, float]
    """Left, top, width and height in pixels of the photo; for a rotated object, an upright square with the same centre."""
    frame: Frame
    """The part of the photo that the model sees."""
    score: float | None = None
    """The detector's confidence, in its own unit; None for boxes given by the user."""
    landmarks: tuple[tuple[float, float], ...] | None = None
    """In pixels of the photo; see `gleansr.photos.faces`."""


class Detector(Protocol):
    """Detects objects of one category. Thread-safe."""

    def detect(self, photo: Tensor, *, min_score: float | None, rotated: bool) -> list[Detection]:
        """The distinct objects in a photo (3, H, W) in [0, 1], by descending score; rotated ones only if `rotated`."""
        ...


class Spares(Generic[_T]):
    """Lends out what several threads must not use at a time, such as a cascade: a spare one, or a new one if none is free.

    Threads come and go with each search, and to make dlib's detector takes a second, so that a copy for each thread would be made anew
    for each image.
    """

    def __init__(self, make: Callable[[], _T]):
        self._make = make
        self._free: deque[_T] = deque()

    @contextmanager
    def lent(self) -> Iterator[_T]:
        try:
            one = self._free.pop()
        except IndexError:
            one = self._make()
        yield one
        self._free.append(one)


def nouns(category: str | None) -> tuple[str, str]:
    """The singular and plural of a category's objects."""
    category = (category or "").strip().lower()
    if category in ("face", "faces", "human faces"):
        return "face", "faces"
    if category in ("cat", "cats"):
        return "cat", "cats"
    return "object", "objects"


def non_maximum_suppression(detections: Iterable[Detection]) -> list[Detection]:
    """Sorts by descending score and drops detections that overlap one with a higher score."""
    kept: list[Detection] = []
    for detection in sorted(detections, key=lambda detection: detection.score or 0, reverse=True):
        if all(_overlap(detection, other) < _SAME_OBJECT for other in kept):
            kept.append(detection)
    return kept


def _overlap(a: Detection, b: Detection) -> float:
    """The share of the smaller box that lies in the other."""
    (left, top, width, height), (left2, top2, width2, height2) = a.box, b.box
    across = min(left + width, left2 + width2) - max(left, left2)
    down = min(top + height, top2 + height2) - max(top, top2)
    return max(0.0, across) * max(0.0, down) / min(width * height, width2 * height2)


def search_size(height: int, width: int, *, max_pixels: int, max_scale: float) -> tuple[int, int]:
    """Height and width at which a photo is searched: as large as both limits allow, since enlarging reveals small objects."""
    scale = min(max_scale, math.sqrt(max_pixels / (height * width)))
    return max(1, round(height * scale)), max(1, round(width * scale))


def pixels_at(photo: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A photo (3, H, W) in [0, 1], resized to bytes (h, w, 3)."""
    image = Image.fromarray(photo.mul(255).add_(0.5).to(torch.uint8).permute(1, 2, 0).numpy())
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Rotation:
    """Maps coordinates of a rotated and scaled search image to the photo."""

    angle: float
    """Degrees clockwise of objects that are upright in the search image."""
    inner: tuple[float, float]
    """Width and height of the search image."""
    outer: tuple[float, float]
    """Width and height of the photo."""
    density: float
    """Pixels of the search image per pixel of the photo."""

    def to_photo(self, x: float, y: float) -> tuple[float, float]:
        """Maps a point of the search image to the photo. The centres of both coincide."""
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        across, down = (x - self.inner[0] / 2) / self.density, (y - self.inner[1] / 2) / self.density
        return self.outer[0] / 2 + across * cos - down * sin, self.outer[1] / 2 + across * sin + down * cos

    def box(self, left: float, top: float, width: float, height: float) -> tuple[float, float, float, float]:
        """Maps a box of the search image to an upright box of the photo with the same centre and sides."""
        x, y = self.to_photo(left + width / 2, top + height / 2)
        width, height = width / self.density, height / self.density
        return x - width / 2, y - height / 2, width, height


def inside_photo(detections: Iterable[Detection], height: int, width: int) -> list[Detection]:
    """The detections whose centre lies in the photo."""
    boxes = ((detection, detection.box) for detection in detections)
    return [detection for detection, (x, y, w, h) in boxes if 0 <= x + w / 2 < width and 0 <= y + h / 2 < height]
