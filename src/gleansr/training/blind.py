"""The degradation of unknown strength for which blind face restoration is trained: blur, shrinking, noise and JPEG.

Source: the official code's configuration of GLEAN for 128 -> 1024 (mmagic), after Li et al., "Blind Face Restoration via Deep
Multi-scale Component Dictionaries", ECCV 2020.
"""

import io
import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

KERNEL = 41
"""Width of the blur's kernel at 1024 px; it scales with the image, as its sigmas do."""

MODES = ("bilinear", "area", "bicubic")


def degrade_blind(gt: Tensor, in_size: int, generator: torch.Generator) -> Tensor:
    """truth (3, H, H) bytes -> low-resolution image (3, in_size, in_size), bytes.

    In this order: Gaussian blur, isotropic or (half of the time) anisotropic at any angle, sigma 0.2 to 10 pixels of a 1024 px image;
    shrinking by 1 to 32; colour noise of sigma 0 to 50; JPEG of quality 5 to 50; back to full size; area averaging to `in_size`.
    """

    def uniform(lr: float, sr: float) -> float:
        return lr + (sr - lr) * float(torch.rand((), generator=generator))

    def mode() -> str:
        return MODES[int(torch.randint(len(MODES), (), generator=generator))]

    size = gt.shape[-1]
    x = gt.float()
    sigma_x, sigma_y = uniform(0.2, 10), uniform(0.2, 10)
    isotropic, angle = uniform(0, 1) < 0.5, uniform(-math.pi, math.pi)
    x = _blur(x, _gaussian(sigma_x, sigma_x if isotropic else sigma_y, angle, size / 1024))
    x = _resized(x, max(1, round(size * uniform(1 / 32, 1))), mode())
    x = x + torch.randn(x.shape, generator=generator) * uniform(0, 50)
    x = _jpeg(x, round(uniform(5, 50)))
    x = _resized(x, size, mode()).clamp(0, 255)
    return F.interpolate(x[None], size=(in_size, in_size), mode="area")[0].round().to(torch.uint8)


def _gaussian(sigma_x: float, sigma_y: float, angle: float, scale: float) -> Tensor:
    """Kernel of odd width with these deviations along axes turned by `angle`."""
    half = max(1, round(KERNEL // 2 * scale))
    grid = torch.arange(-half, half + 1, dtype=torch.float32)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((along / (sigma_x * scale)) ** 2 + (across / (sigma_y * scale)) ** 2))
    return kernel / kernel.sum()


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """x (3, H, W) convolved with the kernel, mirrored at the border. By FFT: at 1024 px the kernel has 1,681 taps."""
    half = kernel.shape[0] // 2
    padded = F.pad(x[None], (half,) * 4, mode="reflect")[0]
    shape = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, s=shape)
    return torch.fft.irfft2(spectrum, s=shape)[:, 2 * half :, 2 * half :]


def _resized(x: Tensor, size: int, mode: str) -> Tensor:
    options = {} if mode == "area" else {"align_corners": False}
    return F.interpolate(x[None], size=(size, size), mode=mode, **options)[0]


def _jpeg(x: Tensor, quality: int) -> Tensor:
    pixels = x.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
    with Image.open(file) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()
