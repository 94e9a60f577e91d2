"""How true a result is to its input: measured, and made so."""

from typing import Literal

import torch
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import RequestError
from gleansr.images.resize import degrade, resize

Rounding = Literal["8-bit", "none"]

_STEP = 1.5
"""Of back-projection. Enlarging and shrinking by bicubic keeps from 0.23 (the finest checkerboard, of both axes) to all of a difference, at
scales from 2 up. Any step below 2 converges; with this one a round leaves at most 0.66 of a difference of any kind."""
_ENOUGH = 0.1 / 127.5
"""In [-1, 1]: a tenth of an 8-bit step, which leaves room for the result's own rounding."""
_MOST_ROUNDS = 50


def steps(image: Tensor, rounding: Rounding) -> Tensor:
    """An image in [-1, 1], clamped, as values in 0..255 in float64."""
    if rounding not in ("8-bit", "none"):
        raise RequestError(f"rounding is {rounding!r}, but must be '8-bit' or 'none'")
    image = image.cpu() if image.device.type == "mps" else image  # which has no float64
    values = image.double().clamp(-1, 1).add(1).mul(127.5)
    return values.round() if rounding == "8-bit" else values


def rounded(image: Tensor) -> Tensor:
    """An image in [-1, 1], clamped, as it is after being stored with 8 bits: values (k - 127.5) / 127.5 for whole k from 0 to 255."""
    return (steps(image, "8-bit") - 127.5).div(127.5).to(image.device, image.dtype)


@plain_torch(grad=True)
def psnr(a: Tensor, b: Tensor, *, rounding: Rounding = "8-bit") -> Tensor:
    """Peak signal-to-noise ratio in dB (N) of images (N, C, H, W) in [-1, 1], over all channels jointly; infinite for equal ones.

    Both are clamped. `rounding="8-bit"` rounds them to the 256 values of a stored image first, as most programs do; "none" does not, as
    mmagic's validation, from which the paper's figures come.
    """
    error = (steps(a, rounding) - steps(b, rounding)).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)


@plain_torch(grad=True)
def consistency(lr: Tensor, result: Tensor, *, rounding: Rounding = "8-bit") -> Tensor:
    """PSNR (N) between the low-resolution input and the result shrunk again as `degrade` does it; infinite where no pixel differs.

    lr (N, 3, h, w) and result (N, 3, s * h, s * w), in [-1, 1]. `rounding` is that of the result before it is shrunk; what is compared has
    8 bits either way.
    """
    scale = _scale(lr, result)
    result = rounded(result) if rounding == "8-bit" else result.clamp(-1, 1)
    return psnr(lr, degrade(result, scale))


@plain_torch()
def back_project(lr: Tensor, result: Tensor, *, strength: float = 1.0) -> Tensor:
    """The result, changed as little as bicubic allows so that it shrinks to the input.

    Iterative back-projection (Irani and Peleg, "Improving resolution by image registration", 1991): what the shrunk result lacks of the
    input is enlarged and added, until every pixel is within a tenth of an 8-bit step or 50 rounds are done. Images are kept in [-1, 1],
    so an input that no image shrinks to, such as a checkerboard of black and white pixels, is approached only.

    Args:
        lr: (..., h, w) in [-1, 1].
        result: (..., s * h, s * w) for a whole s; clamped to [-1, 1].
        strength: 0 leaves the (clamped) result as it is, 1 makes it consistent; between, the difference that is left is 1 - strength.

    Returns:
        An image of the shape of `result`, in [-1, 1].

    Raises:
        RequestError: the strength is not from 0 to 1, or the sizes do not fit.
    """
    if not 0 <= strength <= 1:
        raise RequestError(f"the strength of consistency must be from 0 to 1, not {strength}")
    scale = _scale(lr, result)
    result = result.clamp(-1, 1)
    projected = result
    for _ in range(_MOST_ROUNDS if strength else 0):
        lacking = lr - resize(projected, scale=1 / scale)
        if float(lacking.abs().max()) <= _ENOUGH:
            break
        projected = (projected + _STEP * resize(lacking, scale=scale)).clamp(-1, 1)
    return torch.lerp(result, projected, strength)


def _scale(lr: Tensor, result: Tensor) -> int:
    scale, rest = divmod(result.shape[-1], lr.shape[-1])
    if rest or result.shape[-2] != scale * lr.shape[-2]:
        raise RequestError(f"a result of {tuple(result.shape[-2:])} is no whole multiple of the input's {tuple(lr.shape[-2:])}")
    return scale
