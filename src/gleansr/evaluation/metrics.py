"""How close a result is to the truth, to its input, and a set of results to a set of pictures. Numbers as the field reports them."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.errors import RequestError
from gleansr.resize import degrade

Rounding = Literal["8-bit", "none"]


def rounded(image: Tensor) -> Tensor:
    """A picture in [-1, 1], clamped, as it is after being stored with 8 bits: values (k - 127.5) / 127.5 for whole k from 0 to 255."""
    return (_steps(image, "8-bit") - 127.5).div(127.5).to(image.dtype)


def psnr(a: Tensor, b: Tensor, *, rounding: Rounding = "8-bit") -> Tensor:
    """Peak signal-to-noise ratio in dB (N) of pictures (N, C, H, W) in [-1, 1], over all channels jointly; infinite for equal ones.

    Both are clamped. `rounding="8-bit"` rounds them to the 256 values of a stored picture first, as most programs do; "none" does not, as
    mmagic's validation, from which the paper's figures come.
    """
    error = (_steps(a, rounding) - _steps(b, rounding)).square().mean((1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def ssim(a: Tensor, b: Tensor, *, rounding: Rounding = "8-bit") -> Tensor:
    """Structural similarity (N), at most 1, of pictures (N, C, H, W) in [-1, 1]: of each channel, averaged over channels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), with its Gaussian window of 11x11
    and deviation 1.5, K1 = 0.01, K2 = 0.03; only where the window lies wholly within the picture. `rounding` as in `psnr`.
    """
    if min(a.shape[-2:]) < 11:
        raise RequestError(f"ssim needs pictures of at least 11x11 pixels, not {a.shape[-1]}x{a.shape[-2]}")
    x, y = _steps(a, rounding).flatten(0, 1)[:, None], _steps(b, rounding).flatten(0, 1)[:, None]  # (N * C, 1, H, W)
    window = torch.exp(-(torch.arange(-5, 6, dtype=x.dtype, device=x.device) ** 2) / (2 * 1.5**2))
    window = window / window.sum()

    def local_mean(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = local_mean(x), local_mean(y)
    variances = local_mean(x * x) - mean_x**2 + local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return similarity.mean((1, 2, 3)).view(len(a), -1).mean(1)


def consistency(low: Tensor, result: Tensor, *, rounding: Rounding = "8-bit") -> Tensor:
    """PSNR (N) between the low-resolution input and the result shrunk again as `degrade` does it.

    low (N, 3, h, w) and result (N, 3, s * h, s * w), in [-1, 1]. `rounding` is that of the result before it is shrunk; what is compared has
    8 bits either way.
    """
    scale, rest = divmod(result.shape[-1], low.shape[-1])
    if rest or result.shape[-2] != scale * low.shape[-2]:
        raise RequestError(f"a result of {tuple(result.shape[-2:])} is no whole multiple of the input's {tuple(low.shape[-2:])}")
    result = rounded(result) if rounding == "8-bit" else result.clamp(-1, 1)
    return psnr(low, degrade(result, scale))


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features (N, D) and (M, D); N and M may differ and be below D.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with the unbiased covariances A and B, in float64 (Heusel et al., 2017). With
    R_a^T R_a = A and R_b^T R_b = B from QR decompositions of the centred features, the trace of the root is the sum of the singular values
    of R_a R_b^T: no root of a singular matrix is taken, and none of D x D is formed where there are fewer pictures than features.
    The value depends on the number of pictures: compare sets of one size only.
    """
    if min(len(features_a), len(features_b)) < 2 or features_a.shape[1:] != features_b.shape[1:]:
        raise RequestError(f"two sets (N, D) of at least 2 are wanted, not {tuple(features_a.shape)} and {tuple(features_b.shape)}")
    means, roots = [], []
    for features in (features_a.double(), features_b.double()):
        means.append(features.mean(0))
        roots.append(torch.linalg.qr(features - means[-1], mode="r").R / (len(features) - 1) ** 0.5)  # R^T R is the covariance
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    distance = (means[0] - means[1]).square().sum() + sum(root.square().sum() for root in roots) - 2 * cross
    return max(float(distance), 0.0)  # of equal sets it may come out as -1e-12


def _steps(image: Tensor, rounding: Rounding) -> Tensor:
    """A picture in [-1, 1], clamped, as values in 0..255 in float64."""
    if rounding not in ("8-bit", "none"):
        raise RequestError(f"rounding is {rounding!r}, but must be '8-bit' or 'none'")
    steps = image.double().clamp(-1, 1).add(1).mul(127.5)
    return steps.round() if rounding == "8-bit" else steps
