"""The enlarged photo around the objects, in bands of rows: by bicubic, or by a network in tiles."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gleansr.errors import ImageError, RequestError
from gleansr.images.resize import resize
from gleansr.inference.upscaler import Upscaler
from gleansr.photos.sampling import enlarged


class Band(NamedTuple):
    """Some rows of an enlarged photo."""

    first: int
    """Their place in it."""
    rows: int
    make: Callable[[], Tensor]
    """(C, rows, width) in about [0, 1]; in any thread."""


_ROWS = 32
"""Of the photo in a band: few enough for a band to stay in the processor's cache for the steps that follow."""


def bicubic_bands(planes: Tensor, factor: int) -> Iterator[Band]:
    """planes (C, H, W) in [0, 1], enlarged by bicubic."""
    height = planes.shape[1]
    for first in range(0, height, _ROWS):
        last = min(height, first + _ROWS)
        yield Band(first * factor, (last - first) * factor, partial(enlarged, planes, factor, first, last))


class BackgroundModel:
    """Enlarges photos by a network that takes any size.

    A photo is cut into tiles. Each reaches `overlap` pixels beyond its own, of which the outer half, where the tile's end shows, is
    thrown away, and the inner half fades into the neighbour; the weights of all tiles sum to 1. Where the network's receptive field is
    within half of the overlap, the result does not depend on the tiles. What the network makes is brought to the factor by
    `gleansr.resize`.
    """

    def __init__(self, upscaler: Upscaler, *, overlap: int = 32, tile: int = 192):
        """
        Args:
            upscaler: its method runs for one tile at a time, under a lock, whichever thread calls.
            overlap: pixels of the photo; rounded up to a multiple of 8, so that tiles begin where networks that fold pixels do.
            tile: pixels of the photo that are a tile's own; rounded up likewise, and at least the overlap.

        Raises:
            RequestError: the method takes images of one size.
        """
        if upscaler.input_size is not None:
            raise RequestError(
                "the background takes a network of any size, an ESRGAN, an ESRGAN+ or a plain one; "
                f"{upscaler.about.name or 'this one'} takes {upscaler.input_size} pixels exactly"
            )
        self.upscaler = upscaler
        self.overlap = -(-overlap // 8) * 8
        self.tile = max(-(-tile // 8) * 8, self.overlap)
        self._lock = threading.Lock()

    def bands(self, planes: Tensor, factor: int) -> Iterator[Band]:
        """planes (3 or 4, H, W) in [0, 1], of which the fourth is enlarged by bicubic."""
        height, width = planes.shape[-2:]
        rows, columns = self._windows(height, factor), self._windows(width, factor)
        pending = torch.zeros(3, 0, width * factor)  # rows that the next row of tiles adds to
        done = 0
        for i, (top, bottom, down) in enumerate(rows):
            total = torch.zeros(3, bottom * factor - done, width * factor)
            total[:, : pending.shape[1]] = pending
            for left, right, across in columns:
                tile = self._enlarged(planes[:3, top:bottom, left:right], factor)
                total[:, top * factor - done :, left * factor : right * factor] += tile * down[:, None] * across
            ready = rows[i + 1][0] * factor if i + 1 < len(rows) else height * factor
            band = total[:, : ready - done]
            if len(planes) > 3:
                band = torch.cat([band, enlarged(planes[3:], factor, done // factor, ready // factor)])
            yield Band(done, band.shape[1], partial(_as_it_is, band))
            pending, done = total[:, ready - done :], ready

    def _windows(self, length: int, factor: int) -> list[tuple[int, int, Tensor]]:
        """First and last pixel of each tile along an axis of the photo, and its weights (factor * pixels)."""
        tiles, fade = [], self.overlap // 2
        places = torch.arange(length * factor) + 0.5
        total = torch.zeros(length * factor)
        for first in range(0, length, self.tile):
            last = min(length, first + self.tile)
            start, end = max(0, first - self.overlap), min(length, last + self.overlap)
            inside = torch.ones(())
            if first > 0:
                inside = ((places / factor - first) / (2 * fade) + 0.5).clamp(0, 1)
            if last < length:
                inside = inside * (0.5 - (places / factor - last) / (2 * fade)).clamp(0, 1)
            window = inside.expand(len(places))[start * factor : end * factor]
            total[start * factor : end * factor] += window
            tiles.append((start, end, window))
        return [(start, end, window / total[start * factor : end * factor]) for start, end, window in tiles]

    def _enlarged(self, tile: Tensor, factor: int) -> Tensor:
        """(3, h, w) in [0, 1] -> (3, factor * h, factor * w) in [0, 1]."""
        with self._lock:
            made = self.upscaler.runner([tile * 2 - 1]).images[0]
        if not bool(made.isfinite().all()):
            raise ImageError("the background network made NaN or infinite values; try --precision float32")
        large = (made.clamp(-1, 1) + 1) / 2
        return resize(large, size=(tile.shape[1] * factor, tile.shape[2] * factor)) if self.upscaler.scale != factor else large


def _as_it_is(band: Tensor) -> Tensor:
    return band
