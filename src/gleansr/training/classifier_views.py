"""What the classifier sees in training: views of an image, framed, coloured and degraded anew."""

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from gleansr.data.degradation import degrade_real
from gleansr.images.pixels import from_bytes, to_bytes
from gleansr.images.resize import degrade

Random = np.random.Generator

SIZES = (8, 16, 24, 32, 32, 32, 48, 64)
"""Longer sides of the views in pixels, drawn evenly."""

_SCALE = 4  # of the reduction that is degraded
_LOG_RATIO = 0.6  # largest logarithm of an aspect ratio that images are cut to


def view_of(image: Image.Image, rng: Random, *, detail: bool = False) -> Tensor:
    """A random view (3, h, w), uint8, of about a side of `SIZES`: framed and coloured anew, 60 % of them with the real degradation."""
    image = _detail(image, rng) if detail else _framed(image, rng)
    image = ImageOps.mirror(image) if rng.random() < 0.5 else image.copy()
    size = int(SIZES[int(rng.integers(len(SIZES)))])
    image.thumbnail((size * _SCALE, size * _SCALE), Image.Resampling.BICUBIC)
    image = _recoloured(image, rng)
    real = rng.random() < 0.6
    return small_view(image, size, int(rng.integers(0, 2**63)) if real else None, _SCALE)


def small_view(image: Image.Image, size: int, seed: int | None, max_scale: int = 8) -> Tensor:
    """`image` reduced to a longer side of about `size`, (3, h, w) uint8: by MATLAB's bicubic, or degraded by the `seed` of degrade_real.

    A smaller image keeps its size. Of a larger one than `max_scale` times `size`, the rest is antialiased before.
    """
    scale = max(1, min(max_scale, max(image.size) // size))
    side = scale * min(size, max(image.size))
    width, height = (max(2, round(s * side / max(image.size) / scale)) * scale for s in image.size)
    pixels = torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0))).permute(2, 0, 1)
    if seed is None:
        return to_bytes(degrade(from_bytes(pixels)[None], scale)[0])
    return degrade_real(pixels, scale, seed)


def _framed(image: Image.Image, rng: Random) -> Image.Image:
    """Most of the image, half of them cut to a random aspect ratio, so that sets of square images are not told by their shape."""
    width, height = image.size
    share = float(rng.uniform(0.75, 1.0)) if rng.random() < 0.6 else 1.0
    ratio = float(np.exp(rng.uniform(-_LOG_RATIO, _LOG_RATIO))) if rng.random() < 0.5 else width / height
    width, height = share * min(width, height * ratio), share * min(height, width / ratio)
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    image = image.crop((round(left), round(top), max(round(left) + 1, round(left + width)), max(round(top) + 1, round(top + height))))
    if rng.random() < 0.1:
        colour = ((0, 0, 0), (255, 255, 255), (128, 128, 128))[int(rng.integers(3))]
        return ImageOps.pad(image, (max(image.size), max(image.size)), color=colour)
    return image


def _detail(image: Image.Image, rng: Random) -> Image.Image:
    side = round(min(image.size) * float(rng.uniform(0.12, 0.28)))
    left, top = (int(rng.integers(0, length - side + 1)) for length in image.size)
    return image.crop((left, top, left + max(1, side), top + max(1, side)))


def _recoloured(image: Image.Image, rng: Random) -> Image.Image:
    if rng.random() < 0.08:
        image = image.convert("L").convert("RGB")
    if rng.random() < 0.5:
        for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
            image = enhance(image).enhance(float(rng.uniform(0.75, 1.3)))
    return image
