"""Building blocks of StyleGAN2, and of StyleGAN where they are the same: equalised layers, FIR resampling and the modulated convolution.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020. Weights are stored with unit variance and
scaled at run time (equalised learning rate), as in every public implementation.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SQRT2 = math.sqrt(2.0)
M = TypeVar("M", bound=nn.Module)


def leaky_relu(x: Tensor) -> Tensor:
    """sqrt(2) * leaky ReLU with slope 0.2, the activation of StyleGAN2. Overwrites x."""
    return scale(F.leaky_relu_(x, 0.2), SQRT2)


def scale(x: Tensor, factor: Tensor | float) -> Tensor:
    """x * factor. Overwrites x when no gradient is recorded: at 1024 px each copy of the features is 128 MiB."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast is off for `x`: styles and demodulation need the range and precision that the weights have."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def placed(model: M, device: torch.device) -> M:
    """`model` on `device`, its weights laid out channels last, the order in which convolutions are fastest on CPUs and tensor cores."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


class EqualLinear(nn.Module):
    """y = x (W * gain * lr_mul / sqrt(fan_in))^T + b * lr_mul, then optionally the activation. x: (N, in) -> (N, out)."""

    def __init__(self, n_in: int, n_out: int, *, bias_init: float = 0.0, lr_mul: float = 1.0, gain: float = 1.0, activation: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((n_out,), bias_init))
        self.scale = gain * lr_mul / math.sqrt(n_in)
        self.lr_mul = lr_mul
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)
        return leaky_relu(y) if self.activation else y


def binomial_kernel(gain: float, taps: Sequence[float] = (1, 3, 3, 1)) -> Tensor:
    """The low-pass filter `taps` x `taps`, (4, 4) unless told, with the sum `gain`.

    Always made on the CPU, so that a model that is laid out on the meta device still has it: no file holds it.
    """
    line = torch.tensor(taps, dtype=torch.float32, device="cpu")
    return torch.outer(line, line) * (gain / sum(taps) ** 2)


class Blur(nn.Module):
    """The binomial low-pass filter in front of or behind a change of size.

    `padding` is added as zeros on all four sides, `stride` keeps every stride-th sample. x: (N, C, H, W).
    """

    kernel: Tensor

    def __init__(self, padding: int, *, stride: int = 1, gain: float = 1.0, taps: Sequence[float] = (1, 3, 3, 1)):
        super().__init__()
        self.register_buffer("kernel", binomial_kernel(gain, taps), persistent=False)
        self.padding, self.stride = padding, stride

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, *self.kernel.shape)
        return F.conv2d(x, kernel, stride=self.stride, padding=self.padding, groups=x.shape[1])


class UpsampleRGB(nn.Module):
    """Doubles height and width with the same filter. x: (N, C, H, W) -> (N, C, 2H, 2W)."""

    kernel: Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", binomial_kernel(gain=4.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel.to(x.dtype).expand(x.shape[1], 1, 4, 4)
        return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=x.shape[1])


class ModulatedConv(nn.Module):
    """The weight-modulated convolution in its factored form: scale the input, convolve with the shared weight, scale the output.

    Equal to convolving each sample with its own weight, because scaling an input channel is scaling the weights that read it; it needs no
    copy of the weights per sample. x: (N, in, H, W), code: (N, code_dim) -> (N, out, H, W), or (N, out, 2H, 2W) with `up`.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, code_dim: int, *, demodulate: bool = True, up: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        self.affine = EqualLinear(code_dim, n_in, bias_init=1.0)
        self.blur = Blur(padding=1, gain=4.0) if up else None
        self.demodulate = demodulate
        self.scale = 1 / math.sqrt(n_in * kernel * kernel)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        with full_precision(x):
            style = self.affine(code.to(self.weight.dtype))  # (N, in)
            weight = self.weight * self.scale
            gain = torch.rsqrt(style.square() @ weight.square().sum((2, 3)).t() + 1e-8) if self.demodulate else None
        x = x * style[:, :, None, None].to(x.dtype)
        if self.blur is not None:
            x = self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))  # 2H + 1 -> 2H
        else:
            x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        return x if gain is None else scale(x, gain[:, :, None, None].to(x.dtype))


class EqualConv(nn.Module):
    """Convolution with equalised weights, optionally behind a blur and with stride 2, optionally with bias and activation.

    x: (N, in, H, W) -> (N, out, H, W), or (N, out, H/2, W/2) with `down`.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, *, down: bool = False, activation: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(n_out)) if activation else None
        self.scale = 1 / math.sqrt(n_in * kernel * kernel)
        # A 1x1 convolution reads every second sample only, so the blur need not compute the others.
        self.blur = Blur(padding=kernel // 2 + 1, stride=2 if kernel == 1 else 1) if down else None
        self.stride = 2 if down and kernel > 1 else 1
        self.padding = 0 if down else kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.blur is not None:
            x = self.blur(x)
        x = F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)
        return x if self.bias is None else leaky_relu(x.add_(self.bias.to(x.dtype)[:, None, None]))


def minibatch_stddev(x: Tensor, group: int | None) -> Tensor:
    """Appends the mean standard deviation over groups of the batch as one channel: (N, C, H, W) -> (N, C + 1, H, W).

    Sample n belongs to group n mod (N / G): the groups are strided, as in all public implementations.
    """
    n, c, h, w = x.shape
    size = n if group is None else min(group, n)
    if n % size:
        raise ValueError(f"the discriminator takes at most {size} pictures at once or a multiple of {size}, not {n}")
    y = x.float().reshape(size, n // size, c, h, w)
    y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # (N / G)
    return torch.cat([x, y.to(x.dtype).repeat(size)[:, None, None, None].expand(n, 1, h, w)], 1)
