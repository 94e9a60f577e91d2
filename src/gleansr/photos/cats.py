"""Cats' heads: OpenCV's cascade, and frames like those of AFHQ."""

import math
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from gleansr.photos.align import framed
from gleansr.photos.detect import Found, Turn, distinct, pixels_at, search_size, within
from gleansr.photos.extras import missing, optional

_CASCADE = "haarcascade_frontalcatface_extended.xml"
_LEAST_SCORE = 1.3
_LEAST_SCORE_TURNED = 2.0
"""Of heads that are turned far: so many searches find much that is none."""
_MOST_PIXELS = 600_000
_MOST_ENLARGED = 2.0
_SMALLEST = 24
"""Side of the window that the cascade was trained with."""
_LARGEST = 56
"""Side of the largest window, above which an image of half the size is searched."""
_STEP = 1.05
"""Between the sizes that are searched; with 1.1 a fifth of the heads is lost."""
_NEIGHBOURS = 2
"""How many more windows about the same place must agree."""
_FILLING_SIDE = 96
"""Shorter side at which the whole is searched for a head that fills it."""
_BORDER = 0.3
"""What is added on each side for that, as a share of the shorter side: the cascade wants to see something around a head."""
_FILLING = 0.6
"""Side of the frame of such a head, as a share of the photo's shorter side, at least."""
_TILTS = (0.0, 12.0, -12.0, 24.0, -24.0)
_TURNS = tuple(float(turn) for turn in range(48, 336, 24))
"""Degrees. The cascade finds heads that are turned by up to 10."""

# The cascade's box in the frames of AFHQ's cats, measured on 256 images of 256x256 that no model here was trained on, of which the
# whole is the frame. Medians of one pass: the middle of the box lies at 0.496 and 0.572 of the frame, of which the first is taken for
# the half. Its side is 0.648 of the frame's in the search as it is here (38 of 43 images; standard deviations of the frames' sides
# 13 %, of their middles 3 and 4 %).
_BOX_SIDE = 0.648
_BOX_BELOW = 0.072
"""How far the middle of the box is below the frame's, in sides of the frame."""


class Cats:
    """Finds frontal heads of cats with OpenCV's cascade, made by Joseph Howse (Viola and Jones, 2001; Lienhart and Maydt, 2002).

    The photo is searched upright and tilted a little to both sides, and where that finds nothing turned all around.
    """

    def __init__(self) -> None:
        """
        Raises:
            RequestError: OpenCV is not installed, or a version 5, which lacks cascades.
        """
        self._cv2 = optional("cv2")
        if not hasattr(self._cv2, "CascadeClassifier") or not hasattr(self._cv2, "data"):
            raise missing("cats", "OpenCV, of a version below 5")
        self._local = threading.local()  # a cascade keeps what it computes while it runs

    def search(self, photo: Tensor, *, least_score: float | None = None, turned: bool = True) -> list[Found]:
        """See `detect.Finder`. Scores are the weights of the cascade's last stage: 0 is its threshold, a good one is above 1."""
        height, width = photo.shape[-2:]
        size = search_size(height, width, most_pixels=_MOST_PIXELS, most_enlarged=_MOST_ENLARGED)
        grey, density = self._grey(photo, size), math.sqrt(size[0] * size[1] / (height * width))
        least = _LEAST_SCORE if least_score is None else least_score
        tilts = _TILTS if turned else _TILTS[:1]
        found = self._filling(photo, tilts, least)
        if any(one.frame.width**2 > height * width / 2 for one in found):  # which leaves no room for others
            return distinct(within(found, height, width))
        found += self._at_angles(grey, (width, height), density, tilts, least)
        if turned and not within(found, height, width):
            least = _LEAST_SCORE_TURNED if least_score is None else least_score
            found = self._at_angles(grey, (width, height), density, _TURNS, least)
        return distinct(within(found, height, width))

    def _filling(self, photo: Tensor, angles: Sequence[float], least_score: float) -> list[Found]:
        """Heads that fill the photo or reach beyond it."""
        height, width = photo.shape[-2:]
        density = _FILLING_SIDE / min(height, width)
        border = round(_BORDER * _FILLING_SIDE)
        grey = self._grey(photo, (round(height * density), round(width * density)))
        grey = self._cv2.copyMakeBorder(grey, *[border] * 4, self._cv2.BORDER_REPLICATE)
        found = self._at_angles(grey, (width, height), density, angles, least_score)
        return [one for one in found if one.frame.width > _FILLING * min(height, width)]

    def _grey(self, photo: Tensor, size: tuple[int, int]) -> np.ndarray:
        return self._cv2.cvtColor(pixels_at(photo, size), self._cv2.COLOR_RGB2GRAY)

    def _at_angles(
        self, grey: np.ndarray, outer: tuple[float, float], density: float, angles: Sequence[float], least_score: float
    ) -> list[Found]:
        """Heads in an image (h, w) with the same middle as the photo, of width and height `outer`, that are turned by these angles."""
        found: list[Found] = []
        for angle in angles:
            image = self._turned(grey, angle)
            found += self._all_sizes(image, Turn(angle, (image.shape[1], image.shape[0]), outer, density), least_score)
        return found

    def _all_sizes(self, image: np.ndarray, turn: Turn, least_score: float) -> list[Found]:
        """Upright heads in an image (h, w), searched at every power of two at which they can be there.

        The cascade's own shrinking does not smooth: what it sees of large heads is full of false edges, and it finds few of them.
        """
        found = self._upright(image, turn, least_score)
        height, width = image.shape[0] // 2, image.shape[1] // 2
        if min(height, width) >= _SMALLEST:
            half = self._cv2.resize(image, (width, height), interpolation=self._cv2.INTER_AREA)
            found += self._all_sizes(half, replace(turn, inner=(width, height), density=turn.density / 2), least_score)
        return found

    def _turned(self, grey: np.ndarray, angle: float) -> np.ndarray:
        """An image (h, w) turned counter-clockwise about its middle, in a larger one that holds all of it."""
        if not angle:
            return grey
        height, width = grey.shape
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        wide, high = round(width * abs(cos) + height * abs(sin)), round(height * abs(cos) + width * abs(sin))
        x, y = (width - 1) / 2, (height - 1) / 2  # OpenCV numbers pixels by their middles
        x2, y2 = (wide - 1) / 2, (high - 1) / 2
        matrix = np.array([[cos, sin, x2 - cos * x - sin * y], [-sin, cos, y2 + sin * x - cos * y]])
        return self._cv2.warpAffine(grey, matrix, (wide, high), flags=self._cv2.INTER_LINEAR, borderMode=self._cv2.BORDER_REPLICATE)

    def _upright(self, image: np.ndarray, turn: Turn, least_score: float) -> list[Found]:
        boxes, _, weights = self._cascade().detectMultiScale3(
            image, scaleFactor=_STEP, minNeighbors=_NEIGHBOURS, minSize=(_SMALLEST,) * 2, maxSize=(_LARGEST,) * 2, outputRejectLevels=True
        )
        cos, sin = math.cos(math.radians(turn.angle)), math.sin(math.radians(turn.angle))
        found = []
        for box, score in zip(boxes, np.ravel(weights), strict=True):
            if score < least_score:
                continue
            place = turn.box(*(float(value) for value in box))
            side = place[2] / _BOX_SIDE
            x, y = place[0] + place[2] / 2, place[1] + place[3] / 2
            frame = framed(x + _BOX_BELOW * side * sin, y - _BOX_BELOW * side * cos, side, angle=turn.angle)
            found.append(Found(place, frame, float(score)))
        return found

    def _cascade(self) -> Any:
        if not hasattr(self._local, "cascade"):
            self._local.cascade = self._cv2.CascadeClassifier(self._cv2.data.haarcascades + _CASCADE)
        return self._local.cascade
