"""Pasting objects back into the enlarged photo.

Let `up` be the model's input, enlarged by bicubic, and `out` its output. Within an object's mask m, the enlarged photo E becomes

    E + m * ( W(detail) - g * (E - W(up)) )        detail = (out - up) - coarse(out - up)

where W warps the object's square to its position. Colour and coarse structure stay the photo's, and the model's detail is added. It
replaces the photo's own detail beyond the model's input (E - W(up)) where the model changed anything: g is 1 for changes above about two
8-bit steps, 0 elsewhere. With g = 1 the photo is replaced by the model's output in the photo's colours; a model that only interpolates
has no detail and leaves the photo unchanged, whatever W is.
"""

import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from gleansr.errors import ImageError
from gleansr.images.codec import unpremultiply
from gleansr.photos.align import Frame
from gleansr.photos.background import Band
from gleansr.photos.sampling import enlarge, to_size

FEATHER = 0.12
"""Share of the side. In frames of FFHQ and AFHQ it excludes eyes, nose and mouth, and is wide enough to hide the border."""

_COARSE = 16
"""Cells along the longer side that take the photo's colours; at most half of the model's input pixels."""
_MAX_THREADS = 8
_CHANGED = (2 / 255, 6 / 255)
"""In [-1, 1], one and three 8-bit steps: g is 0 where the model's detail is below the first, 1 above the second."""


@dataclass(frozen=True)
class Patch:
    """An object with the model's input and output."""

    frame: Frame
    lr: Tensor
    """(3, rows, columns) in [-1, 1]: the frame's pixels between the bars."""
    sr: Tensor
    """(3, scale * rows, scale * columns) in [-1, 1]."""
    bar: int = 0
    """Rows of `lr` above and below the frame's pixels."""
    keep_detail: float = 0.0
    """Share of the photo's own detail that is kept, see `PhotoConfig`."""
    resolved: int | None = None
    """Columns of the frame that the photo resolves, whose detail is kept; None: all pixels of the frame."""


class Layer:
    """A patch at its position in the enlarged photo."""

    def __init__(self, patch: Patch, shape: tuple[int, int], scale: int, *, feather: float):
        """
        Args:
            patch: the object.
            shape: height and width of the photo.
            scale: of the result.
            feather: width of the fade, as a share of the longer side of the frame.
        """
        self.frame, self.scale = patch.frame, scale
        self._patch = patch
        self._planes: Tensor | None = None
        self._lock = threading.Lock()
        frame = patch.frame
        height, width = shape
        left, top, right, bottom = frame.bounds
        self.left, self.top = max(0, math.floor(left * scale)), max(0, math.floor(top * scale))
        self.right, self.bottom = min(width * scale, math.ceil(right * scale)), min(height * scale, math.ceil(bottom * scale))
        fade = max(feather * max(frame.width, frame.height), 1e-6)
        self._fade = (fade / frame.width, fade / frame.height)
        # A side at or beyond the photo's border has nothing to fade into.
        upright = frame.angle == 0
        self._open = (upright and left <= 0, upright and right >= width), (upright and top <= 0, upright and bottom >= height)

    def weights(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """The opacity (rows, columns) in [0, 1] of rows first..last - 1 of the result, in the layer's columns, and the layer's priority
        where layers overlap, which increases towards the centre of the frame."""
        u, v = self._coordinates(first, last)  # for an upright frame a row and a column, broadcast only at the end
        mask_u, mask_v = (_edges(axis, fade, open_) for axis, fade, open_ in zip((u, v), self._fade, self._open, strict=True))
        mask = mask_u * mask_v
        return mask, mask * ((4 * u * (1 - u)).clamp(min=0) ** 4 * (4 * v * (1 - v)).clamp(min=0) ** 4 + 1e-4)

    def planes(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """For the same pixels: g (1, rows, columns), and the replacement of g * E, (3, rows, columns)."""
        with self._lock:
            planes = self._planes = self._compute() if self._planes is None else self._planes
        across, down = self.frame.width * self.scale, self.frame.height * self.scale
        if self.frame.angle == 0 and planes.shape[-2:] == (round(down), round(across)):
            x, y = (round(self.frame.x * self.scale - across / 2), round(self.frame.y * self.scale - down / 2))
            part = planes[:, first - y : last - y, self.left - x : self.right - x]
        else:
            u, v = self._coordinates(first, last)
            grid = torch.stack(torch.broadcast_tensors(u * 2 - 1, v * 2 - 1), -1)
            part = F.grid_sample(planes[None], grid[None], mode="bicubic", padding_mode="border", align_corners=False)[0]
        return part[3:].clamp(0, 1), part[:3]

    def meets(self, other: "Layer") -> bool:
        """Whether the bounds of both overlap."""
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    def release(self) -> None:
        """Frees the memory that only its own rows need."""
        self._planes = None

    def _coordinates(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Frame coordinates of pixels of the result; see `Frame.coordinates`."""
        # Differences from the centre are small, so float32 is exact enough for photos of any size.
        xs = torch.arange(self.left, self.right, dtype=torch.float64).add(0.5) / self.scale
        ys = torch.arange(first, last, dtype=torch.float64).add(0.5)[:, None] / self.scale
        u, v = self.frame.coordinates(xs, ys)
        return u.float(), v.float()

    def _compute(self) -> Tensor:
        """detail + g * up, and g, (4, h, w), at the lower density of the result's and the model's."""
        patch = self._patch
        lr, sr = patch.lr, patch.sr
        scale = sr.shape[-1] // lr.shape[-1]
        rows = slice(patch.bar * scale, sr.shape[1] - patch.bar * scale)
        sr, up = sr[:, rows].clamp(-1, 1), enlarge(lr, scale)[:, rows].clamp(-1, 1)
        height = max(1, min(up.shape[1], round(self.frame.height * self.scale)))
        width = max(1, min(up.shape[2], round(self.frame.width * self.scale)))
        detail, up = to_size(sr - up, height, width), to_size(up, height, width)
        cells = min(_COARSE, lr.shape[-1] / 2) / max(sr.shape[-2:])  # per pixel of the model's output
        coarse = (max(1, round(cells * sr.shape[1])), max(1, round(cells * sr.shape[2])))
        added = detail - to_size(to_size(detail, *coarse), height, width)
        if patch.keep_detail:
            # The model only adds detail finer than the photo's.
            columns = patch.resolved or self.frame.width
            fine = (min(height, round(columns * self.frame.height / self.frame.width)), min(width, round(columns)))
            finer = detail - to_size(to_size(detail, *fine), height, width) if max(fine) > max(coarse) else added
            added = torch.lerp(added, finer, patch.keep_detail)
        replaced = _changed(added) * (1 - patch.keep_detail)
        planes = torch.cat([added + replaced * (up + 1), replaced])
        planes[:3] /= 2  # from the range [-1, 1] to [0, 1]
        return planes


def paste(
    bands: Iterable[Band],
    shape: tuple[int, int],
    scale: int,
    patches: Iterable[Patch],
    *,
    feather: float | None = None,
) -> Image.Image:
    """The enlarged photo with its objects.

    Where frames overlap, each pixel mostly shows the object whose centre is nearer; the order of the patches does not matter.

    Args:
        bands: the enlarged photo from top to bottom: 3 planes, or 4 with premultiplied colour.
        shape: height and width of the photo.
        scale: of the result.
        patches: the objects.
        feather: see `PhotoConfig`.

    Raises:
        ImageError: the model made NaN or infinite values.
    """
    height, width = shape[0] * scale, shape[1] * scale
    share = FEATHER if feather is None else feather
    layers = []
    for patch in sorted(patches, key=lambda patch: (patch.frame.y, patch.frame.x, patch.frame.width, patch.frame.angle)):
        if not bool(patch.sr.sum().isfinite()):
            raise ImageError("the model made NaN or infinite values; try --precision float32")
        layers.append(Layer(patch, shape, scale, feather=share))
    canvas: Tensor | None = None
    pending: deque[tuple[Band, Future[Tensor]]] = deque()

    def store_next() -> None:
        nonlocal canvas
        band, future = pending.popleft()
        rows = future.result()
        if canvas is None:
            canvas = torch.empty(height, width, rows.shape[-1], dtype=torch.uint8)
        last = band.first + band.rows
        canvas[band.first : last] = rows
        for layer in layers:
            if band.first < layer.bottom <= last:
                layer.release()

    # Bands are independent; each runs in one thread.
    torch_threads, threads = torch.get_num_threads(), min(_MAX_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "gleansr-paste", partial(torch.set_num_threads, 1)) as pool:
        for band in bands:
            pending.append((band, pool.submit(_render, band, layers)))
            if len(pending) > 2 * threads:
                store_next()
        while pending:
            store_next()
    torch.set_num_threads(torch_threads)  # the workers' setting is partly global
    return Image.fromarray(np.asarray(canvas))


def _render(band: Band, layers: Sequence[Layer]) -> Tensor:
    """A band with its layers, (rows, width, C) in 0..255."""
    first, last = band.first, band.first + band.rows
    planes = _blend(band.compute(), first, [layer for layer in layers if layer.top < last and layer.bottom > first])
    if len(planes) > 3:
        alpha = planes[3:].clamp(0, 1)
        planes = torch.cat([unpremultiply(torch.minimum(planes[:3].clamp(min=0), alpha), alpha), alpha])
    # Rounds half up; adding and truncating is three times as fast as rounding.
    return planes.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)


def _blend(band: Tensor, first: int, layers: list[Layer]) -> Tensor:
    """Blends layers into a band of the enlarged photo, whose row 0 is the result's row `first`."""
    last = first + band.shape[1]
    overlapping = [layer for layer in layers if any(layer is not other and layer.meets(other) for other in layers)]
    for layer in layers:
        if layer not in overlapping:
            top, bottom = max(first, layer.top), min(last, layer.bottom)
            area = band[:3, top - first : bottom - first, layer.left : layer.right]
            weight, _ = layer.weights(top, bottom)
            replaced, new = layer.planes(top, bottom)
            area.copy_(torch.addcmul(area * (1 - weight * replaced), weight, new))
    if not overlapping:
        return band
    spans = [(max(first, layer.top), min(last, layer.bottom)) for layer in overlapping]
    left, right = min(layer.left for layer in overlapping), max(layer.right for layer in overlapping)
    top, bottom = min(span[0] for span in spans), max(span[1] for span in spans)
    columns = [slice(layer.left - left, layer.right - left) for layer in overlapping]
    areas = [(slice(start - top, end - top), part) for (start, end), part in zip(spans, columns, strict=True)]
    weights = [layer.weights(*span) for layer, span in zip(overlapping, spans, strict=True)]
    priorities = torch.zeros(bottom - top, right - left)
    for area, (_, priority) in zip(areas, weights, strict=True):
        priorities[area] += priority
    kept, added = torch.ones(bottom - top, right - left), torch.zeros(3, bottom - top, right - left)
    for layer, span, area, (weight, priority) in zip(overlapping, spans, areas, weights, strict=True):
        replaced, new = layer.planes(*span)
        share = weight * priority / priorities[area].clamp(min=1e-30)
        kept[area] -= share * replaced[0]
        added[:, area[0], area[1]] += share * new
    target = band[:3, top - first : bottom - first, left:right]
    target.copy_(target * kept + added)
    return band


def _edges(coordinates: Tensor, fade: float, open_: tuple[bool, bool]) -> Tensor:
    """Weights that rise within `fade` from 0 at the ends of [0, 1] to 1; they stay 1 at open ends."""
    weight = torch.ones_like(coordinates)
    for distance, is_open in zip((coordinates, 1 - coordinates), open_, strict=True):
        if not is_open:
            share = (distance / fade).clamp(0, 1)
            weight = weight * share * share * (3 - 2 * share)
    return weight


def _changed(detail: Tensor) -> Tensor:
    """A smooth map (1, H, W) in [0, 1] of where the model's detail (3, H, W) changes anything."""
    height, width = detail.shape[-2:]
    cells = (min(height, 2 * _COARSE), min(width, 2 * _COARSE))
    amount = F.max_pool2d(F.adaptive_max_pool2d(detail.abs().amax(0)[None, None], cells), 3, 1, 1)
    low, high = _CHANGED
    share = ((amount - low) / (high - low)).clamp(0, 1)
    smooth = F.avg_pool2d(share, 3, 1, 1, count_include_pad=False)
    return F.interpolate(smooth, size=(height, width), mode="bilinear", align_corners=False)[0]
