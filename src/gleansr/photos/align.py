"""Frames: where the model's square lies in a photo, and the pixels in it."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.images.resize import resize
from gleansr.photos.config import Box
from gleansr.photos.sampling import mirrored_indices

_UPRIGHT = 0.5
"""Degrees below which a frame counts as upright; no landmark is as exact."""


@dataclass(frozen=True)
class Frame:
    """A rectangle in the photo, rotated about its centre. Pixel i of a row covers the interval from i to i + 1."""

    x: float
    """Centre, as y, in pixels of the photo."""
    y: float
    width: float
    height: float
    angle: float = 0.0
    """Degrees clockwise, in (-180, 180]. Upright frames lie on whole pixels; see `make_frame`."""

    @property
    def axes(self) -> tuple[float, float]:
        """Cosine and sine of the angle: the direction of its rows."""
        return math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))

    @property
    def corners(self) -> list[tuple[float, float]]:
        """Top left, top right, bottom right and bottom left of the upright object."""
        cos, sin = self.axes
        across, down = (cos * self.width / 2, sin * self.width / 2), (-sin * self.height / 2, cos * self.height / 2)
        signs = ((-1, -1), (1, -1), (1, 1), (-1, 1))
        return [(self.x + a * across[0] + b * down[0], self.y + a * across[1] + b * down[1]) for a, b in signs]

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the upright rectangle around it."""
        xs, ys = zip(*self.corners, strict=True)
        return min(xs), min(ys), max(xs), max(ys)

    def coordinates(self, xs: Tensor, ys: Tensor) -> tuple[Tensor, Tensor]:
        """Maps points of the photo to [0, 1] across and down the frame. Broadcasts `xs` and `ys` if it is rotated."""
        across, down = xs - self.x, ys - self.y
        if self.angle == 0:
            return across / self.width + 0.5, down / self.height + 0.5
        cos, sin = self.axes
        return (across * cos + down * sin) / self.width + 0.5, (down * cos - across * sin) / self.height + 0.5


def make_frame(x: float, y: float, side: float, *, aspect: float = 1.0, angle: float = 0.0) -> Frame:
    """The frame with centre (x, y) and width `side`; aspect = height / width. Rounds an upright frame to whole pixels."""
    angle = 180 - (180 - angle) % 360
    if abs(angle) >= _UPRIGHT:
        return Frame(x, y, side, side * aspect, angle)
    width = max(1, round(side))
    height = max(1, round(width * aspect))
    return Frame(round(x - width / 2) + width / 2, round(y - height / 2) + height / 2, width, height)


def frame_around(box: Box, aspect: float = 1.0) -> Frame:
    """The smallest upright frame of aspect height / width that contains a box and has the same centre."""
    left, top, width, height = box
    return make_frame(left + width / 2, top + height / 2, max(width, height / aspect), aspect=aspect)


def crop(planes: Tensor, frame: Frame, rows: int, columns: int) -> Tensor:
    """The pixels of a frame, resized to (C, rows, columns).

    Crops an upright frame and applies `gleansr.resize`, which leaves a frame of rows x columns pixels unchanged. Samples a rotated frame at
    twice the density and shrinks it with `resize`, which keeps it as sharp. Mirrors the photo beyond its border.

    Args:
        planes: the photo (C, H, W) in [0, 1].
    """
    crop_frame = _crop_rotated if frame.angle else _crop_upright
    return crop_frame(planes, frame, rows, columns).clamp(0, 1)


def _crop_upright(planes: Tensor, frame: Frame, rows: int, columns: int) -> Tensor:
    left, top = round(frame.x - frame.width / 2), round(frame.y - frame.height / 2)
    spans = {1: (top, top + round(frame.height), rows), 2: (left, left + round(frame.width), columns)}

    def excess(axis: int) -> float:
        """Ratio of the frame's length to that of its part in the photo."""
        first, last, _ = spans[axis]
        return (last - first) / (min(last, planes.shape[axis]) - max(first, 0))

    for axis in (1, 2):
        first, last, _ = spans[axis]
        if first >= 0 and last <= planes.shape[axis]:
            planes = planes.narrow(axis, first, last - first)
            spans[axis] = (0, last - first, spans[axis][2])
    # The axis with less excess first: the full frame around a narrow strip is never materialised.
    for axis in sorted(spans, key=excess):
        first, last, length = spans[axis]
        part = planes.index_select(axis, mirrored_indices(first, last, planes.shape[axis]))
        planes = resize(part, size=(length, part.shape[2]) if axis == 1 else (part.shape[1], length))
    return planes


def _crop_rotated(planes: Tensor, frame: Frame, rows: int, columns: int) -> Tensor:
    height, width = planes.shape[-2:]
    density = 2  # sampling at the density of the result would lose its finest detail
    step = frame.width / (density * columns)  # pixels of the photo between samples
    margin = math.ceil(2 * max(step, 1)) + 1
    left, top, right, bottom = frame.bounds
    x0, x1 = _source_span(left - margin, right + margin, width)
    y0, y1 = _source_span(top - margin, bottom + margin, height)
    part = planes[:, y0:y1, x0:x1]
    if step > 1:
        part = resize(part, size=(max(1, round((y1 - y0) / step)), max(1, round((x1 - x0) / step))))
    cos, sin = frame.axes
    across = ((torch.arange(density * columns, dtype=torch.float64) + 0.5) / (density * columns) - 0.5) * frame.width
    down = ((torch.arange(density * rows, dtype=torch.float64) + 0.5) / (density * rows) - 0.5)[:, None] * frame.height
    xs, ys = frame.x + across * cos - down * sin, frame.y + across * sin + down * cos
    grid = torch.stack([(xs - x0) / (x1 - x0), (ys - y0) / (y1 - y0)], -1) * 2 - 1
    sampled = F.grid_sample(part[None], grid[None].to(part.dtype), mode="bicubic", padding_mode="reflection", align_corners=False)[0]
    return resize(sampled, size=(rows, columns))


def _source_span(first: float, last: float, length: int) -> tuple[int, int]:
    """The pixels of an axis of `length` that a sampling of first..last needs, including those that mirroring at an end reaches."""
    reach = max(0.0, -first, last - length)
    start = max(0, math.floor(min(first, length - reach)))
    return start, min(length, math.ceil(max(last, reach)))
