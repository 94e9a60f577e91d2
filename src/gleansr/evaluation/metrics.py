"""Metrics of results against ground truths and inputs, and of sets of images."""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from gleansr.ambient import plain_torch
from gleansr.errors import RequestError
from gleansr.images.back_projection import consistency, psnr
from gleansr.images.pixels import Rounding, to_byte_range

__all__ = ["Rounding", "consistency", "frechet_distance", "ms_ssim", "psnr", "ssim"]

WINDOW = 11
"""Side of the Gaussian window of SSIM in pixels."""
MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the scales of MS-SSIM, the full size first."""
MS_SSIM_MIN_SIZE = WINDOW * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
"""Shortest side in pixels at which the window fits into the coarsest scale."""
FRECHET_MANY = 2048
"""Fréchet distances of fewer images give a warning; the literature uses 10,000 and more."""

logger = logging.getLogger(__name__)


@plain_torch(grad=True)
def ssim(a: Tensor, b: Tensor, *, rounding: Rounding = "8-bit") -> Tensor:
    """Structural similarity (N), at most 1, of images (N, C, H, W) in [-1, 1], averaged over channels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004), with a Gaussian window of 11x11 and
    deviation 1.5, K1 = 0.01, K2 = 0.03. Only positions with the whole window inside the image count, as in the authors' program and
    scikit-image; torchmetrics mirrors the border. `rounding` as in `psnr`.
    """
    if min(a.shape[-2:]) < WINDOW:
        raise RequestError(f"ssim needs images of at least {WINDOW}x{WINDOW} pixels, not {a.shape[-1]}x{a.shape[-2]}")
    return _similarity(to_byte_range(a, rounding), to_byte_range(b, rounding))[0]


@plain_torch(grad=True)
def ms_ssim(a: Tensor, b: Tensor, *, rounding: Rounding = "8-bit") -> Tensor:
    """Structural similarity over five scales (N), from 0 to 1, of images (N, C, H, W) in [-1, 1] with sides of 176 and more.

    Wang, Simoncelli, Bovik, "Multiscale structural similarity for image quality assessment" (2003), equation 7 with its exponents: contrast
    and structure of all five scales, luminance of the coarsest. Each scale averages 2x2 pixels of the previous one; the last row or column
    of an odd side is dropped (the authors' program mirrors it). Values are averaged over positions and channels at each scale, and
    negative means count as 0. So torchmetrics agrees except for the border, see `ssim`; TensorFlow and pytorch-msssim multiply the scales
    of each channel first. `rounding` as in `psnr`.
    """
    if min(a.shape[-2:]) < MS_SSIM_MIN_SIZE:
        raise RequestError(
            f"ms_ssim needs images of at least {MS_SSIM_MIN_SIZE}x{MS_SSIM_MIN_SIZE} pixels, not {a.shape[-1]}x{a.shape[-2]}: "
            "leave ms_ssim out of the metrics"
        )
    x, y = to_byte_range(a, rounding), to_byte_range(b, rounding)
    total = torch.ones(len(a), dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        if scale:
            x, y = F.avg_pool2d(x, 2), F.avg_pool2d(y, 2)
        similarity, contrast = _similarity(x, y)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        total = total * (similarity if last else contrast).clamp(min=0) ** weight
    return total


def _similarity(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM and its contrast-structure term, each (N), of images (N, C, H, W) in 0..255, averaged over positions and channels."""
    n, channels = x.shape[:2]
    x, y = x.flatten(0, 1)[:, None], y.flatten(0, 1)[:, None]  # (N * C, 1, H, W)
    window = torch.exp(-((torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2) ** 2) / (2 * 1.5**2))
    window = window / window.sum()

    def local_mean(image: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(image, window.view(1, 1, WINDOW, 1)), window.view(1, 1, 1, WINDOW))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = local_mean(x), local_mean(y)
    variances = local_mean(x * x) - mean_x**2 + local_mean(y * y) - mean_y**2
    contrast = (2 * (local_mean(x * y) - mean_x * mean_y) + c2) / (variances + c2)
    similarity = contrast * (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    similarity, contrast = (values.mean((1, 2, 3)).view(n, channels).mean(1) for values in (similarity, contrast))
    return similarity, contrast


@plain_torch(grad=True)
def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Squared Fréchet distance between Gaussians fitted to two sets of features (N, D) and (M, D); N and M may differ and be below D.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with the unbiased covariances A and B, in float64 (Heusel et al., 2017). With
    R_a^T R_a = A and R_b^T R_b = B from QR decompositions of the centred features, the trace of the root is the sum of the singular values
    of R_a R_b^T. This avoids the root of a singular matrix, and matrices of D x D if there are fewer images than features.
    The distance grows as the number of images falls: compare sets of one size only. Below 2,048 images a warning says so, once.

    Raises:
        RequestError: a set has fewer than two images, or numbers of features differ.
    """
    if min(len(features_a), len(features_b)) < 2 or features_a.shape[1:] != features_b.shape[1:]:
        raise RequestError(
            f"Fréchet distances need two sets (N, D) of at least 2 images, not {tuple(features_a.shape)} and {tuple(features_b.shape)}"
        )
    if min(len(features_a), len(features_b)) < FRECHET_MANY:
        _warn_small_set()
    means, roots = [], []
    for features in (features_a.double(), features_b.double()):
        means.append(features.mean(0))
        roots.append(torch.linalg.qr(features - means[-1], mode="r").R / (len(features) - 1) ** 0.5)  # R^T R is the covariance
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    distance = (means[0] - means[1]).square().sum() + sum(root.square().sum() for root in roots) - 2 * cross
    return max(float(distance), 0.0)  # equal sets may give -1e-12


@functools.cache  # warns once
def _warn_small_set() -> None:
    logger.warning(f"Fréchet distances of fewer than {FRECHET_MANY:,} images are biased upwards: compare sets of one size only")
