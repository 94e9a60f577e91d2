"""The compact network of Real-ESRGAN for general images.

Source: Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCVW 2021, and the authors' code,
SRVGGNetCompact.
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.configs import Range, check
from gleansr.models.network import UNIT, SRNetwork
from gleansr.models.rrdb import conv3x3


@dataclass(frozen=True)
class SRVGGNetConfig:
    """Architecture of a compact network."""

    scale: Annotated[int, Range(1, 16)] = 4
    """Enlargement."""
    features: Annotated[int, Range(1, 8192)] = 64
    """Channels of every layer but the last, which has 3 * scale^2."""
    n_convs: Annotated[int, Range(0, 256)] = 32
    """Convolutions between the first and the last."""

    def __post_init__(self):
        check(self)


class SRVGGNet(SRNetwork):
    """Convolutions with PReLU at the input's size; their pixel shuffle is added to the input, enlarged by repeating pixels."""

    name = "Real-ESRGAN"
    input_range = UNIT

    def __init__(self, config: SRVGGNetConfig):
        super().__init__()
        self.config, self.scale = config, config.scale
        layers: list[nn.Module] = []
        for n_in in (3, *[config.features] * config.n_convs):
            layers += [conv3x3(n_in, config.features), nn.PReLU(config.features)]
        self.body = nn.Sequential(*layers, conv3x3(config.features, 3 * config.scale**2))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, 3, H, W), RGB in [0, 1] -> (N, 3, scale * H, scale * W), not clamped."""
        residual = F.pixel_shuffle(self.body(x), self.scale)
        return residual + F.interpolate(x, scale_factor=float(self.scale), mode="nearest")
