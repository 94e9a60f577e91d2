"""Cat heads: OpenCV's cascade, with frames as in AFHQ."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from gleansr.photos.align import make_frame
from gleansr.photos.detect import Detection, Rotation, Spares, inside_photo, non_maximum_suppression, pixels_at, search_size
from gleansr.photos.extras import missing_extra, optional_module

_CASCADE = "haarcascade_frontalcatface_extended.xml"
_MIN_SCORE = 1.3
_MIN_SCORE_ROTATED = 2.0
"""For rotated heads: the many searches find many false positives."""
_MAX_PIXELS = 600_000
_MAX_SCALE = 2.0
_MIN_SIDE = 24
"""The window of the cascade's training."""
_MAX_SIDE = 56
"""The largest window; larger heads are searched in an image of half the size."""
_STEP = 1.05
"""Ratio of successive window sizes; 1.1 loses a fifth of the heads."""
_NEIGHBOURS = 2
"""Further windows at about the same position that must agree."""
_CLOSE_UP_SIDE = 96
"""Shorter side at which the whole photo is searched for a head that fills it."""
_CLOSE_UP_BORDER = 0.3
"""Border added on each side for that search, as a share of the shorter side: the cascade needs some background."""
_CLOSE_UP = 0.6
"""Smallest frame of such a head, as a share of the photo's shorter side."""
_STRIP = 4
"""Longest photo that is rotated, in shorter sides."""
_TILTS = (0.0, 12.0, -12.0, 24.0, -24.0)
_ROTATIONS = tuple(float(angle) for angle in range(48, 336, 24))
"""Degrees. The cascade detects heads rotated by up to 10 degrees."""

# The cascade's box relative to the frame of AFHQ's cats, measured on 256 images of 256x256 that no model here was trained on, each of
# which is one frame. Medians of one pass: the centre of the box lies at 0.496 (rounded to 0.5) and 0.572 of the frame. Its side is 0.648 of
# the frame's in the search as implemented (38 of 43 images; standard deviation of the frame's side 13 %, of its centre 3 and 4 %).
_BOX_SIDE = 0.648
_BOX_BELOW = 0.072
"""Distance of the box's centre below the frame's, in sides of the frame."""


class Cats:
    """Detects frontal cat heads with OpenCV's cascade by Joseph Howse (Viola and Jones, 2001; Lienhart and Maydt, 2002).

    Searches the photo upright and tilted, and at all other angles only if that finds nothing.
    """

    def __init__(self, *, all_angles: bool = True) -> None:
        """
        Args:
            all_angles: whether to search at angles beyond the tilts, which takes four times as long as all the rest.

        Raises:
            RequestError: OpenCV is missing, or is version 5, which has no cascades.
        """
        self._cv2 = optional_module("cv2")
        if not hasattr(self._cv2, "CascadeClassifier") or not hasattr(self._cv2, "data"):
            raise missing_extra("cats", "OpenCV, of a version below 5")
        self._rotations = _ROTATIONS if all_angles else ()
        self._cascades = Spares(self._make_cascade)

    def detect(self, photo: Tensor, *, min_score: float | None = None, rotated: bool = True) -> list[Detection]:
        """See `Detector`. Scores are weights of the cascade's last stage: its threshold is 0, a good score is above 1."""
        height, width = photo.shape[-2:]
        if min(height, width) * _MAX_SCALE < _MIN_SIDE:
            return []
        # A strip is searched upright alone: rotated, it becomes a canvas of many times its pixels.
        strip = max(height, width) > _STRIP * min(height, width)
        rotated = rotated and not strip
        size = search_size(height, width, max_pixels=_MAX_PIXELS, max_scale=_MAX_SCALE)
        grey, density = self._grey(photo, size), math.sqrt(size[0] * size[1] / (height * width))
        threshold = _MIN_SCORE if min_score is None else min_score
        tilts = _TILTS if rotated else _TILTS[:1]
        detections = [] if strip else self._detect_close_ups(photo, tilts, threshold)
        if any(detection.frame.width**2 > height * width / 2 for detection in detections):  # no room for further heads
            return non_maximum_suppression(inside_photo(detections, height, width))
        detections += self._detect_at_angles(grey, (width, height), density, tilts, threshold)
        if rotated and not inside_photo(detections, height, width):
            threshold = _MIN_SCORE_ROTATED if min_score is None else min_score
            detections = self._detect_at_angles(grey, (width, height), density, self._rotations, threshold)
        return non_maximum_suppression(inside_photo(detections, height, width))

    def _detect_close_ups(self, photo: Tensor, angles: Sequence[float], min_score: float) -> list[Detection]:
        """Heads that fill the photo or reach beyond it."""
        height, width = photo.shape[-2:]
        density = _CLOSE_UP_SIDE / min(height, width)
        border = round(_CLOSE_UP_BORDER * _CLOSE_UP_SIDE)
        grey = self._grey(photo, (round(height * density), round(width * density)))
        grey = self._cv2.copyMakeBorder(grey, *[border] * 4, self._cv2.BORDER_REPLICATE)
        detections = self._detect_at_angles(grey, (width, height), density, angles, min_score)
        return [detection for detection in detections if detection.frame.width > _CLOSE_UP * min(height, width)]

    def _grey(self, photo: Tensor, size: tuple[int, int]) -> np.ndarray:
        return self._cv2.cvtColor(pixels_at(photo, size), self._cv2.COLOR_RGB2GRAY)

    def _detect_at_angles(
        self, grey: np.ndarray, outer: tuple[float, float], density: float, angles: Sequence[float], min_score: float
    ) -> list[Detection]:
        """Heads at the given angles in an image (h, w), whose centre is that of the photo with width and height `outer`."""
        detections: list[Detection] = []
        for angle in angles:
            image = self._rotate(grey, angle)
            detections += self._detect_all_sizes(image, Rotation(angle, (image.shape[1], image.shape[0]), outer, density), min_score)
        return detections

    def _detect_all_sizes(self, image: np.ndarray, rotation: Rotation, min_score: float) -> list[Detection]:
        """Upright heads in an image (h, w), searched at every power of two that may contain them.

        The cascade shrinks without smoothing: it sees large heads full of false edges and misses most of them.
        """
        detections = self._detect_upright(image, rotation, min_score)
        height, width = image.shape[0] // 2, image.shape[1] // 2
        if min(height, width) >= _MIN_SIDE:
            half = self._cv2.resize(image, (width, height), interpolation=self._cv2.INTER_AREA)
            detections += self._detect_all_sizes(half, replace(rotation, inner=(width, height), density=rotation.density / 2), min_score)
        return detections

    def _rotate(self, grey: np.ndarray, angle: float) -> np.ndarray:
        """Rotates an image (h, w) counter-clockwise about its centre and enlarges the canvas to hold all of it."""
        if not angle:
            return grey
        height, width = grey.shape
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        new_width, new_height = round(width * abs(cos) + height * abs(sin)), round(height * abs(cos) + width * abs(sin))
        x, y = (width - 1) / 2, (height - 1) / 2  # OpenCV's coordinates are pixel centres
        x2, y2 = (new_width - 1) / 2, (new_height - 1) / 2
        matrix = np.array([[cos, sin, x2 - cos * x - sin * y], [-sin, cos, y2 + sin * x - cos * y]])
        return self._cv2.warpAffine(
            grey, matrix, (new_width, new_height), flags=self._cv2.INTER_LINEAR, borderMode=self._cv2.BORDER_REPLICATE
        )

    def _detect_upright(self, image: np.ndarray, rotation: Rotation, min_score: float) -> list[Detection]:
        sides = {"minSize": (_MIN_SIDE,) * 2, "maxSize": (_MAX_SIDE,) * 2}
        with self._cascades.lent() as cascade:
            found = cascade.detectMultiScale3(image, scaleFactor=_STEP, minNeighbors=_NEIGHBOURS, outputRejectLevels=True, **sides)
        boxes, _, weights = found
        cos, sin = math.cos(math.radians(rotation.angle)), math.sin(math.radians(rotation.angle))
        detections = []
        for rectangle, score in zip(boxes, np.ravel(weights), strict=True):
            if score < min_score:
                continue
            box = rotation.box(*(float(value) for value in rectangle))
            side = box[2] / _BOX_SIDE
            x, y = box[0] + box[2] / 2, box[1] + box[3] / 2
            frame = make_frame(x + _BOX_BELOW * side * sin, y - _BOX_BELOW * side * cos, side, angle=rotation.angle)
            detections.append(Detection(box, frame, float(score)))
        return detections

    def _make_cascade(self) -> Any:
        return self._cv2.CascadeClassifier(self._cv2.data.haarcascades + _CASCADE)
