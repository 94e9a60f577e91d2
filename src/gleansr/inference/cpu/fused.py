"""Convolutions with constant weights for inference on a CPU, fused with activations and blurs."""

import itertools
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.inference.cpu.shuffled import four_pixels, shuffled
from gleansr.inference.cpu.winograd import WinogradConv, pays
from gleansr.inference.devices import onednn_types

_FUSED = onednn_types("_convolution_pointwise")
"""The dtypes of maps for which oneDNN fuses a convolution and an activation."""

_SMALL = 2**14
"""Number of weights up to which a second copy in oneDNN's order is kept."""


@dataclass(frozen=True, eq=False)
class FusedConv:
    """A convolution with constant weights and, unless `slope` is None, a leaky ReLU."""

    weight: Tensor
    bias: Tensor | None
    slope: float | None = None
    stride: int = 1

    @classmethod
    def of(cls, conv: nn.Conv2d, dtype: torch.dtype, slope: float | None = None) -> "FusedConv":
        fused = cls(laid_out(conv.weight, dtype), cast("Tensor", conv.bias).detach().to(dtype), slope, conv.stride[0])
        copied = dtype != conv.weight.dtype
        return fused.packed() if copied or conv.weight.numel() <= _SMALL else fused

    def packed(self) -> "FusedConv":
        """The convolution with a copy of its weights in oneDNN's order, which oneDNN otherwise makes for each call."""
        if self.weight.dtype not in _FUSED or not hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):
            return self
        n_in, sides, padding = self.weight.shape[1], [64, 64], self.weight.shape[-1] // 2  # the order hardly depends on the map's size
        with torch.inference_mode():
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            weight = reorder(self.weight, [padding] * 2, [self.stride] * 2, [1, 1], 1, [1, n_in, *sides])
        return replace(self, weight=weight)

    def __call__(self, *maps: Tensor) -> Tensor:
        """Maps (N, C, H, W), concatenated -> (N, out, H', W')."""
        x = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        padding = self.weight.shape[-1] // 2
        if x.dtype not in _FUSED:
            y = F.conv2d(x, self.weight, self.bias, self.stride, padding)
            return y if self.slope is None else F.leaky_relu_(y, self.slope)
        activation, parameters = ("none", []) if self.slope is None else ("leaky_relu", [self.slope])
        convolve = torch.ops.mkldnn._convolution_pointwise
        return convolve(x, self.weight, self.bias, [padding] * 2, [self.stride] * 2, [1, 1], 1, activation, parameters, "")

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        """y + convolution of x, in place."""
        if x.dtype not in _FUSED or not hasattr(torch.ops.mkldnn, "_convolution_pointwise_"):
            return y.add_(self(x))
        padding = self.weight.shape[-1] // 2
        add = torch.ops.mkldnn._convolution_pointwise_.binary
        return add(y, x, self.weight, self.bias, [padding] * 2, [self.stride] * 2, [1, 1], 1, "add", 1.0, None, [], None)

    def with_bias(self, bias: Tensor | None) -> "FusedConv":
        """With another one, (out,)."""
        return replace(self, bias=bias)


class NarrowConv:
    """A 3x3 convolution to few channels, computed for 2x2 pixels at once."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype):
        weight, bias = four_pixels(conv)
        self._conv = FusedConv(laid_out(weight, dtype), bias.to(dtype), stride=2).packed()

    def __call__(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) -> (N, out, H, W)."""
        height, width = x.shape[-2:]
        return shuffled(self._conv(x))[:, :, 1 : 1 + height, 1 : 1 + width]  # starts one pixel above and left of the map


class SplitConv:
    """A convolution of two maps without concatenating them: it adds the convolutions of both."""

    def __init__(self, weight: Tensor, bias: Tensor, n_first: int, dtype: torch.dtype, slope: float | None = None):
        """weight (out, in, 3, 3), bias (out,); `n_first`: number of channels of the first map."""
        self._first = FusedConv(laid_out(weight[:, :n_first], dtype), bias.detach().to(dtype)).packed()
        self._second = FusedConv(laid_out(weight[:, n_first:], dtype), None).packed()
        self._slope = slope

    def __call__(self, *maps: Tensor) -> Tensor:
        """Two maps (N, C, H, W) -> (N, out, H, W)."""
        first, second = maps
        y = self._second.onto(self._first(first), second)
        return y if self._slope is None else F.leaky_relu_(y, self._slope)


ConcatConv = FusedConv | SplitConv | WinogradConv
"""A convolution of one map or of two concatenated maps."""


def convolution(conv: nn.Conv2d, size: int, dtype: torch.dtype, slope: float | None = None) -> FusedConv | WinogradConv:
    """The fastest form of `conv`, followed by a leaky ReLU, for maps of size x size."""
    if conv.stride == (1, 1) and pays(conv.weight, size, dtype):
        return WinogradConv.of(conv.weight, conv.bias, dtype, slope)
    return FusedConv.of(conv, dtype, slope)


def concat_convolution(weight: Tensor, bias: Tensor, n_first: int, size: int, dtype: torch.dtype, slope: float | None = None) -> ConcatConv:
    """The same for one map of `n_first` channels or, if `weight` (out, in, 3, 3) has more, for two concatenated maps; bias (out,)."""
    if pays(weight, size, dtype):
        return WinogradConv.of(weight, bias, dtype, slope)
    if n_first == weight.shape[1]:
        return FusedConv(laid_out(weight, dtype), bias.detach().to(dtype), slope).packed()
    return SplitConv(weight, bias, n_first, dtype, slope)


@dataclass(frozen=True, eq=False)
class FusedUpConv:
    """A transposed convolution of stride 2 and its blur: (N, in, H, W) -> (N, out, 2H, 2W)."""

    weight: Tensor
    """(in, out, 3, 3)."""
    kernel: Tensor
    """Kernel of the blur, (out, 1, 4, 4)."""
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, self.weight, stride=2)
        return F.conv2d(y, self.kernel, self.bias, padding=1, groups=y.shape[1])

    def with_bias(self, bias: Tensor | None) -> "FusedUpConv":
        """With another one, (out,)."""
        return replace(self, bias=bias)


@dataclass(frozen=True, eq=False)
class MergedUpConv:
    """The same as one convolution with the weights of `merged`."""

    conv: FusedConv

    def __call__(self, x: Tensor) -> Tensor:
        return shuffled(self.conv(x))

    def with_bias(self, bias: Tensor | None) -> "MergedUpConv":
        """With another one, (out,)."""
        return replace(self, conv=self.conv.with_bias(bias if bias is None else bias.repeat(4)))


def merged(weight: Tensor) -> Tensor:
    """The weights (4 * out, in, 3, 3), in the order of `shuffled`, of one convolution that equals the transposed convolution of stride 2
    with `weight` (out, in, 3, 3) and its blur."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    line = torch.zeros(2, 3, 3, dtype=weight.dtype)  # in one dimension: sub-pixel, tap of the new kernel, tap of the old one
    for sub, new, old in itertools.product(range(2), range(3), range(3)):
        if 0 <= (tap := old - sub + 2 * new - 1) <= 3:
            line[sub, new, old] = taps[tap]
    return torch.einsum("oiab,ypa,xqb->yxoipq", weight, line, line).flatten(0, 2)


def laid_out(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A convolution's weight (out, in, H, W) in that dtype, channels last, without a gradient."""
    return weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
