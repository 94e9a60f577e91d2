"""The frame of an object: where in the photo the model's square lies, and what it sees there."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.images.resize import resize
from gleansr.photos.config import Box
from gleansr.photos.sampling import mirrored

_STRAIGHT = 0.5
"""Degrees below which an object is taken for upright, since no landmark is as exact."""


@dataclass(frozen=True)
class Frame:
    """A rectangle in the photo, turned about its middle. Pixel i of a row covers what lies between i and i + 1."""

    x: float
    """Its middle, as y, in pixels of the photo."""
    y: float
    width: float
    height: float
    angle: float = 0.0
    """Degrees by which it is turned clockwise, in (-180, 180]. Upright frames lie on whole pixels; see `framed`."""

    @property
    def axes(self) -> tuple[float, float]:
        """Cosine and sine of the angle: the direction of its rows."""
        return math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))

    @property
    def corners(self) -> list[tuple[float, float]]:
        """Top left, top right, bottom right and bottom left as the object sees them."""
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
        """Where in the frame places of the photo lie, from 0 at its left and top to 1; `xs` and `ys` are broadcast, if it is turned."""
        across, down = xs - self.x, ys - self.y
        if self.angle == 0:
            return across / self.width + 0.5, down / self.height + 0.5
        cos, sin = self.axes
        return (across * cos + down * sin) / self.width + 0.5, (down * cos - across * sin) / self.height + 0.5


def framed(x: float, y: float, side: float, *, aspect: float = 1.0, angle: float = 0.0) -> Frame:
    """The frame with its middle at (x, y), `side` wide, aspect = height / width. An upright one is brought to whole pixels."""
    angle = 180 - (180 - angle) % 360
    if abs(angle) >= _STRAIGHT:
        return Frame(x, y, side, side * aspect, angle)
    width = max(1, round(side))
    height = max(1, round(width * aspect))
    return Frame(round(x - width / 2) + width / 2, round(y - height / 2) + height / 2, width, height)


def around(box: Box, aspect: float = 1.0) -> Frame:
    """The smallest upright frame of the aspect height / width that holds a box, with the same middle."""
    left, top, width, height = box
    return framed(left + width / 2, top + height / 2, max(width, height / aspect), aspect=aspect)


def cut(planes: Tensor, frame: Frame, rows: int, columns: int) -> Tensor:
    """What lies in the frame, brought to (C, rows, columns).

    An upright frame is `gleansr.resize` of its pixels, the very pixels where it has rows x columns of them. A turned one is sampled
    at twice the density and shrunk by `resize`, so that it is as sharp. Beyond its border the photo goes on mirrored.

    Args:
        planes: the photo (C, H, W) in [0, 1].
    """
    cut_ = _cut_turned if frame.angle else _cut_upright
    return cut_(planes, frame, rows, columns).clamp(0, 1)


def _cut_upright(planes: Tensor, frame: Frame, rows: int, columns: int) -> Tensor:
    left, top = round(frame.x - frame.width / 2), round(frame.y - frame.height / 2)
    spans = {1: (top, top + round(frame.height), rows), 2: (left, left + round(frame.width), columns)}

    def beyond(axis: int) -> float:
        """How many times longer the frame is than what it holds of the photo."""
        first, last, _ = spans[axis]
        return (last - first) / (min(last, planes.shape[axis]) - max(first, 0))

    for axis in (1, 2):
        first, last, _ = spans[axis]
        if first >= 0 and last <= planes.shape[axis]:
            planes = planes.narrow(axis, first, last - first)
            spans[axis] = (0, last - first, spans[axis][2])
    # Axis by axis, the one that reaches less beyond the photo first: a frame around a strip is never made up in full.
    for axis in sorted(spans, key=beyond):
        first, last, length = spans[axis]
        part = planes.index_select(axis, mirrored(first, last, planes.shape[axis]))
        planes = resize(part, size=(length, part.shape[2]) if axis == 1 else (part.shape[1], length))
    return planes


def _cut_turned(planes: Tensor, frame: Frame, rows: int, columns: int) -> Tensor:
    height, width = planes.shape[-2:]
    density = 2  # sampling at the density of the result would lose its finest detail
    step = frame.width / (density * columns)  # pixels of the photo from sample to sample
    margin = math.ceil(2 * max(step, 1)) + 1
    left, top, right, bottom = frame.bounds
    x0, x1 = _within(left - margin, right + margin, width)
    y0, y1 = _within(top - margin, bottom + margin, height)
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


def _within(first: float, last: float, length: int) -> tuple[int, int]:
    """Whole pixels around first..last that lie on an axis of `length`; at least those near an end that mirroring reaches."""
    reach = max(0.0, -first, last - length)  # beyond the photo it goes on mirrored
    low = max(0, math.floor(min(first, length - reach)))
    return low, min(length, math.ceil(max(last, reach)))
