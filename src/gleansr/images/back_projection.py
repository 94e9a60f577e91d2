"""Consistency of a result with its low-resolution input: PSNR, back-projection."""

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import RequestError
from gleansr.images.pixels import Rounding, quantize, to_byte_range
from gleansr.images.resize import degrade, resize

_STEP_SIZE = 1.5
"""Enlarging and shrinking by bicubic keeps from 0.23 (the finest checkerboard along both axes) to all of a difference, at scales from 2 up.
Any step below 2 converges; with this one an iteration leaves at most 0.66 of any difference."""
_TOLERANCE = 0.1 / 127.5
"""In [-1, 1]: a tenth of an 8-bit step, which leaves room for the result's own rounding."""
_MAX_ITERATIONS = 50


@plain_torch(grad=True)
def psnr(a: Tensor, b: Tensor, *, rounding: Rounding = "8-bit") -> Tensor:
    """Peak signal-to-noise ratio in dB (N) of images (N, C, H, W) in [-1, 1], over all channels jointly; infinite for equal ones.

    Both are clamped. `rounding="8-bit"` first rounds them to the 256 values of a stored image, as most programs do; "none" does not, as in
    mmagic's validation, the source of the paper's numbers.
    """
    error = (to_byte_range(a, rounding) - to_byte_range(b, rounding)).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)


@plain_torch(grad=True)
def consistency(lr: Tensor, result: Tensor, *, rounding: Rounding = "8-bit") -> Tensor:
    """PSNR (N) between the low-resolution input and the degraded result (see `degrade`); infinite where no pixel differs.

    lr (N, 3, h, w) and result (N, 3, s * h, s * w), in [-1, 1]. `rounding` applies to the result before it is degraded; both compared
    images have 8 bits either way.
    """
    scale = _scale(lr, result)
    result = quantize(result) if rounding == "8-bit" else result.clamp(-1, 1)
    return psnr(lr, degrade(result, scale))


def consistency_db(lr: Tensor, degraded: Tensor) -> float | None:
    """Consistency in dB, for reports: PSNR of an input (3, h, w) and a degraded result of that size, both in [-1, 1]; None, for JSON, if no
    pixel differs."""
    value = float(psnr(lr[None], degraded[None])[0])
    return None if value == float("inf") else round(value, 2)


@plain_torch()
def back_project(lr: Tensor, result: Tensor, *, strength: float = 1.0) -> Tensor:
    """The result, changed so that it shrinks to the input.

    Iterative back-projection (Irani and Peleg, "Improving resolution by image registration", 1991): the residual of the shrunk result is
    enlarged and added, until every pixel is within a tenth of an 8-bit step or after 50 iterations. Images stay in [-1, 1], so an input
    that no image shrinks to, such as a checkerboard of black and white pixels, is only approached.

    Args:
        lr: (..., h, w) in [-1, 1].
        result: (..., s * h, s * w) for a whole s; clamped to [-1, 1].
        strength: 0 returns the (clamped) result, 1 the projected one; between them a share 1 - strength of the residual remains.

    Returns:
        An image of the shape of `result`, in [-1, 1].

    Raises:
        RequestError: the strength is not from 0 to 1, or the sizes do not fit.
    """
    if not 0 <= strength <= 1:
        raise RequestError(f"the strength of back-projection must be from 0 to 1, not {strength}")
    scale = _scale(lr, result)
    result = result.clamp(-1, 1)
    projected = result
    for _ in range(_MAX_ITERATIONS if strength else 0):
        residual = lr - resize(projected, scale=1 / scale)
        if float(residual.abs().max()) <= _TOLERANCE:
            break
        projected = (projected + _STEP_SIZE * resize(residual, scale=scale)).clamp(-1, 1)
    return torch.lerp(result, projected, strength)


def _scale(lr: Tensor, result: Tensor) -> int:
    scale, rest = divmod(result.shape[-1], lr.shape[-1])
    if rest or result.shape[-2] != scale * lr.shape[-2]:
        raise RequestError(
            f"the size of the result {tuple(result.shape[-2:])} is not a whole multiple of the input's {tuple(lr.shape[-2:])}"
        )
    return scale
