"""Random degradations: of thumbnails (blur, downscaling by various kernels, noise, JPEG or WebP), and of blind face restoration.

Random chains follow Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution" (ICCV 2021) and Wang
et al., "Real-ESRGAN" (ICCVW 2021); the ranges are narrower, since a thumbnail of a few pixels tolerates less.
"""

import io
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from gleansr.configs import Range, check
from gleansr.images.pixels import from_bytes, to_bytes
from gleansr.images.resize import degrade

Share = Annotated[float, Range(0, 1)]
Interval = Annotated[tuple[float, float], Range(0)]

_ANTIALIASED = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
}
_ALIASED = {"aliased-bilinear": Image.Resampling.BILINEAR, "nearest": Image.Resampling.NEAREST}
KERNELS = (*_ANTIALIASED, *_ALIASED)
"""Downscaling kernels. The first four average over all pixels, as Pillow does; the others sample one or four of them."""

_BLIND_KERNEL = 41
"""Width of `degrade_blind`'s blur kernel at 1024 px; it scales with the image, as the sigmas do."""
_MODES = ("bilinear", "area", "bicubic")


@dataclass(frozen=True)
class RealConfig:
    """Ranges of `degradation = "real"`. A share is the probability of a step, a pair the range of its strength."""

    clean: Share = 0.2
    """Images that are only downscaled, by MATLAB's bicubic to 8 bits as in the paper."""
    blur: Share = 0.5
    """Images that a Gaussian blurs before downscaling."""
    blur_sigma: Interval = (0.1, 0.5)
    """Standard deviation of the blur in lr pixels."""
    strong_blur: Share = 0.15
    """Blurred images that use `strong_blur_sigma` instead."""
    strong_blur_sigma: Interval = (0.5, 1.0)
    """Standard deviation of a strong blur in lr pixels."""
    anisotropic: Share = 0.5
    """Blurred images whose blur differs along two axes, at any angle."""
    shift: Share = 0.25
    """Images whose sampling grid is shifted."""
    shift_by: Annotated[tuple[float, float], Range(0, 4)] = (0.0, 0.25)
    """Shift along each axis in lr pixels, in either direction."""
    kernels: tuple[str, ...] = ("bicubic", "bicubic", "lanczos", "box", "bilinear", "bilinear", "aliased-bilinear", "nearest")
    """Downscaling kernels: bicubic, lanczos, box and bilinear average over all pixels; aliased-bilinear and nearest do not. A repeated name
    is drawn more often."""
    two_steps: Share = 0.25
    """Images that are downscaled in two steps, the first with averaging."""
    noise: Share = 0.5
    """Images with added noise."""
    noise_sigma: Interval = (0.0, 8.0)
    """Standard deviation of the noise in 8-bit values."""
    grey_noise: Share = 0.4
    """Noisy images with equal noise in the three channels."""
    compression: Share = 0.8
    """Images that are compressed last."""
    twice: Share = 0.2
    """Compressed images that are compressed twice."""
    webp: Share = 0.15
    """Compressions by WebP; the others are JPEG."""
    quality: Annotated[tuple[int, int], Range(1, 100)] = (40, 98)
    """Quality of the compression."""
    subsampling: Share = 0.5
    """JPEGs with 4:2:0 chroma subsampling; the others are 4:4:4."""

    def __post_init__(self):
        pairs = ("blur_sigma", "strong_blur_sigma", "shift_by", "noise_sigma", "quality")
        unknown = [name for name in self.kernels if name not in KERNELS]
        check(
            self,
            *(
                (getattr(self, name)[0] <= getattr(self, name)[1], f"{name} must be [lowest, highest], not {list(getattr(self, name))}")
                for name in pairs
            ),
            (bool(self.kernels), "kernels must not be empty"),
            (not unknown, f"kernels must be of {', '.join(KERNELS)}, not {', '.join(unknown)}"),
        )


DEFAULT = RealConfig()


def degrade_real(image: Tensor, scale: int, seed: int, config: RealConfig = DEFAULT) -> Tensor:
    """Degrades `image` (3, H, W), sides multiples of `scale`, to lr (3, H / scale, W / scale), both uint8 RGB.

    In this order: blur, downscaling in one or two steps on a grid that may be shifted, noise, compression, by the probabilities and ranges
    of `config`. The result depends on `seed`, 0 to 2**64 - 1, alone.
    """
    rng = np.random.Generator(np.random.PCG64(seed))

    def happens(share: float) -> bool:
        return float(rng.random()) < share

    def uniform(interval: tuple[float, float]) -> float:
        return float(rng.uniform(*interval))

    if happens(config.clean):
        return to_bytes(degrade(from_bytes(image)[None], scale)[0])
    if happens(config.blur):
        interval = config.strong_blur_sigma if happens(config.strong_blur) else config.blur_sigma
        sigmas = (uniform(interval), uniform(interval))
        angle = uniform((0, math.pi))
        image = _blur(image, scale * sigmas[0], scale * sigmas[1 if happens(config.anisotropic) else 0], angle)
    height, width = (side // scale for side in image.shape[-2:])
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if happens(config.two_steps):
        # Log-uniform over the scales between 1 and `scale`, so that the second step is rarely a small one.
        share = scale ** -float(rng.uniform(0.1, 0.9))
        names = [name for name in config.kernels if name in _ANTIALIASED] or ["bicubic"]
        first = (max(width, round(pixels.width * share)), max(height, round(pixels.height * share)))
        pixels = _downscale(pixels, first, names[int(rng.integers(len(names)))], (0.0, 0.0))
    shift = (0.0, 0.0)
    if happens(config.shift):
        x, y = (uniform(config.shift_by) * (1 if happens(0.5) else -1) for _ in range(2))
        shift = (x, y)
    pixels = _downscale(pixels, (width, height), config.kernels[int(rng.integers(len(config.kernels)))], shift)
    if happens(config.noise):
        sigma, channels = uniform(config.noise_sigma), 1 if happens(config.grey_noise) else 3
        noisy = np.asarray(pixels, np.float32) + rng.normal(0, sigma, (height, width, channels)).astype(np.float32)
        pixels = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    if happens(config.compression):
        for _ in range(2 if happens(config.twice) else 1):
            quality = int(rng.integers(config.quality[0], config.quality[1] + 1))
            if happens(config.webp):
                pixels = _compress(pixels, "WEBP", quality)
            else:
                pixels = _compress(pixels, "JPEG", quality, subsampling=2 if happens(config.subsampling) else 0)
    return _to_tensor(pixels).contiguous()


def degrade_blind(gt: Tensor, in_size: int, generator: torch.Generator) -> Tensor:
    """gt (3, H, H) -> lr (3, in_size, in_size), both uint8: the degradation of blind face restoration.

    In this order: Gaussian blur, isotropic or (half of the time) anisotropic at any angle, sigma 0.2 to 10 pixels of a 1024 px image;
    downscaling by 1 to 32; colour noise of sigma 0 to 50; JPEG of quality 5 to 50; back to full size; area averaging to `in_size`.

    Source: the official configuration of GLEAN for 128 -> 1024 (mmagic), after Li et al., "Blind Face Restoration via Deep Multi-scale
    Component Dictionaries", ECCV 2020.
    """

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    def mode() -> str:
        return _MODES[int(torch.randint(len(_MODES), (), generator=generator))]

    size = gt.shape[-1]
    x = gt.float()
    sigma_x, sigma_y = uniform(0.2, 10), uniform(0.2, 10)
    isotropic, angle = uniform(0, 1) < 0.5, uniform(-math.pi, math.pi)
    x = _convolve(x, _gaussian_kernel(sigma_x, sigma_x if isotropic else sigma_y, angle, size / 1024))
    x = _interpolate(x, max(1, round(size * uniform(1 / 32, 1))), mode())
    x = x + torch.randn(x.shape, generator=generator) * uniform(0, 50)
    pixels = Image.fromarray(x.clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).numpy())
    x = _to_tensor(_compress(pixels, "JPEG", round(uniform(5, 50)))).float()
    x = _interpolate(x, size, mode()).clamp(0, 255)
    return functional.interpolate(x[None], size=(in_size, in_size), mode="area")[0].round().to(torch.uint8)


def _gaussian_kernel(sigma_x: float, sigma_y: float, angle: float, scale: float) -> Tensor:
    """Gaussian kernel of odd width, its axes rotated by `angle`."""
    half = max(1, round(_BLIND_KERNEL // 2 * scale))
    grid = torch.arange(-half, half + 1, dtype=torch.float32)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((along / (sigma_x * scale)) ** 2 + (across / (sigma_y * scale)) ** 2))
    return kernel / kernel.sum()


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """x (3, H, W) convolved with the kernel, mirrored at the border. It uses an FFT: at 1024 px the kernel has 1,681 taps."""
    half = kernel.shape[0] // 2
    padded = functional.pad(x[None], (half,) * 4, mode="reflect")[0]
    shape = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel, s=shape)
    return torch.fft.irfft2(spectrum, s=shape)[:, 2 * half :, 2 * half :]


def _interpolate(x: Tensor, size: int, mode: str) -> Tensor:
    options = {} if mode == "area" else {"align_corners": False}
    return functional.interpolate(x[None], size=(size, size), mode=mode, **options)[0]


def fixed_seed(index: int) -> int:
    """The seed that degrades the image of that index in a test set, the same in training, evaluation and comparison."""
    return int(np.random.SeedSequence(0, spawn_key=(index,)).generate_state(1, np.uint64)[0])


def _blur(image: Tensor, sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """Gaussian blur of image (3, H, W), uint8: sigmas in pixels along axes rotated by `angle`; mirrored at the border."""
    margin = min(math.ceil(3 * max(sigma_x, sigma_y)), min(image.shape[-2:]) - 1)
    padded = functional.pad(image[None].float(), (margin,) * 4, mode="reflect")[0]
    height, width = padded.shape[-2:]
    y, x = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    gaussian = torch.exp(-2 * math.pi**2 * ((along * sigma_x) ** 2 + (across * sigma_y) ** 2))
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * gaussian, s=(height, width))
    return blurred[:, margin : height - margin, margin : width - margin].round().clamp(0, 255).to(torch.uint8)


def _downscale(image: Image.Image, size: tuple[int, int], kernel: str, shift: tuple[float, float]) -> Image.Image:
    """Resizes `image` to `size` (width, height) on a sampling grid offset by `shift` (x, y), in pixels of the result."""
    step_x, step_y = image.width / size[0], image.height / size[1]
    left, top, width, height = shift[0] * step_x, shift[1] * step_y, image.width, image.height
    if shift != (0.0, 0.0):
        margin = math.ceil(max(abs(left), abs(top)))
        image = Image.fromarray(np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
        left, top = left + margin, top + margin
    if kernel in _ANTIALIASED:
        return image.resize(size, _ANTIALIASED[kernel], box=(left, top, left + width, top + height))
    return image.transform(size, Image.Transform.AFFINE, (step_x, 0, left, 0, step_y, top), resample=_ALIASED[kernel])


def _compress(image: Image.Image, format_name: str, quality: int, **options: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format=format_name, quality=quality, **options)
    with Image.open(file) as stored:
        return stored.convert("RGB")


def _to_tensor(image: Image.Image) -> Tensor:
    """(3, H, W), uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
