"""The search for faces and cats in images of any kind, by the detectors that are installed."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import RequestError
from gleansr.inference.categories import classify
from gleansr.photos.align import crop, frame_around
from gleansr.photos.config import PhotoConfig
from gleansr.photos.detect import Detection, Detector
from gleansr.photos.task import load_detector

DETECTED = ("faces", "cats")
"""Categories with detectors."""
CROP = 32
"""Pixels at which an object in a larger image is recognised."""
_INNER = (0.8, 0.6)
"""Sides of inner parts, as shares of the shorter side; they lie in the middle, at the top and at half the height."""
_SURE = 0.9


class _Recognising:
    """Drops detections that the classifier takes for something else: several detectors find more by mistake than one. A `Detector`."""

    def __init__(self, detector: Detector, category: str):
        self._detector, self._category = detector, category

    def detect(self, photo: Tensor, *, min_score: float | None, rotated: bool) -> list[Detection]:
        detections = self._detector.detect(photo, min_score=min_score, rotated=rotated)
        return [one for one in detections if classify(crop(photo, one.frame, CROP, CROP)).name == self._category]


def installed_detectors() -> dict[str, Detector]:
    """Those that are installed, by category. What they find is recognised by the classifier too."""
    detectors: dict[str, Detector] = {}
    for category in DETECTED:
        with suppress(RequestError):
            detectors[category] = _Recognising(load_detector(category, "a photo", all_angles=False), category)
    return detectors


def detect_all(detectors: Mapping[str, Detector], planes: Tensor, config: PhotoConfig) -> dict[str, list[Detection]]:
    """What each detector finds in an image (3, H, W) in [0, 1], by category; categories of which nothing is found are left out."""

    @plain_torch()
    def search(detector: Detector) -> list[Detection]:
        return detector.detect(planes, min_score=config.min_score, rotated=config.rotated)[: config.max_objects]

    with ThreadPoolExecutor(len(detectors) or 1, "gleansr-detect", partial(torch.set_num_threads, 1)) as pool:
        found = zip(detectors, pool.map(search, detectors.values()), strict=True)
        return {category: detections for category, detections in found if detections}


def has_face_inside(planes: Tensor) -> bool:
    """Whether an inner part of a thumbnail (3, H, W) in [0, 1] is a face to the classifier, for installations without a detector.

    Of 20 portraits with shoulders at 48 px, 17 have such a part, of 256 held-out cats, cars, bedrooms and towers none.
    """
    height, width = planes.shape[-2:]
    sides = [share * min(height, width) for share in _INNER]
    boxes = [((width - side) / 2, top, side, side) for side in sides for top in (0.0, (height - side) / 2)]
    categories = [classify(crop(planes, frame_around(box), CROP, CROP)) for box in boxes]
    return any(one.name == "faces" and one.confidence > _SURE for one in categories)


def large_objects(large: int, found: int) -> list[str]:
    """A note on objects that no model takes, if there are any."""
    return [f"{large} of {found} enlarged like the rest: more pixels than the models take"] if large else []
