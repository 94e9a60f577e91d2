"""The enlarged photo around the objects, in bands of rows: by bicubic, or by a network in tiles."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import ImageError, RequestError
from gleansr.images.resize import resize
from gleansr.inference.method import StepReport
from gleansr.inference.upscaler import Upscaler
from gleansr.photos.sampling import enlarge


class Band(NamedTuple):
    """Rows of an enlarged photo."""

    first: int
    """Index of the first row."""
    rows: int
    compute: Callable[[], Tensor]
    """Returns (C, rows, width) in about [0, 1]. Thread-safe."""


_MAX_THREADS = 16
_ROWS = 32
"""Rows of the photo per band: few enough for a band to stay in the processor's cache during the following steps."""


def bicubic_bands(planes: Tensor, scale: int) -> Iterator[Band]:
    """Enlarges planes (C, H, W) in [0, 1] by bicubic."""
    height = planes.shape[1]
    for first in range(0, height, _ROWS):
        last = min(height, first + _ROWS)
        yield Band(first * scale, (last - first) * scale, partial(enlarge, planes, scale, first, last))


class BackgroundModel:
    """Enlarges photos with a network that accepts any size.

    Cuts a photo into tiles. Each extends `overlap` pixels beyond its own area. The outer half of that, where border effects show, is
    discarded; the inner half fades into the neighbour. The weights of all tiles sum to 1. If the network's receptive field fits in
    half the overlap, the result does not depend on the tiling. `gleansr.resize` brings the network's output to the requested scale.
    """

    def __init__(self, upscaler: Upscaler, *, overlap: int = 32, tile: int = 448):
        """
        Args:
            upscaler: the network. A CPU runs a tile per core, since one tile with all cores takes longer; a GPU runs one at a time.
            overlap: pixels of the photo; rounded up to a multiple of 8, so that tiles start where pixel-unshuffling networks do.
            tile: side of a tile's own area in pixels of the photo; rounded up likewise, at least `overlap`.

        Raises:
            RequestError: the network accepts only one input size.
        """
        if upscaler.input_size is not None:
            raise RequestError(
                "the background takes a network of any size, an ESRGAN, an ESRGAN+ or a residual network; "
                f"{upscaler.about.name or 'this model'} takes {upscaler.input_size} pixels exactly"
            )
        self.upscaler = upscaler
        self.overlap = -(-overlap // 8) * 8
        self.tile = max(-(-tile // 8) * 8, self.overlap)
        self._threads = min(_MAX_THREADS, os.cpu_count() or 1) if upscaler.device.type == "cpu" else 1
        self._running = threading.Semaphore(self._threads)  # of all photos at once

    def bands(self, planes: Tensor, scale: int, report: StepReport | None = None) -> Iterator[Band]:
        """Enlarges planes (3 or 4, H, W) in [0, 1]; the fourth by bicubic. `report` receives the number of finished tiles, and of all."""
        height, width = planes.shape[-2:]
        rows, columns = self._windows(height, scale), self._windows(width, scale)
        pending = torch.zeros(3, 0, width * scale)  # rows to which the next row of tiles contributes
        done = finished = 0
        parts = (planes[:3, top:bottom, left:right] for top, bottom, _ in rows for left, right, _ in columns)
        tiles = in_order(partial(self._enlarge, scale=scale), parts, self._threads)
        for i, (top, bottom, down) in enumerate(rows):
            total = torch.zeros(3, bottom * scale - done, width * scale)
            total[:, : pending.shape[1]] = pending
            for left, right, across in columns:
                total[:, top * scale - done :, left * scale : right * scale] += next(tiles) * down[:, None] * across
                finished += 1
                if report:
                    report(finished, len(rows) * len(columns))
            ready = rows[i + 1][0] * scale if i + 1 < len(rows) else height * scale
            band = total[:, : ready - done]
            if len(planes) > 3:
                band = torch.cat([band, enlarge(planes[3:], scale, done // scale, ready // scale)])
            yield Band(done, band.shape[1], lambda band=band: band)
            pending, done = total[:, ready - done :], ready

    def _windows(self, length: int, scale: int) -> list[tuple[int, int, Tensor]]:
        """First and last pixel of each tile along an axis of the photo, and its weights (scale * pixels)."""
        tiles, fade = [], self.overlap // 2
        positions = torch.arange(length * scale) + 0.5
        total = torch.zeros(length * scale)
        for first in range(0, length, self.tile):
            last = min(length, first + self.tile)
            start, end = max(0, first - self.overlap), min(length, last + self.overlap)
            weights = torch.ones(())
            if first > 0:
                weights = ((positions / scale - first) / (2 * fade) + 0.5).clamp(0, 1)
            if last < length:
                weights = weights * (0.5 - (positions / scale - last) / (2 * fade)).clamp(0, 1)
            window = weights.expand(len(positions))[start * scale : end * scale]
            total[start * scale : end * scale] += window
            tiles.append((start, end, window))
        return [(start, end, window / total[start * scale : end * scale]) for start, end, window in tiles]

    @plain_torch()
    def _enlarge(self, tile: Tensor, scale: int) -> Tensor:
        """(3, h, w) in [0, 1] -> (3, scale * h, scale * w) in [0, 1]."""
        with self._running:
            sr = self.upscaler.runner([tile * 2 - 1]).images[0]
        if not bool(sr.isfinite().all()):
            raise ImageError("the background network made NaN or infinite values; try --precision float32")
        image = (sr.clamp(-1, 1) + 1) / 2
        return resize(image, size=(tile.shape[1] * scale, tile.shape[2] * scale)) if self.upscaler.scale != scale else image


def in_order(compute: Callable[[Tensor], Tensor], parts: Iterable[Tensor], threads: int) -> Iterator[Tensor]:
    """The results for all parts, in order. Several threads compute a few ahead, with one core each."""
    torch_threads = torch.get_num_threads()
    running: deque[Future[Tensor]] = deque()
    with ThreadPoolExecutor(threads, "gleansr-tile", partial(torch.set_num_threads, 1)) as pool:
        try:
            for part in parts:
                running.append(pool.submit(compute, part))
                if len(running) > threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
            torch.set_num_threads(torch_threads)  # the workers' setting is partly global
