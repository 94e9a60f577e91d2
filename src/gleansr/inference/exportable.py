"""Rewrites networks into the layers that ONNX Runtime computes fastest on CPUs. The function is the same up to rounding."""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.inference.cpu.shuffled import enlargement, four_pixels, shuffled
from gleansr.inference.cpu.winograd import LINE, TAPS
from gleansr.models.glean import Decoder, PixelShuffleUp
from gleansr.models.layers import M, shallow_copy
from gleansr.models.rrdb import RRDB

WIDE = 256
"""Number of input and output channels from which a convolution is computed by `TwoRows`."""


class ShuffledConv(nn.Module):
    """A convolution and a pixel shuffle that moves whole runs; ONNX Runtime's DepthToSpace moves single values, on one core.

    x (N, in, H, W) -> (N, out, 2H / stride, 2W / stride), with even H and W if the stride is 2.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1):
        """weight (4 * out, in, k, k) and bias in the order of `shuffled`."""
        super().__init__()
        self.weight, self.bias, self.stride = nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False), stride

    def forward(self, x: Tensor) -> Tensor:
        return shuffled(F.conv2d(x, self.weight, self.bias, self.stride, padding=1))


class TwoRows(nn.Module):
    """The same with stride 1 and 3x3 kernels, for even H: two rows at once in two thirds of the multiplications.

    Source: Winograd's F(2, 3) along the height (Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016). The
    sums before and after are depthwise convolutions or additions, which keep the blocked layout of the others.
    """

    before: Tensor
    minus: Tensor

    def __init__(self, weight: Tensor, bias: Tensor):
        super().__init__()
        n_out, n_in = weight.shape[:2]
        parts = torch.einsum("ta,oiab->toib", LINE.to(weight), weight).unsqueeze(3)
        parts[3] *= -1  # so that it is added
        self.weights = nn.ParameterList(nn.Parameter(part.clone(), requires_grad=False) for part in parts)
        self.bias = nn.Parameter(bias, requires_grad=False)
        sums = weight.new_zeros(4, 4)
        for line, (first, second, sign) in zip(sums, TAPS, strict=True):
            line[first], line[second] = 1, sign
        self.register_buffer("before", sums.view(4, 1, 1, 4, 1).repeat(1, n_in, 1, 1, 1))
        self.register_buffer("minus", weight.new_full((n_out, 1, 1, 1), -1))

    def forward(self, x: Tensor) -> Tensor:
        rows = [F.conv2d(x, kernel, stride=(2, 1), padding=(1, 0), groups=x.shape[1]) for kernel in self.before]
        biases = (None, self.bias, None, None)
        first, second, third, fourth = (
            F.conv2d(row, weight, bias, padding=(0, 1)) for row, weight, bias in zip(rows, self.weights, biases, strict=True)
        )
        difference = F.conv2d(third, self.minus, groups=len(self.minus)) + second
        even, odd = (shuffled(y).permute(0, 2, 3, 1) for y in (first + (second + third), fourth + difference))
        height, width, channels = even.shape[1:]
        pairs = torch.cat([even.reshape(-1, 1, 2 * width * channels), odd.reshape(-1, 1, 2 * width * channels)], 1)
        return pairs.reshape(-1, 2 * height, width, channels).permute(0, 3, 1, 2)


class ScaledByConv(nn.Module):
    """An RRDB that scales by a convolution, which, unlike a product, keeps the blocked layout of the convolutions around it."""

    factor: Tensor

    def __init__(self, rrdb: RRDB):
        super().__init__()
        self.blocks = rrdb.blocks
        self.register_buffer("factor", torch.full((rrdb.features, 1, 1, 1), 0.2))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape."""
        return x + F.conv2d(self.blocks(x), self.factor, groups=len(self.factor))


def exportable(model: M, wide: int = WIDE) -> M:
    """A network that shares its tensors with `model` as far as these are the same."""
    twin = shallow_copy(model)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, RRDB):
                module.add_module(name, ScaledByConv(child))
            elif isinstance(child, PixelShuffleUp):
                weight, bias = enlargement(child)
                module.add_module(name, (TwoRows if min(weight.shape[:2]) >= wide else ShuffledConv)(weight, bias))
        if isinstance(module, Decoder):
            module.add_module("out", ShuffledConv(*four_pixels(cast("nn.Conv2d", module.out)), stride=2))
    return twin
