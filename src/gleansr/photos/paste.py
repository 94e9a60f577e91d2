"""Pasting objects back into the enlarged photo.

Let `up` be what the model got, enlarged by bicubic, and `out` what it made of it. Within an object's mask m the photo E, enlarged, becomes

    E + m * ( W(detail) - g * (E - W(up)) )        detail = (out - up) - what is coarse in that

where W takes the object's square to its place. Colour and coarse form stay the photo's, and the model's detail is added. What the photo
has there beyond what the model got to see (E - W(up)) makes way for it, where there is some: g is 1 where the model changed anything by
more than about two 8-bit steps, and 0 where it did not. With g = 1 this is replacing the photo by the model's output in the photo's
colours; a model that only interpolates has no detail, and the photo comes back whatever W is.
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
from gleansr.photos.sampling import enlarged, to_size

FEATHER = 0.12
"""Of the side: in frames like FFHQ's and AFHQ's that is outside of eyes, nose and mouth, and wide enough for no border to show."""

_COARSE = 16
"""Cells along the longer side of which the photo's colours hold, but no more than half of the pixels that the model gets."""
_MOST_THREADS = 8
_CHANGED = (2 / 255, 6 / 255)
"""In [-1, 1], one and three 8-bit steps: where the model's detail is below the first, g is 0; above the second it is 1."""


@dataclass(frozen=True)
class Piece:
    """An object and what the model made of it."""

    frame: Frame
    lr: Tensor
    """(3, rows, columns) in [-1, 1]: what lies in the frame, and the bars."""
    sr: Tensor
    """(3, scale * rows, scale * columns) in [-1, 1]."""
    bar: int = 0
    """Rows of `lr` above and below of what lies in the frame."""
    keep: float = 0.0
    """Share of the photo's own detail that is kept, see `PhotoConfig`."""
    resolved: int | None = None
    """Columns of the frame that the photo resolves, of which the detail is kept; None: as many as it has pixels."""


class Layer:
    """A piece at its place in the enlarged photo."""

    def __init__(self, piece: Piece, shape: tuple[int, int], factor: int, *, feather: float):
        """
        Args:
            piece: the object.
            shape: height and width of the photo.
            factor: how much larger the result is.
            feather: width of the fade, as a share of the longer side of the frame.
        """
        self.frame, self.factor = piece.frame, factor
        self._piece = piece
        self._planes: Tensor | None = None
        self._making = threading.Lock()
        frame = piece.frame
        height, width = shape
        left, top, right, bottom = frame.bounds
        self.left, self.top = max(0, math.floor(left * factor)), max(0, math.floor(top * factor))
        self.right, self.bottom = min(width * factor, math.ceil(right * factor)), min(height * factor, math.ceil(bottom * factor))
        fade = max(feather * max(frame.width, frame.height), 1e-6)
        self._fade = (fade / frame.width, fade / frame.height)
        # Where the frame ends with the photo or beyond, nothing is there to fade into.
        straight = frame.angle == 0
        self._open = (straight and left <= 0, straight and right >= width), (straight and top <= 0, straight and bottom >= height)

    def weights(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """For rows first..last - 1 of the result and the columns of the layer: how much of the layer shows, (rows, columns) in [0, 1], and
        its claim where others show too, which is the higher the nearer to the middle of the frame."""
        u, v = self._coordinates(first, last)  # of an upright frame a row and a column, which are multiplied last
        mask_u, mask_v = (_edges(place, fade, open_) for place, fade, open_ in zip((u, v), self._fade, self._open, strict=True))
        mask = mask_u * mask_v
        return mask, mask * ((4 * u * (1 - u)).clamp(min=0) ** 4 * (4 * v * (1 - v)).clamp(min=0) ** 4 + 1e-4)

    def planes(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """For the same pixels: g (1, rows, columns), and what replaces g * E, (3, rows, columns)."""
        with self._making:
            planes = self._planes = self._made() if self._planes is None else self._planes
        across, down = self.frame.width * self.factor, self.frame.height * self.factor
        if self.frame.angle == 0 and planes.shape[-2:] == (round(down), round(across)):
            x, y = (round(self.frame.x * self.factor - across / 2), round(self.frame.y * self.factor - down / 2))
            part = planes[:, first - y : last - y, self.left - x : self.right - x]
        else:
            u, v = self._coordinates(first, last)
            grid = torch.stack(torch.broadcast_tensors(u * 2 - 1, v * 2 - 1), -1)
            part = F.grid_sample(planes[None], grid[None], mode="bicubic", padding_mode="border", align_corners=False)[0]
        return part[3:].clamp(0, 1), part[:3]

    def meets(self, other: "Layer") -> bool:
        """Whether both may show at the same pixel."""
        return self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom

    def release(self) -> None:
        """Forgets what is only needed while its rows are made."""
        self._planes = None

    def _coordinates(self, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Where pixels of the result lie in the frame; see `Frame.coordinates`."""
        # Differences from the middle are small numbers, which float32 holds exactly enough in photos of any size.
        xs = torch.arange(self.left, self.right, dtype=torch.float64).add(0.5) / self.factor
        ys = torch.arange(first, last, dtype=torch.float64).add(0.5)[:, None] / self.factor
        u, v = self.frame.coordinates(xs, ys)
        return u.float(), v.float()

    def _made(self) -> Tensor:
        """The detail with g * up, and g, (4, h, w), at the density of the result or the model's if that is less."""
        piece = self._piece
        lr, sr = piece.lr, piece.sr
        scale = sr.shape[-1] // lr.shape[-1]
        rows = slice(piece.bar * scale, sr.shape[1] - piece.bar * scale)
        sr, up = sr[:, rows].clamp(-1, 1), enlarged(lr, scale)[:, rows].clamp(-1, 1)
        height = max(1, min(up.shape[1], round(self.frame.height * self.factor)))
        width = max(1, min(up.shape[2], round(self.frame.width * self.factor)))
        detail, up = to_size(sr - up, height, width), to_size(up, height, width)
        cells = min(_COARSE, lr.shape[-1] / 2) / max(sr.shape[-2:])  # for each pixel of the model's output
        coarse = (max(1, round(cells * sr.shape[1])), max(1, round(cells * sr.shape[2])))
        fresh = detail - to_size(to_size(detail, *coarse), height, width)
        if piece.keep:
            # What is finer than the photo shows is the model's to add.
            columns = piece.resolved or self.frame.width
            fine = (min(height, round(columns * self.frame.height / self.frame.width)), min(width, round(columns)))
            finer = detail - to_size(to_size(detail, *fine), height, width) if max(fine) > max(coarse) else fresh
            fresh = torch.lerp(fresh, finer, piece.keep)
        replaced = _changed(fresh) * (1 - piece.keep)
        both = torch.cat([fresh + replaced * (up + 1), replaced])
        both[:3] /= 2  # from differences in [-1, 1] to those in [0, 1]
        return both


def paste(
    bands: Iterable[Band],
    shape: tuple[int, int],
    factor: int,
    pieces: Iterable[Piece],
    *,
    feather: float | None = None,
) -> Image.Image:
    """The enlarged photo with its objects.

    Where frames overlap, each pixel is mostly the object's in whose middle it is more; the order of the pieces does not matter.

    Args:
        bands: the enlarged photo, 3 planes or, with premultiplied colour, 4, from top to bottom.
        shape: height and width of the photo.
        factor: how much larger the result is.
        pieces: the objects.
        feather: see `PhotoConfig`.

    Raises:
        ImageError: the model made NaN or infinite values.
    """
    height, width = shape[0] * factor, shape[1] * factor
    share = FEATHER if feather is None else feather
    layers = []
    for piece in sorted(pieces, key=lambda piece: (piece.frame.y, piece.frame.x, piece.frame.width, piece.frame.angle)):
        if not bool(piece.sr.sum().isfinite()):
            raise ImageError("the model made NaN or infinite values; try --precision float32")
        layers.append(Layer(piece, shape, factor, feather=share))
    canvas: Tensor | None = None
    waiting: deque[tuple[Band, Future[Tensor]]] = deque()

    def put() -> None:
        nonlocal canvas
        band, made = waiting.popleft()
        rows = made.result()
        if canvas is None:
            canvas = torch.empty(height, width, rows.shape[-1], dtype=torch.uint8)
        last = band.first + band.rows
        canvas[band.first : last] = rows
        for layer in layers:
            if band.first < layer.bottom <= last:
                layer.release()

    # Bands are independent of each other, and each step of one in a single thread.
    own, threads = torch.get_num_threads(), min(_MOST_THREADS, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads, "gleansr-paste", partial(torch.set_num_threads, 1)) as pool:
        for band in bands:
            waiting.append((band, pool.submit(_pasted, band, layers)))
            if len(waiting) > 2 * threads:
                put()
        while waiting:
            put()
    torch.set_num_threads(own)  # which those of the others change, in part
    return Image.fromarray(np.asarray(canvas))


def _pasted(band: Band, layers: Sequence[Layer]) -> Tensor:
    """A band with its layers, (rows, width, C) in 0..255."""
    first, last = band.first, band.first + band.rows
    planes = _with_layers(band.make(), first, [layer for layer in layers if layer.top < last and layer.bottom > first])
    if len(planes) > 3:
        alpha = planes[3:].clamp(0, 1)
        planes = torch.cat([unpremultiply(torch.minimum(planes[:3].clamp(min=0), alpha), alpha), alpha])
    # Half is rounded up; adding and cutting off is three times as fast as rounding.
    return planes.mul(255).add_(0.5).clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)


def _with_layers(band: Tensor, first: int, layers: list[Layer]) -> Tensor:
    """A band of the enlarged photo, whose row 0 is the result's row `first`, with the layers in it."""
    last = first + band.shape[1]
    crowded = [layer for layer in layers if any(layer is not other and layer.meets(other) for other in layers)]
    for layer in layers:
        if layer not in crowded:
            top, bottom = max(first, layer.top), min(last, layer.bottom)
            area = band[:3, top - first : bottom - first, layer.left : layer.right]
            weight, _ = layer.weights(top, bottom)
            replaced, new = layer.planes(top, bottom)
            area.copy_(torch.addcmul(area * (1 - weight * replaced), weight, new))
    if not crowded:
        return band
    spans = [(max(first, layer.top), min(last, layer.bottom)) for layer in crowded]
    left, right = min(layer.left for layer in crowded), max(layer.right for layer in crowded)
    top, bottom = min(span[0] for span in spans), max(span[1] for span in spans)
    places = [(slice(a - top, b - top), slice(layer.left - left, layer.right - left)) for layer, (a, b) in zip(crowded, spans, strict=True)]
    weights = [layer.weights(*span) for layer, span in zip(crowded, spans, strict=True)]
    claims = torch.zeros(bottom - top, right - left)
    for place, (_, claim) in zip(places, weights, strict=True):
        claims[place] += claim
    kept, added = torch.ones(bottom - top, right - left), torch.zeros(3, bottom - top, right - left)
    for layer, span, place, (weight, claim) in zip(crowded, spans, places, weights, strict=True):
        replaced, new = layer.planes(*span)
        share = weight * claim / claims[place].clamp(min=1e-30)
        kept[place] -= share * replaced[0]
        added[:, place[0], place[1]] += share * new
    area = band[:3, top - first : bottom - first, left:right]
    area.copy_(area * kept + added)
    return band


def _edges(place: Tensor, fade: float, open_: tuple[bool, bool]) -> Tensor:
    """Weights that rise from 0 at the ends of [0, 1] to 1 within `fade`, but at those that are open."""
    weight = torch.ones_like(place)
    for distance, is_open in zip((place, 1 - place), open_, strict=True):
        if not is_open:
            share = (distance / fade).clamp(0, 1)
            weight = weight * share * share * (3 - 2 * share)
    return weight


def _changed(detail: Tensor) -> Tensor:
    """Where the model changed anything: (1, H, W) in [0, 1], smooth, of its detail (3, H, W)."""
    height, width = detail.shape[-2:]
    size = detail.abs().amax(0)[None, None]
    cells = (min(height, 2 * _COARSE), min(width, 2 * _COARSE))
    size = F.max_pool2d(F.adaptive_max_pool2d(size, cells), 3, 1, 1)
    lr, sr = _CHANGED
    share = ((size - lr) / (sr - lr)).clamp(0, 1)
    soft = F.avg_pool2d(share, 3, 1, 1, count_include_pad=False)
    return F.interpolate(soft, size=(height, width), mode="bilinear", align_corners=False)[0]
