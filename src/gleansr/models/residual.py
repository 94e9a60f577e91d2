"""A residual network without a latent bank, the no-prior CNN.

Source: Lim et al., "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017, on top of bicubic interpolation.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.configs import Range, check
from gleansr.images.resize import resize
from gleansr.models.network import SRNetwork
from gleansr.models.rrdb import conv3x3


@dataclass(frozen=True)
class ResidualNetConfig:
    """Architecture of a residual network."""

    scale: Annotated[int, Range(1, 64)] = 8
    """Enlargement."""
    features: Annotated[int, Range(1, 8192)] = 48
    """Channels of every layer but the last, which has 3 * scale^2."""
    n_blocks: Annotated[int, Range(0, 256)] = 12
    """Number of residual blocks."""

    def __post_init__(self):
        check(self)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))). x (N, C, H, W) -> the same shape."""

    def __init__(self, features: int):
        super().__init__()
        self.conv1 = conv3x3(features, features)
        self.conv2 = conv3x3(features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu_(self.conv1(x)))


class ResidualNet(SRNetwork):
    """Bicubic enlargement, and what residual blocks at the input's size add to it by pixel shuffle."""

    name = "plain"

    def __init__(self, config: ResidualNetConfig):
        super().__init__()
        self.config, self.scale = config, config.scale
        self.first = conv3x3(3, config.features)
        self.body = nn.Sequential(*(ResidualBlock(config.features) for _ in range(config.n_blocks)))
        self.last = conv3x3(config.features, 3 * config.scale**2)
        # Untrained, it equals bicubic upscaling: training starts at the baseline, without checkerboard artefacts.
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, H, W), RGB in [-1, 1], float32 -> (N, 3, scale * H, scale * W), float32 under autocast too, not clamped.

        Raises RequestError, as `resize` does, if x is of half precision or holds NaN or infinity.
        """
        residual = F.pixel_shuffle(self.last(self.body(self.first(x))), self.config.scale)
        return residual + (torch.empty_like(residual) if x.is_meta else resize(x, scale=self.config.scale))
