"""Building blocks of StyleGAN2, and of StyleGAN where they are the same: equalised layers, FIR resampling and the modulated convolution.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020. Weights are stored with unit variance and
scaled at run time (equalised learning rate), as in every public implementation.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SQRT2 = math.sqrt(2.0)
M = TypeVar("M", bound=nn.Module)


def leaky_relu(x: Tensor) -> Tensor:
    """sqrt(2) * leaky ReLU with slope 0.2, the activation of StyleGAN2. Overwrites x."""
    return scale(F.leaky_relu_(x, 0.2), SQRT2)


def scale(x: Tensor, factor: Tensor | float) -> Tensor:
    """x * factor. Overwrites x if no gradient is recorded: at 1024 px a copy of the features takes 128 MiB."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """A context in which autocast is off for `x`: styles and demodulation need the range and precision that the weights have."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def to_channels_last(model: M, device: torch.device) -> M:
    """Moves `model` to `device` with weights in channels-last order, the fastest for convolutions on CPUs and tensor cores."""
    model.to(device)
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return model


def shallow_copy(model: M) -> M:
    """A copy of the modules that shares the tensors of `model`."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in itertools.chain(model.parameters(), model.buffers())})


def autocast_copy(model: M, dtype: torch.dtype) -> M:
    """A copy for autocast to `dtype` with the weights of plain layers cast in advance; other tensors are shared.

    Equalised and modulated weights stay: scaling, styles and demodulation are computed in their precision.
    """
    copied = shallow_copy(model)
    for layer in copied.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            for name, value in list(layer.named_parameters(recurse=False)):
                setattr(layer, name, nn.Parameter(value.detach().to(dtype), requires_grad=False))
    return copied


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
    """The low-pass filter `taps` x `taps`, by default (4, 4), with the sum `gain`.

    Always on the CPU: models on the meta device need it, too, since no file holds it.
    """
    line = torch.tensor(taps, dtype=torch.float32, device="cpu")
    return torch.outer(line, line) * (gain / sum(taps) ** 2)


class Blur(nn.Module):
    """The binomial low-pass filter before or after resampling.

    `padding` adds zeros on all four sides, `stride` keeps every stride-th sample. x: (N, C, H, W).
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

    Equal to convolving each sample with its own weight, since scaling an input channel scales the weights that read it, but without a copy
    of the weights per sample. x: (N, in, H, W), w: (N, code_dim) -> (N, out, H, W), or (N, out, 2H, 2W) with `up`.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, code_dim: int, *, demodulate: bool = True, up: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        self.affine = EqualLinear(code_dim, n_in, bias_init=1.0)
        self.blur = Blur(padding=1, gain=4.0) if up else None
        self.demodulate = demodulate
        self.scale = 1 / math.sqrt(n_in * kernel * kernel)

    def factors(self, w: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The scales of the input's channels (N, in), the shared weight (out, in, k, k), and those of the output's (N, out), if any."""
        with full_precision(w):
            style = self.affine(w.to(self.weight.dtype))
            weight = self.weight * self.scale
            gain = torch.rsqrt(style.square() @ weight.square().sum((2, 3)).t() + 1e-8) if self.demodulate else None
        return style, weight, gain

    def convolve(self, x: Tensor, style: Tensor, weight: Tensor) -> Tensor:
        """The scaled input with the shared weight: (N, in, H, W) -> (N, out, H, W), or (N, out, 2H, 2W) with `up`."""
        x = x * style[:, :, None, None].to(x.dtype)
        if self.blur is not None:
            return self.blur(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))  # 2H + 1 -> 2H
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        style, weight, gain = self.factors(w)
        x = self.convolve(x, style, weight)
        return x if gain is None else scale(x, gain[:, :, None, None].to(x.dtype))


class FrozenStyled(torch.autograd.Function):
    """A modulated convolution with noise, bias and activation and frozen weights, for training through a frozen bank.

    The backward pass needs only the input and the output, which the neighbouring layers keep anyway: it inverts the activation and the
    offset. The plain formulation also keeps the scaled input and the unscaled output, each a full feature map.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, style: Tensor, gain: Tensor, weight: Tensor, noise: Tensor | None, bias: Tensor, conv: ModulatedConv
    ) -> Tensor:
        """x (N, in, H, W), style (N, in), gain (N, out), noise (N or 1, 1, H', W') or None, bias (out) -> (N, out, H', W').
        Gain, noise and bias include the activation's gain sqrt(2), which commutes with it."""
        y = conv.convolve(x, style, weight)
        y.mul_(gain[:, :, None, None].to(y.dtype)).add_(bias.to(y.dtype)[:, None, None])
        if noise is not None:
            y.add_(noise.to(y.dtype))
        F.leaky_relu_(y, 0.2)
        ctx.save_for_backward(x, style, gain, weight, noise, bias, y)
        ctx.blur = conv.blur
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, style, gain, weight, noise, bias, y = ctx.saved_tensors
        dtype = y.dtype
        grad = torch.ops.aten.leaky_relu_backward(grad.to(dtype), y, 0.2, True)
        before = torch.where(y > 0, y, y * 5).sub_(bias.to(dtype)[:, None, None])  # the convolution's output times gain
        if noise is not None:
            before.sub_(noise.to(dtype))
        grad_gain = before.mul_(grad).sum((2, 3), dtype=gain.dtype) / gain
        grad = grad * gain[:, :, None, None].to(dtype)
        weight = weight.to(dtype)
        if ctx.blur is not None:
            kernel = ctx.blur.kernel.to(dtype).expand(grad.shape[1], 1, 4, 4)  # symmetric, so it is its own transpose
            grad = F.conv2d(F.conv2d(grad, kernel, padding=2, groups=grad.shape[1]), weight.transpose(0, 1), stride=2)
        else:
            grad = F.conv_transpose2d(grad, weight, padding=weight.shape[-1] // 2)
        grad_style = (grad * x.to(dtype)).sum((2, 3), dtype=style.dtype)
        grad_x = (grad * style[:, :, None, None].to(dtype)).to(x.dtype) if ctx.needs_input_grad[0] else None
        return grad_x, grad_style, grad_gain, None, None, None, None


class EqualConv(nn.Module):
    """Convolution with equalised weights, optionally after a blur with stride 2, optionally with bias and activation.

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
        if self.bias is None:
            return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)
        # The activation's gain commutes with it; applied to the weight it needs no further feature map.
        weight, bias = self.weight * (self.scale * SQRT2), self.bias * SQRT2
        return F.leaky_relu_(F.conv2d(x, weight, bias, stride=self.stride, padding=self.padding), 0.2)


def minibatch_stddev(x: Tensor, group: int | None) -> Tensor:
    """Appends the mean standard deviation over groups of the batch as one channel: (N, C, H, W) -> (N, C + 1, H, W).

    Sample n belongs to group n mod (N / G): the groups are strided, as in all public implementations.
    """
    n, c, h, w = x.shape
    size = n if group is None else min(group, n)
    if n % size:
        raise ValueError(f"the discriminator takes at most {size} images at once or a multiple of {size}, not {n}")
    y = x.float().reshape(size, n // size, c, h, w)
    y = (y.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3))  # (N / G)
    return torch.cat([x, y.to(x.dtype).repeat(size)[:, None, None, None].expand(n, 1, h, w)], 1)
