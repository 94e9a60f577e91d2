"""Bicubic resizing as MATLAB's imresize does it, and the degradation that defines the super-resolution task.

The published data sets of the field were downscaled with MATLAB, whose bicubic widens its kernel for downscaling
(antialiasing). Other libraries' bicubics differ from it by several 8-bit steps, more than the methods compared differ.
"""

import functools
import math
import numbers
from typing import TypeVar

import numpy as np
import torch

from gleansr.ambient import plain_torch
from gleansr.errors import RequestError
from gleansr.images.pixels import from_bytes

Array = TypeVar("Array", torch.Tensor, np.ndarray)

_SCALES = (1e-6, 1e6)
# Outputs are computed in blocks: a block depends on a short run of inputs, so it is one small dense matrix product, and
# the memory and work for a large photograph stay far below those of a dense matrix for the whole side.
_BLOCK = 16


@plain_torch(grad=True)
def resize(image: Array, *, scale: float | None = None, size: int | tuple[int, int] | None = None) -> Array:
    """Resizes like MATLAB's `imresize(image, ..., "bicubic")`, with antialiasing for downscaling.

    Args:
        image: float32 or float64, of any range. A torch tensor is (..., H, W), such as HW, CHW or NCHW. A NumPy array
            is HW or HWC.
        scale: factor for both sides, from 1e-6 to 1e6; a side of n becomes ceil(scale * n).
        size: (height, width) of the result, or one number for both. The factor of each side is then out / in.

    Returns:
        The same kind, axis order, dtype and device, not clamped: bicubic overshoots at edges. Sums are in float64, so a
        float32 result is the rounded float64 one. Gradients flow through tensors.

    Raises:
        RequestError: not exactly one of `scale` and `size` is given, or it is out of range; the image is of an integer
            type, empty or not finite.

    Source: MATLAB's documentation of imresize; its kernel is that of R. Keys, "Cubic convolution interpolation for
    digital image processing" (1981), with a = -0.5.
    """
    if isinstance(image, np.ndarray):
        if image.dtype not in (np.float32, np.float64) or image.ndim not in (2, 3):
            raise RequestError(
                f"resize takes a float32 or float64 array HW or HWC, not {image.dtype} of shape {image.shape}; "
                "convert 8-bit images with image.astype('float32') / 255"
            )
        # A copy: PyTorch cannot share read-only memory or negative strides.
        channels_first = torch.from_numpy(np.array(image, order="C")).permute(*range(2, image.ndim), 0, 1)
        resized = resize(channels_first, scale=scale, size=size)
        return np.ascontiguousarray(resized.permute(*range(-2, 0), *range(image.ndim - 2)).numpy())
    if not isinstance(image, torch.Tensor):
        raise RequestError(f"resize takes a torch tensor or a NumPy array, not {type(image).__name__}")
    if image.dtype not in (torch.float32, torch.float64) or image.ndim < 2:
        raise RequestError(
            f"resize takes a float32 or float64 tensor (..., H, W), not {image.dtype} of shape "
            f"{tuple(image.shape)}; convert 8-bit images with image.float() / 255"
        )
    if 0 in image.shape[-2:]:
        raise RequestError(f"resize takes no empty image: shape {tuple(image.shape)}")
    # Zero weights do not stop NaN or infinity: one such pixel would spoil a block of the result.
    if image.numel() and not all(bound.isfinite() for bound in torch.aminmax(image.detach())):
        raise RequestError("resize takes finite images only; this one has NaN or infinity")
    if image.device.type == "mps":  # has no float64
        return resize(image.cpu(), scale=scale, size=size).to(image.device)

    lengths = (image.shape[-2], image.shape[-1])
    # The axis that shrinks most goes first, as in MATLAB; equal scales keep the order, height first.
    for axis_scale, axis, length in sorted(_targets(lengths, scale, size), key=lambda target: target[0]):
        image = _resize_axis(image, axis, length, axis_scale)
    return image.contiguous()


@plain_torch()
def degrade(images: torch.Tensor, scale: int) -> torch.Tensor:
    """Downscales images as in the data sets of the paper: MATLAB's bicubic, then rounding to 8 bits.

    Args:
        images: (N, 3, H, W) float32 or float64 in [-1, 1], where -1 and 1 are the 8-bit values 0 and 255.
        scale: whole factor of reduction; 8 makes 32x32 from 256x256. Sides become ceil(side / scale).

    Returns:
        (N, 3, ceil(H / scale), ceil(W / scale)) of the same dtype, exactly (k - 127.5) / 127.5 for whole k from 0 to
        255; the same bits on every device and in every batch. Rounding gives it no gradient.

    Raises:
        RequestError: `scale` is not a whole number from 1 up, or `images` is refused by `resize`.
    """
    if not isinstance(scale, numbers.Integral) or isinstance(scale, bool) or scale < 1:
        raise RequestError(f"degrade takes a whole scale from 1 up, such as 8 or 16, not {scale!r}")
    if not isinstance(images, torch.Tensor) or images.dtype not in (torch.float32, torch.float64) or images.ndim != 4:
        raise RequestError("degrade takes a float32 or float64 tensor of shape (N, 3, H, W) in [-1, 1]")
    if images.device.type == "cpu":  # one by one, float64 copies stay in the cache: four times as fast
        return torch.cat([_degrade(image, scale) for image in images.split(1)])
    return _degrade(images, scale)


def _degrade(images: torch.Tensor, scale: int) -> torch.Tensor:
    device = images.device
    values = images.to("cpu" if device.type == "mps" else device, torch.float64, copy=True).mul_(127.5).add_(127.5)
    # An 8-bit image in float32 is off its values by 1e-5. Snapped to them, it degrades like the stored file.
    small = resize(_snap(values, 1.0, 1e-4), scale=1 / scale).clamp_(0, 255)
    # Exact halves occur (an edge in the middle of a pixel). Unsnapped, noise of 1e-13, which differs between devices, would decide their
    # rounding.
    small = _snap(small, 0.5, 1e-9).round_()
    return from_bytes(small, torch.float64).to(device, images.dtype)


def _snap(values: torch.Tensor, step: float, tolerance: float) -> torch.Tensor:
    """Values closer than `tolerance` to a multiple of `step` become that multiple."""
    nearest = values.mul(1 / step).round_().mul_(step)
    return torch.where((values - nearest).abs_() < tolerance, nearest, values)


def _targets(lengths: tuple[int, int], scale: float | None, size: int | tuple[int, int] | None) -> list[tuple[float, int, int]]:
    """(scale, axis, output length) of the height and of the width."""
    if (scale is None) == (size is None):
        raise RequestError(f"resize takes exactly one of scale and size, not scale={scale!r} and size={size!r}")
    if scale is not None:
        # numbers.Real holds NumPy's scalars too; a comparison with NaN is false.
        if not isinstance(scale, numbers.Real) or isinstance(scale, bool) or not _SCALES[0] <= scale <= _SCALES[1]:
            raise RequestError(f"resize takes a scale from {_SCALES[0]:g} to {_SCALES[1]:g}, not {scale!r}")
        return [(float(scale), axis, math.ceil(scale * length)) for axis, length in zip((-2, -1), lengths, strict=True)]
    sizes = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    valid = [int(n) for n in sizes if isinstance(n, numbers.Integral) and not isinstance(n, bool) and n >= 1]
    if not len(sizes) == len(valid) == 2:
        raise RequestError(f"resize takes size=(height, width) of whole numbers from 1 up, not {size!r}")
    return [(n / length, axis, n) for axis, length, n in zip((-2, -1), lengths, valid, strict=True)]


def _resize_axis(image: torch.Tensor, axis: int, length: int, scale: float) -> torch.Tensor:
    """Resize the axis -2 or -1 of (..., H, W) to `length`."""
    blocks = []
    for start, weights in _blocks(image.shape[axis], length, scale, image.device):
        inputs = image.narrow(axis, start, weights.shape[1]).double()
        block = weights @ inputs if axis == -2 else inputs @ weights.T
        blocks.append(block.to(image.dtype))
    return torch.cat(blocks, axis)


@functools.lru_cache(maxsize=64)
def _blocks(length_in: int, length_out: int, scale: float, device: torch.device) -> list[tuple[int, torch.Tensor]]:
    """For every block of outputs: the first input it depends on, and its weights (outputs, inputs) in float64."""
    indices, weights = _taps(length_in, length_out, scale)
    blocks = []
    # The result is cached, and a tensor of inference mode could not be used for training afterwards.
    with torch.inference_mode(False):
        for first in range(0, length_out, _BLOCK):
            inputs, values = indices[first : first + _BLOCK], weights[first : first + _BLOCK]
            start = int(inputs.min())
            matrix = np.zeros((len(inputs), int(inputs.max()) + 1 - start))
            # Near the border several taps fall on the same input.
            np.add.at(matrix, (np.arange(len(inputs))[:, None], inputs - start), values)
            blocks.append((start, torch.from_numpy(matrix).to(device)))
    return blocks


def clear_cache() -> None:
    """Frees the cached matrices of recent sizes, on GPUs too."""
    _blocks.cache_clear()


def _taps(length_in: int, length_out: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """For each output, the indices (from 0) and the weights of its inputs, both (length_out, taps)."""
    shrink = min(scale, 1.0)  # only shrinking widens the kernel
    width = 4 / shrink
    # The centre of output x in the coordinates of the input, whose pixels are numbered from 1 here as in MATLAB.
    centre = np.arange(1, length_out + 1) / scale + 0.5 * (1 - 1 / scale)
    left = np.floor(centre - width / 2)
    indices = left[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic(shrink * (centre[:, None] - indices))
    weights /= weights.sum(axis=1, keepdims=True)
    # Beyond the border the image is mirrored, its last pixel doubled: 1..n, n..1, and so on.
    indices = (indices.astype(np.int64) - 1) % (2 * length_in)
    return np.minimum(indices, 2 * length_in - 1 - indices), weights


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic with a = -0.5, zero from |x| = 2 on."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
