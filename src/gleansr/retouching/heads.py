"""The head that an edit touches: models of faces and cats know whole heads, and a photo is mostly something else."""

from torch import Tensor

from gleansr.images.resize import resize
from gleansr.photos.align import Frame
from gleansr.photos.config import PhotoConfig
from gleansr.photos.search import detect_all, installed_detectors

_TOUCHED = 0.5
"""Smallest share of the bounding box of the edits that lies in the square around their head."""
_SEARCHED = 320
"""Longer side in pixels at which heads are sought: a head that is worth retouching has at least a sixteenth of it."""
_LARGER = 1.25
"""Only in images whose shorter side is so many times a head's, it is looked at alone."""

Box = tuple[int, int, int]
"""Left, top and width of a square."""


def head_of(planes: Tensor, edits: tuple[int, int, int, int]) -> tuple[str, Box] | None:
    """The category of the face or cat that edits are in, and the square around its head; None if they are in none.

    Only what a detector is installed for is found, upright.

    Args:
        planes: the image before the edits, (3, H, W) in [0, 1].
        edits: left, top, right and bottom of what was edited, in pixels.
    """
    height, width = planes.shape[-2:]
    factor = max(1.0, max(height, width) / _SEARCHED)
    small = resize(planes, size=(round(height / factor), round(width / factor))) if factor > 1 else planes
    found = detect_all(installed_detectors(), small.clamp(0, 1), PhotoConfig(rotated=False))
    heads = [(category, square(one.frame, factor, height, width)) for category, detections in found.items() for one in detections]
    inside = [(share_in(edits, box), category, box) for category, box in heads if min(height, width) >= _LARGER * box[2]]
    share, category, box = max(inside, default=(0.0, "", (0, 0, 0)))
    return (category, box) if share >= _TOUCHED else None


def square(frame: Frame, factor: float, height: int, width: int) -> Box:
    """The upright square around a head, in an image of that size, `factor` times as large as the one in which the head was found."""
    side = min(round(frame.width * factor), height, width)
    left, top = round(frame.x * factor - side / 2), round(frame.y * factor - side / 2)
    return min(max(left, 0), width - side), min(max(top, 0), height - side), side


def share_in(edits: tuple[int, int, int, int], box: Box) -> float:
    """The share of a rectangle (left, top, right, bottom) that lies in a square."""
    left, top, right, bottom = edits
    across = min(right, box[0] + box[2]) - max(left, box[0])
    down = min(bottom, box[1] + box[2]) - max(top, box[1])
    return max(across, 0) * max(down, 0) / ((right - left) * (bottom - top))
