"""Convolutions with constant weights, for inference on a CPU: with their activation, and with a transposed convolution's blur merged in."""

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
"""For which maps an activation can be computed with the convolution before it."""

_SMALL = 2**14
"""Weights of a convolution that are kept a second time in the order that oneDNN wants, where they need no other copy."""


@dataclass(frozen=True, eq=False)
class FusedConv:
    """A convolution with constant weights and, unless `slope` is None, a leaky ReLU."""

    weight: Tensor
    bias: Tensor | None
    slope: float | None = None
    stride: int = 1

    @classmethod
    def of(cls, conv: nn.Conv2d, dtype: torch.dtype, slope: float | None = None) -> "FusedConv":
        made = cls(laid_out(conv.weight, dtype), cast("Tensor", conv.bias).detach().to(dtype), slope, conv.stride[0])
        copied = dtype != conv.weight.dtype
        return made.packed() if copied or conv.weight.numel() <= _SMALL else made

    def packed(self) -> "FusedConv":
        """With a copy of its weights in the order in which oneDNN wants them, which it otherwise makes for each call."""
        if self.weight.dtype not in _FUSED or not hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):
            return self
        n_in, sides, padding = self.weight.shape[1], [64, 64], self.weight.shape[-1] // 2  # the order hardly depends on the map
        with torch.inference_mode():
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            weight = reorder(self.weight, [padding] * 2, [self.stride] * 2, [1, 1], 1, [1, n_in, *sides])
        return replace(self, weight=weight)

    def __call__(self, *maps: Tensor) -> Tensor:
        """Maps (N, C, H, W) side by side -> (N, out, H', W')."""
        x = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        padding = self.weight.shape[-1] // 2
        if x.dtype not in _FUSED:
            y = F.conv2d(x, self.weight, self.bias, self.stride, padding)
            return y if self.slope is None else F.leaky_relu_(y, self.slope)
        what, how = ("none", []) if self.slope is None else ("leaky_relu", [self.slope])
        fused = torch.ops.mkldnn._convolution_pointwise
        return fused(x, self.weight, self.bias, [padding] * 2, [self.stride] * 2, [1, 1], 1, what, how, "")

    def onto(self, y: Tensor, x: Tensor) -> Tensor:
        """y + what it makes of x. Overwrites y."""
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
        return shuffled(self._conv(x))[:, :, 1 : 1 + height, 1 : 1 + width]  # it begins with the pixel above and left of the map


class SplitConv:
    """A convolution of two maps side by side that are not laid so: what it makes of the second is added to what it makes of the first."""

    def __init__(self, weight: Tensor, bias: Tensor, n_first: int, dtype: torch.dtype, slope: float | None = None):
        """weight (out, in, 3, 3), bias (out,); `n_first`: channels of the first map, not all."""
        self._first = FusedConv(laid_out(weight[:, :n_first], dtype), bias.detach().to(dtype)).packed()
        self._second = FusedConv(laid_out(weight[:, n_first:], dtype), None).packed()
        self._slope = slope

    def __call__(self, *maps: Tensor) -> Tensor:
        """The two maps, (N, C, H, W) each -> (N, out, H, W)."""
        first, second = maps
        y = self._second.onto(self._first(first), second)
        return y if self._slope is None else F.leaky_relu_(y, self._slope)


SideBySide = FusedConv | SplitConv | WinogradConv
"""A convolution of one map or of two side by side."""


def convolution(conv: nn.Conv2d, size: int, dtype: torch.dtype, slope: float | None = None) -> FusedConv | WinogradConv:
    """`conv` for maps of size x size, and a leaky ReLU behind it, in the way that is the fastest."""
    if conv.stride == (1, 1) and pays(conv.weight, size, dtype):
        return WinogradConv.of(conv.weight, conv.bias, dtype, slope)
    return FusedConv.of(conv, dtype, slope)


def side_by_side(weight: Tensor, bias: Tensor, n_first: int, size: int, dtype: torch.dtype, slope: float | None = None) -> SideBySide:
    """The same of a map of `n_first` channels and, unless these are all, one beside it: with weight (out, in, 3, 3) and bias (out,)."""
    if pays(weight, size, dtype):
        return WinogradConv.of(weight, bias, dtype, slope)
    if n_first == weight.shape[1]:
        return FusedConv(laid_out(weight, dtype), bias.detach().to(dtype), slope).packed()
    return SplitConv(weight, bias, n_first, dtype, slope)


@dataclass(frozen=True, eq=False)
class FusedUpConv:
    """A transposed convolution of stride 2 and the blur behind it: (N, in, H, W) -> (N, out, 2H, 2W)."""

    weight: Tensor
    """(in, out, 3, 3)."""
    kernel: Tensor
    """The blur's, (out, 1, 4, 4)."""
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        y = F.conv_transpose2d(x, self.weight, stride=2)
        return F.conv2d(y, self.kernel, self.bias, padding=1, groups=y.shape[1])

    def with_bias(self, bias: Tensor | None) -> "FusedUpConv":
        """With another one, (out,)."""
        return replace(self, bias=bias)


@dataclass(frozen=True, eq=False)
class MergedUpConv:
    """The same, `conv` being what `merged` makes of it."""

    conv: FusedConv

    def __call__(self, x: Tensor) -> Tensor:
        return shuffled(self.conv(x))

    def with_bias(self, bias: Tensor | None) -> "MergedUpConv":
        """With another one, (out,)."""
        return replace(self, conv=self.conv.with_bias(bias if bias is None else bias.repeat(4)))


def merged(weight: Tensor) -> Tensor:
    """The transposed convolution of stride 2 with `weight` (out, in, 3, 3) and the blur behind it as one convolution of stride 1:
    (4 * out, in, 3, 3), as `shuffled` wants it."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    line = torch.zeros(2, 3, 3, dtype=weight.dtype)  # of one dimension: sub-pixel, tap of the new kernel, tap of the old one
    for sub, new, old in itertools.product(range(2), range(3), range(3)):
        if 0 <= (tap := old - sub + 2 * new - 1) <= 3:
            line[sub, new, old] = taps[tap]
    return torch.einsum("oiab,ypa,xqb->yxoipq", weight, line, line).flatten(0, 2)


def laid_out(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A convolution's weight (out, in, H, W) in that type, channels last and without a gradient."""
    return weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
