"""The edit mask: detects edits by their difference from the original, and feathers their border."""

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 0.01
"""Difference in [0, 1] that is ignored, in addition to the noise of lossy compression."""

_GRID = 512
"""Maximum number of cells along the longer side for the morphology of masks."""


def find_edits(edited: Tensor, original: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """The boolean mask (H, W) of where `edited` differs from `original`, both (C, H, W) in [0, 1].

    Ignores noise, such as that of a recompressed JPEG: averages signed differences over 5 x 5 pixels, where noise cancels. The noise is
    the 0.9 quantile of the amount that cancels, or 0 if most pixels are equal. Thresholds with hysteresis: a region must exceed the
    tolerance plus four times the noise somewhere, and extends to where it exceeds 0.6 of that. Fills holes, such as a uniform
    patch moved within itself.
    """
    difference = edited - original
    changed = (difference != 0).any(0)
    exact = bool(changed.float().mean() < 0.5)
    mask = torch.zeros_like(changed)
    if (box := bounding_box(changed)) is None:
        return mask
    left, top, right, bottom = (max(0, box[0] - 2), max(0, box[1] - 2), box[2] + 2, box[3] + 2)
    mask[top:bottom, left:right] = _find_edits(difference[:, top:bottom, left:right], tolerance, exact)
    return mask


def _find_edits(difference: Tensor, tolerance: float, exact: bool) -> Tensor:
    mean, mean_abs = (F.avg_pool2d(x[None], 5, 1, 2, count_include_pad=False)[0] for x in (difference, difference.abs()))
    signal = mean.abs().amax(0)[None]
    noise = 0.0 if exact else 4 * _quantile(mean_abs.amax(0) - signal[0], 0.9)
    strong, weak = signal > tolerance + noise, signal > 0.6 * (tolerance + noise)
    cell = _cell_size(weak)
    region = _connected(_to_cells(strong, cell), _to_cells(weak, cell))
    holes = ~region & ~_connected(_border(region), ~region)  # unreachable from the border
    fine = _to_pixels(region, cell, weak) & weak | _to_pixels(holes, cell, weak)
    return fine[0]


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Dilates a boolean mask (H, W) by a square of `radius`, rounded up to whole cells in large images."""
    cell = _cell_size(mask[None])
    cells = _to_cells(mask[None], cell).float()
    return _to_pixels(_max_filter(cells, -(-radius // cell)) > 0, cell, mask[None])[0]


def feather_mask(mask: Tensor, width: int) -> Tensor:
    """Weights (H, W) in [0, 1] that rise from 0 to 1 inside a boolean mask (H, W), within about `width` pixels of its border.

    They are exactly 0 outside and exactly 1 further inside. They do not fade at the border of the image.
    """
    if width < 2 or bool(mask.all()):
        return mask.float()
    cell = _cell_size(mask[None])
    radius = max(1, round(width / 2 / cell))
    outside = _to_cells(~mask[None], cell).float()
    inside = 1 - _max_filter(outside, radius)
    half = radius // 2
    weights = F.pad(inside[None], (radius,) * 4, mode="replicate")[0]
    for reach in (radius - half, half):  # two box filters make a tent, without visible corners
        weights = F.avg_pool2d(weights[None], 2 * reach + 1, 1)[0] if reach else weights
    if cell > 1:
        weights = F.interpolate(weights[None], scale_factor=float(cell), mode="bilinear", align_corners=False)[0]
    return weights[0, : mask.shape[0], : mask.shape[1]].clamp(0, 1) * mask


def bounding_box(mask: Tensor) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of the true pixels of (H, W), the last two exclusive; None if there are none."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _cell_size(mask: Tensor) -> int:
    """Side of a cell in pixels."""
    return -(-max(mask.shape[-2:]) // _GRID)


def _to_cells(mask: Tensor, cell: int) -> Tensor:
    """(1, H, W) of bool -> (1, rows, columns): whether any pixel of a cell is true."""
    return F.max_pool2d(mask.float(), cell, ceil_mode=True) > 0 if cell > 1 else mask


def _to_pixels(cells: Tensor, cell: int, like: Tensor) -> Tensor:
    """(1, rows, columns) -> (1, H, W), the shape of `like`."""
    pixels = cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2) if cell > 1 else cells
    return pixels[:, : like.shape[1], : like.shape[2]]


def _max_filter(values: Tensor, radius: int) -> Tensor:
    """The maximum of (1, H, W) over squares of 2 * radius + 1."""
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        values = F.max_pool2d(values, kernel, 1, padding)
    return values


def _connected(seeds: Tensor, within: Tensor) -> Tensor:
    """The 4-connected components of `within` that contain a seed; (1, rows, columns) of bool."""
    region, rows, columns = (seeds & within)[0], _runs(within[0]), _runs(within[0].T)
    while True:
        larger = _spread(_spread(region, rows).T, columns).T
        if torch.equal(larger, region):
            return region[None]
        region = larger


def _runs(mask: Tensor) -> Tensor:
    """A number for each run of true values along the rows of (H, W), 0 where false."""
    starts = mask & ~F.pad(mask, (1, 0))[:, :-1]
    return starts.flatten().cumsum(0).view_as(mask) * mask


def _spread(region: Tensor, runs: Tensor) -> Tensor:
    """All runs that the region touches."""
    reached = torch.zeros(int(runs.max()) + 1, dtype=torch.bool)
    reached[runs[region]] = True
    reached[0] = False
    return reached[runs]


def _border(like: Tensor) -> Tensor:
    border = torch.ones_like(like)
    border[:, 1:-1, 1:-1] = False
    return border


def _quantile(values: Tensor, share: float) -> float:
    """A quantile of `values`, from a regular sample of at most about a million."""
    sample = values.flatten()[:: max(1, values.numel() // 2**20)]
    return float(sample.kthvalue(max(1, round(share * len(sample)))).values)
