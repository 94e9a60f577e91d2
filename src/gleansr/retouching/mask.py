"""Where an image was touched: found by its difference from the original, and faded at the border."""

import torch
import torch.nn.functional as F
from torch import Tensor

TOLERANCE = 0.01
"""Difference in [0, 1] that counts as none, beside the noise of an image that was saved anew with losses."""

_GRID = 512
"""Cells along the longer side on which regions are grown, filled and faded; what is finer is taken care of by hand."""


def touched(edited: Tensor, original: Tensor, tolerance: float = TOLERANCE) -> Tensor:
    """Where `edited` differs from `original`, both (C, H, W) in [0, 1]: (H, W) of bool.

    Noise, such as that of a JPEG that was saved again, is no touch: differences are averaged with their signs over 5 x 5 pixels, where
    noise cancels. What cancels there in nine of ten places is taken for the noise, unless most pixels are equal and there is none. A region
    counts where its difference somewhere exceeds the tolerance and four times the noise, and reaches as far as it exceeds 0.6
    of that.
    Holes in it, such as an even patch that was moved within itself, belong to it.
    """
    difference = edited - original
    changed = (difference != 0).any(0)
    exact = bool(changed.float().mean() < 0.5)
    region = torch.zeros_like(changed)
    if (box := bounds(changed)) is None:
        return region
    left, top, right, bottom = (max(0, box[0] - 2), max(0, box[1] - 2), box[2] + 2, box[3] + 2)
    region[top:bottom, left:right] = _touched(difference[:, top:bottom, left:right], tolerance, exact)
    return region


def _touched(difference: Tensor, tolerance: float, exact: bool) -> Tensor:
    mean, mean_size = (F.avg_pool2d(x[None], 5, 1, 2, count_include_pad=False)[0] for x in (difference, difference.abs()))
    signal = mean.abs().amax(0)[None]
    noise = 0.0 if exact else 4 * _quantile(mean_size.amax(0) - signal[0], 0.9)
    strong, weak = signal > tolerance + noise, signal > 0.6 * (tolerance + noise)
    cell = _cell(weak)
    region = _connected(_grown_to_cells(strong, cell), _grown_to_cells(weak, cell))
    holes = ~region & ~_connected(_border(region), ~region)  # what cannot be reached from the border
    fine = _at_pixels(region, cell, weak) & weak | _at_pixels(holes, cell, weak)
    return fine[0]


def grown(mask: Tensor, radius: int) -> Tensor:
    """`mask` (H, W) of bool with all pixels within `radius` of it, in a square; somewhat more where images are large."""
    cell = _cell(mask[None])
    cells = _grown_to_cells(mask[None], cell).float()
    return _at_pixels(_highest(cells, -(-radius // cell)) > 0, cell, mask[None])[0]


def faded(mask: Tensor, width: int) -> Tensor:
    """Weights (H, W) in [0, 1] that rise from 0 outside of `mask` (H, W) of bool to 1 inside, within about `width` pixels of its border.

    They are exactly 0 outside and 1 further inside. At the border of the image they do not fade.
    """
    if width < 2 or bool(mask.all()):
        return mask.float()
    cell = _cell(mask[None])
    radius = max(1, round(width / 2 / cell))
    outside = _grown_to_cells(~mask[None], cell).float()
    inside = 1 - _highest(outside, radius)
    padded = F.pad(inside[None], (radius,) * 4, mode="replicate")[0]
    half = radius // 2
    soft = padded
    for reach in (radius - half, half):  # two boxes make a tent, which has no corners to be seen
        soft = F.avg_pool2d(soft[None], 2 * reach + 1, 1)[0] if reach else soft
    large = F.interpolate(soft[None], scale_factor=float(cell), mode="bilinear", align_corners=False)[0] if cell > 1 else soft
    return large[0, : mask.shape[0], : mask.shape[1]].clamp(0, 1) * mask


def bounds(mask: Tensor) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of what is true in (H, W), the last two exclusive; None where nothing is."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _cell(mask: Tensor) -> int:
    """Pixels along a side of a cell."""
    return -(-max(mask.shape[-2:]) // _GRID)


def _grown_to_cells(mask: Tensor, cell: int) -> Tensor:
    """(1, H, W) of bool -> (1, rows, columns): the cells in which anything is true."""
    return F.max_pool2d(mask.float(), cell, ceil_mode=True) > 0 if cell > 1 else mask


def _at_pixels(cells: Tensor, cell: int, like: Tensor) -> Tensor:
    """(1, rows, columns) -> (1, H, W), the shape of `like`."""
    pixels = cells.repeat_interleave(cell, 1).repeat_interleave(cell, 2) if cell > 1 else cells
    return pixels[:, : like.shape[1], : like.shape[2]]


def _highest(values: Tensor, radius: int) -> Tensor:
    """The maximum of (1, H, W) over squares of 2 * radius + 1."""
    for kernel, padding in (((2 * radius + 1, 1), (radius, 0)), ((1, 2 * radius + 1), (0, radius))):
        values = F.max_pool2d(values, kernel, 1, padding)
    return values


def _connected(seeds: Tensor, within: Tensor) -> Tensor:
    """The parts of `within` that have a seed, neighbours being those to the side and above; (1, rows, columns) of bool."""
    found, rows, columns = (seeds & within)[0], _runs(within[0]), _runs(within[0].T)
    while True:
        wider = _along(_along(found, rows).T, columns).T
        if torch.equal(wider, found):
            return found[None]
        found = wider


def _runs(within: Tensor) -> Tensor:
    """A number for each run of true values along the rows of (H, W), 0 where false."""
    starts = within & ~F.pad(within, (1, 0))[:, :-1]
    return starts.flatten().cumsum(0).view_as(within) * within


def _along(found: Tensor, runs: Tensor) -> Tensor:
    """`found` spread along the runs that it is in."""
    reached = torch.zeros(int(runs.max()) + 1, dtype=torch.bool)
    reached[runs[found]] = True
    reached[0] = False
    return reached[runs]


def _border(like: Tensor) -> Tensor:
    border = torch.ones_like(like)
    border[:, 1:-1, 1:-1] = False
    return border


def _quantile(values: Tensor, share: float) -> float:
    """The value that a share of at most about a million of `values`, evenly taken, stays below."""
    sample = values.flatten()[:: max(1, values.numel() // 2**20)]
    return float(sample.kthvalue(max(1, round(share * len(sample)))).values)
