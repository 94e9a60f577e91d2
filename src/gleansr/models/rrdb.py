"""Residual-in-residual dense blocks and the ESRGAN network built of them.

Source: Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", ECCVW 2018; layout of BasicSR's RRDBNet.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gleansr.models.network import UNIT, SRNetwork


def conv3x3(n_in: int, n_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, 3, stride, 1)


def start_small(module: nn.Module) -> None:
    """Initialises all convolutions in `module` with a tenth of Kaiming's weights and zero biases (ESRGAN, section 3.1)."""
    for conv in module.modules():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight)
            conv.weight.data *= 0.1
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)


def _dense(x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The output of a dense block, and the input of its last convolution."""
    *growing, (weight, bias) = zip(parameters[0::2], parameters[1::2], strict=True)
    dense = x
    for grow, offset in growing:
        dense = torch.cat([dense, F.leaky_relu_(F.conv2d(dense, grow, offset, padding=1), 0.2)], 1)
    return torch.add(x, F.conv2d(dense, weight, bias, padding=1), alpha=0.2), dense


class Dense(torch.autograd.Function):
    """A dense block that keeps only the input of its last convolution for the backward pass.

    The inputs of the other convolutions are its first channels; kept separately, as by autograd, they take three times the memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        """x (N, C, H, W), weight and bias of each of the five convolutions -> (N, C, H, W)."""
        y, dense = _dense(x, parameters)
        ctx.save_for_backward(dense, *parameters[0::2])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        dense, *weights = ctx.saved_tensors
        grad = grad.to(dense.dtype)
        grads: list[Tensor | None] = []
        above = grad * 0.2  # gradient of a convolution's output
        below = torch.zeros_like(dense)  # gradient of its inputs
        for i in range(4, -1, -1):
            width = weights[i].shape[1]
            output_mask = (True, ctx.needs_input_grad[1 + 2 * i], ctx.needs_input_grad[2 + 2 * i])
            inputs = dense[:, :width].contiguous(memory_format=torch.channels_last)
            of_inputs, of_weight, of_bias = torch.ops.aten.convolution_backward(
                above, inputs, weights[i].to(dense.dtype), [len(weights[i])], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, output_mask
            )
            grads = [None if g is None else g.to(weights[i].dtype) for g in (of_weight, of_bias)] + grads
            below[:, :width] += of_inputs
            if i:
                grown = weights[i - 1].shape[1]  # where the output of the previous convolution starts
                above = torch.ops.aten.leaky_relu_backward(below[:, grown:width], dense[:, grown:width], 0.2, True)
        return below[:, : weights[0].shape[1]] + grad, *grads


class DenseBlock(nn.Module):
    """Five convolutions, each reading all before it: x + 0.2 * conv5. x (N, C, H, W) -> the same shape."""

    def __init__(self, features: int, growth: int):
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(features + i * growth, growth if i < 4 else features) for i in range(5))
        start_small(self)

    def forward(self, x: Tensor) -> Tensor:
        parameters = tuple(self.parameters())
        return cast("Tensor", Dense.apply(x, *parameters)) if torch.is_grad_enabled() else _dense(x, parameters)[0]


class RRDB(nn.Module):
    """Three dense blocks in a residual: x + 0.2 * blocks(x). x (N, C, H, W) -> the same shape."""

    def __init__(self, features: int, growth: int, block: Callable[[int, int], nn.Module] = DenseBlock):
        super().__init__()
        self.features = features
        self.blocks = nn.Sequential(*(block(features, growth) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.blocks(x), alpha=0.2)


class RRDBTrunk(nn.Module):
    """f = conv(x); f + conv(RRDBs(f)). x (N, in, H, W) -> (N, features, H, W). `block` makes dense blocks from features and growth."""

    def __init__(self, n_in: int, features: int, growth: int, n_blocks: int, block: Callable[[int, int], nn.Module] = DenseBlock):
        super().__init__()
        self.first = conv3x3(n_in, features)
        self.body = nn.Sequential(*(RRDB(features, growth, block) for _ in range(n_blocks)))
        self.last = conv3x3(features, features)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return x + self.last(self.body(x))


class Upsampler(SRNetwork):
    """The end that ESRGAN and ESRGAN+ share: a convolution after each doubling, then two to the image."""

    input_range = UNIT

    def __init__(self, features: int, doublings: int):
        super().__init__()
        self.ups = nn.ModuleList(conv3x3(features, features) for _ in range(doublings))
        self.high = conv3x3(features, features)
        self.out = conv3x3(features, 3)

    def enlarge(self, x: Tensor) -> Tensor:
        """x (N, features, H, W) -> (N, 3, 2^doublings * H, 2^doublings * W)."""
        for conv in self.ups:
            x = F.leaky_relu_(conv(F.interpolate(x, scale_factor=2.0, mode="nearest")), 0.2)
        return self.out(F.leaky_relu_(self.high(x), 0.2))


@dataclass(frozen=True)
class RRDBNetConfig:
    """Architecture of an ESRGAN network."""

    scale: int = 4
    """Enlargement: 1, 2, 4, 8 or 16."""
    features: int = 64
    """Channels of the trunk."""
    growth: int = 32
    """Channels that each convolution of a dense block adds."""
    n_blocks: int = 23
    """Number of RRDBs."""
    folded: bool = True
    """Whether scales 1 and 2 first fold the input into channels by 4 and 2, then enlarge by 4, as in BasicSR; otherwise they only double as
    often as the scale requires, as in ESRGAN's first code."""

    def __post_init__(self):
        if self.scale not in (1, 2, 4, 8, 16):
            raise ValueError(f"an RRDB network enlarges by 1, 2, 4, 8 or 16, not by {self.scale}")
        if not (0 <= self.n_blocks <= 256 and 0 < self.features <= 8192 and 0 < self.growth <= 8192):
            raise ValueError("n_blocks must be 0 to 256; features and growth must be positive")


class RRDBNet(Upsampler):
    """ESRGAN: image (N, 3, H, W), RGB in [0, 1] -> (N, 3, scale * H, scale * W), not clamped.

    If folded, H and W must be multiples of 4 for scale 1 and of 2 for scale 2.
    """

    name = "ESRGAN"

    def __init__(self, config: RRDBNetConfig):
        fold = max(4 // config.scale, 1) if config.folded else 1
        super().__init__(config.features, (fold * config.scale).bit_length() - 1)
        self.config, self.scale = config, config.scale
        self.fold = fold
        self.trunk = RRDBTrunk(3 * fold**2, config.features, config.growth, config.n_blocks)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % self.fold or x.shape[-2] % self.fold:
            raise ValueError(f"height and width must be multiples of {self.fold}, not {tuple(x.shape[-2:])}")
        return self.enlarge(self.trunk(F.pixel_unshuffle(x, self.fold)))
