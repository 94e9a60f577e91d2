"""ESRGAN+ and nESRGAN+, feed-forward networks without a bank, and their discriminator.

Source: Rakotonirina and Rasoanaivo, "ESRGAN+: Further Improving Enhanced Super-Resolution Generative Adversarial Network", ICASSP 2020;
numbers as in its official code. The discriminator is ESRGAN's.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.configs import Range, check
from gleansr.models.layers import full_precision
from gleansr.models.network import UNIT
from gleansr.models.rrdb import RRDBTrunk, Upsampler, conv3x3, start_small

SCALES = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class ESRGANPlusConfig:
    """Architecture of an ESRGAN+ network."""

    scale: int = 4
    """Enlargement: 2, 4, 8, 16, 32 or 64."""
    features: Annotated[int, Range(1, 8192)] = 64
    """Channels of the trunk."""
    growth: Annotated[int, Range(1, 8192)] = 32
    """Channels that each convolution of a dense block adds."""
    n_blocks: Annotated[int, Range(0, 256)] = 23
    """Number of RRDBs."""
    noise: Annotated[float, Range(0, 1)] = 0.1
    """Deviation of the noise that multiplies the features in training: 0 in ESRGAN+, 0.1 in nESRGAN+. Unused in evaluation."""

    def __post_init__(self):
        check(self, (self.scale in SCALES, f"scale must be one of {', '.join(map(str, SCALES))}, not {self.scale}"))


class DenseBlockPlus(nn.Module):
    """A dense block with residuals inside: every second convolution's output is added to the next second one's.

    x1 = a(c1(x)), x2 = a(c2(x, x1)) + c(x), x3 = a(c3(x, x1, x2)), x4 = a(c4(x, .., x3)) + x2, y = x + 0.2 * c5(x, .., x4), where a is
    leaky ReLU of slope 0.2 and c a 1x1 convolution without bias. In training y * (1 + noise * n), n standard normal for every number.
    """

    def __init__(self, features: int, growth: int, noise: float):
        super().__init__()
        self.convs = nn.ModuleList(conv3x3(features + i * growth, growth if i < 4 else features) for i in range(5))
        self.skip = nn.Conv2d(features, growth, 1, bias=False)
        self.noise = noise
        start_small(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> the same shape."""
        dense, second = x, self.skip(x)
        for i, conv in enumerate(self.convs[:4]):
            grown = F.leaky_relu_(conv(dense), 0.2)
            if i % 2:
                grown = second = grown + second
            dense = torch.cat([dense, grown], 1)
        y = torch.add(x, self.convs[4](dense), alpha=0.2)
        if self.training and self.noise:
            y = y * torch.randn_like(y).mul_(self.noise).add_(1)
        return y


class ESRGANPlus(Upsampler):
    """ESRGAN+ or nESRGAN+: image (N, 3, H, W), RGB in [0, 1] -> (N, 3, scale * H, scale * W), not clamped."""

    name = "ESRGAN+"

    def __init__(self, config: ESRGANPlusConfig):
        super().__init__(config.features, config.scale.bit_length() - 1)
        self.config, self.scale = config, config.scale
        self.trunk = RRDBTrunk(3, config.features, config.growth, config.n_blocks, lambda f, g: DenseBlockPlus(f, g, config.noise))

    def forward(self, x: Tensor) -> Tensor:
        return self.enlarge(self.trunk(x))


@dataclass(frozen=True)
class ESRGANDiscriminatorConfig:
    """Architecture of ESRGAN's discriminator."""

    size: Annotated[int, Range(32, 1024)] = 128
    """Width and height of its images, a power of two."""
    features: Annotated[int, Range(1, 8192)] = 64
    """Channels at the full size; they double with every halving, up to eight times as many."""

    def __post_init__(self):
        check(self, (self.size.bit_count() == 1, f"size must be a power of two, not {self.size}"))


class ESRGANDiscriminator(nn.Module):
    """Image (N, 3, size, size), RGB in [0, 1] -> (N, 1) logits, positive for real. In the manner of VGG, with batch normalisation."""

    input_range = UNIT

    def __init__(self, config: ESRGANDiscriminatorConfig):
        super().__init__()
        self.config = config
        width = config.features
        layers: list[nn.Module] = [conv3x3(3, width), nn.LeakyReLU(0.2, inplace=True), *_normalised(width, width, halve=True)]
        for k in range(1, config.size.bit_length() - 3):  # down to 4 px
            wider = config.features * min(2**k, 8)
            layers += [*_normalised(width, wider, halve=False), *_normalised(wider, wider, halve=True)]
            width = wider
        self.features = nn.Sequential(*layers)
        self.dense = nn.Linear(16 * width, 100)
        self.out = nn.Linear(100, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, image: Tensor) -> Tensor:
        size = self.config.size
        if image.shape[1:] != (3, size, size):
            raise ValueError(f"the discriminator takes images (N, 3, {size}, {size}), not {tuple(image.shape)}")
        x = self.features(image)
        with full_precision(x):
            return self.out(F.leaky_relu_(self.dense(x.to(self.out.weight.dtype).flatten(1)), 0.2))


def _normalised(n_in: int, n_out: int, *, halve: bool) -> tuple[nn.Module, ...]:
    """A convolution, with stride 2 or not, batch normalisation, which makes a bias redundant, and the activation."""
    conv = nn.Conv2d(n_in, n_out, 4, 2, 1, bias=False) if halve else nn.Conv2d(n_in, n_out, 3, 1, 1, bias=False)
    return conv, nn.BatchNorm2d(n_out), nn.LeakyReLU(0.2, inplace=True)
