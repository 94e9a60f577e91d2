"""What happens to thumbnails: blur, shrinking by whatever a program uses, noise, JPEG or WebP. All of it is drawn anew for each image.

The idea of random chains is that of Zhang et al., "Designing a Practical Degradation Model for Deep Blind Image Super-Resolution" (ICCV
2021) and Wang et al., "Real-ESRGAN" (ICCVW 2021); the ranges are narrower, because a thumbnail of a few pixels bears less.
"""

import io
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
"""How images are shrunk. The first four average over all pixels, as Pillow does; the others look at one or four of them only."""


@dataclass(frozen=True)
class RealConfig:
    """Ranges of `degradation = "real"`. A share is how often a step happens; a pair is the range from which its strength is drawn."""

    clean: Share = 0.2
    """Images that are only shrunk, by MATLAB's bicubic to 8 bits as in the paper."""
    blur: Share = 0.5
    """Images that are blurred before they are shrunk, by a Gaussian."""
    blur_sigma: Interval = (0.1, 0.5)
    """Its standard deviation in lr pixels."""
    strong_blur: Share = 0.15
    """Blurred images whose deviation is drawn from `strong_blur_sigma` instead."""
    strong_blur_sigma: Interval = (0.5, 1.0)
    """Standard deviation of a strong blur in lr pixels."""
    anisotropic: Share = 0.5
    """Blurred images whose blur differs along two axes, which lie at any angle."""
    shift: Share = 0.25
    """Images whose sampling grid is moved."""
    shift_by: Annotated[tuple[float, float], Range(0, 4)] = (0.0, 0.25)
    """By how many lr pixels along each axis, to either side."""
    kernels: tuple[str, ...] = ("bicubic", "bicubic", "lanczos", "box", "bilinear", "bilinear", "aliased-bilinear", "nearest")
    """How images are shrunk: bicubic, lanczos, box and bilinear average over all pixels; aliased-bilinear and nearest do not. A name that
    stands twice is drawn twice as often."""
    two_steps: Share = 0.25
    """Images that are shrunk in two steps, the first of which averages."""
    noise: Share = 0.5
    """Images that get noise."""
    noise_sigma: Interval = (0.0, 8.0)
    """Standard deviation of the noise in steps of 8 bits."""
    grey_noise: Share = 0.4
    """Noisy images whose noise is equal in the three channels."""
    compression: Share = 0.8
    """Images that are compressed after that."""
    twice: Share = 0.2
    """Compressed images that are compressed twice."""
    webp: Share = 0.15
    """Compressions that are WebP's; the others are JPEG's."""
    quality: Annotated[tuple[int, int], Range(1, 100)] = (40, 98)
    """Quality of the compression."""
    subsampling: Share = 0.5
    """JPEGs whose colours are stored at half the resolution (4:2:0); the others are 4:4:4."""

    def __post_init__(self):
        pairs = ("blur_sigma", "strong_blur_sigma", "shift_by", "noise_sigma", "quality")
        unknown = [name for name in self.kernels if name not in KERNELS]
        check(
            self,
            *(
                (getattr(self, name)[0] <= getattr(self, name)[1], f"{name} must be [lowest, highest], not {list(getattr(self, name))}")
                for name in pairs
            ),
            (bool(self.kernels), "kernels must name at least one"),
            (not unknown, f"kernels must be of {', '.join(KERNELS)}, not {', '.join(unknown)}"),
        )


DEFAULT = RealConfig()


def degrade_real(image: Tensor, scale: int, seed: int, config: RealConfig = DEFAULT) -> Tensor:
    """The lr image of `image` (3, H, W), uint8, sides multiples of `scale`: (3, H / scale, W / scale), uint8, RGB.

    All that is random follows from `seed`, 0 to 2**64 - 1. In this order: blur, shrinking in one or two steps on a grid that may be moved,
    noise, compression, each as often and as strong as `config` says.
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
        image = _blurred(image, scale * sigmas[0], scale * sigmas[1 if happens(config.anisotropic) else 0], angle)
    height, width = (side // scale for side in image.shape[-2:])
    pixels = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    if happens(config.two_steps):
        # Evenly over the factors between 1 and `scale`, so that the second step is mostly no small one.
        share = scale ** -float(rng.uniform(0.1, 0.9))
        names = [name for name in config.kernels if name in _ANTIALIASED] or ["bicubic"]
        first = (max(width, round(pixels.width * share)), max(height, round(pixels.height * share)))
        pixels = _shrunk(pixels, first, names[int(rng.integers(len(names)))], (0.0, 0.0))
    shift = (0.0, 0.0)
    if happens(config.shift):
        x, y = (uniform(config.shift_by) * (1 if happens(0.5) else -1) for _ in range(2))
        shift = (x, y)
    pixels = _shrunk(pixels, (width, height), config.kernels[int(rng.integers(len(config.kernels)))], shift)
    if happens(config.noise):
        sigma, channels = uniform(config.noise_sigma), 1 if happens(config.grey_noise) else 3
        noisy = np.asarray(pixels, np.float32) + rng.normal(0, sigma, (height, width, channels)).astype(np.float32)
        pixels = Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))
    if happens(config.compression):
        for _ in range(2 if happens(config.twice) else 1):
            quality = int(rng.integers(config.quality[0], config.quality[1] + 1))
            if happens(config.webp):
                pixels = _compressed(pixels, "WEBP", quality)
            else:
                pixels = _compressed(pixels, "JPEG", quality, subsampling=2 if happens(config.subsampling) else 0)
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous()


def fixed_seed(index: int) -> int:
    """The seed with which the image of that number in a test set is degraded, in every program that reports figures."""
    return int(np.random.SeedSequence(0, spawn_key=(index,)).generate_state(1, np.uint64)[0])


def _blurred(image: Tensor, sigma_x: float, sigma_y: float, angle: float) -> Tensor:
    """image (3, H, W), uint8, blurred by a Gaussian of these deviations in pixels along axes turned by `angle`; mirrored at the border."""
    margin = min(math.ceil(3 * max(sigma_x, sigma_y)), min(image.shape[-2:]) - 1)
    padded = torch.nn.functional.pad(image[None].float(), (margin,) * 4, mode="reflect")[0]
    height, width = padded.shape[-2:]
    y, x = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    gaussian = torch.exp(-2 * math.pi**2 * ((along * sigma_x) ** 2 + (across * sigma_y) ** 2))
    blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * gaussian, s=(height, width))
    return blurred[:, margin : height - margin, margin : width - margin].round().clamp(0, 255).to(torch.uint8)


def _shrunk(image: Image.Image, size: tuple[int, int], kernel: str, shift: tuple[float, float]) -> Image.Image:
    """`image` at `size` (width, height), sampled on a grid that lies by `shift` (x, y), in pixels of the result, beside the usual one."""
    step_x, step_y = image.width / size[0], image.height / size[1]
    left, top, width, height = shift[0] * step_x, shift[1] * step_y, image.width, image.height
    if shift != (0.0, 0.0):
        margin = math.ceil(max(abs(left), abs(top)))
        image = Image.fromarray(np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
        left, top = left + margin, top + margin
    if kernel in _ANTIALIASED:
        return image.resize(size, _ANTIALIASED[kernel], box=(left, top, left + width, top + height))
    return image.transform(size, Image.Transform.AFFINE, (step_x, 0, left, 0, step_y, top), resample=_ALIASED[kernel])


def _compressed(image: Image.Image, format_name: str, quality: int, **options: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, format=format_name, quality=quality, **options)
    with Image.open(file) as stored:
        return stored.convert("RGB")
