"""A discriminator on the features of a pretrained network: trains a bank with a fraction of the images.

Source: Sauer et al., "Projected GANs Converge Faster", NeurIPS 2021. Here the features are SqueezeNet's, mixed across channels by fixed
random projections; the cross-scale mixing of the paper is omitted.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from gleansr.models.features import SqueezeNet


class ProjectedDiscriminator(nn.Module):
    """Image (N, 3, size, size), RGB in [-1, 1] -> (N, K) logits, positive for real: one per position and feature level."""

    def __init__(self, features: SqueezeNet, size: int, width: int = 64):
        super().__init__()
        self.features = features.requires_grad_(False)
        self.projections = nn.ModuleList()
        self.heads = nn.ModuleList()
        with torch.no_grad():
            levels = [tuple(level.shape[1:]) for level in self._levels(torch.zeros(1, 3, size, size))]
        for channels, height, _ in levels:
            projection = nn.Conv2d(channels, width, 1, bias=False).requires_grad_(False)
            nn.init.kaiming_normal_(projection.weight)
            head: list[nn.Module] = []
            while height > 8:
                head += [spectral_norm(nn.Conv2d(width, width, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
                height //= 2
            head += [spectral_norm(nn.Conv2d(width, width, 3, padding=1)), nn.LeakyReLU(0.2)]
            self.projections.append(projection)
            self.heads.append(nn.Sequential(*head, spectral_norm(nn.Conv2d(width, 1, 3, padding=1))))

    def _levels(self, image: Tensor) -> list[Tensor]:
        """The image, at most 64 px, and the network's features at unit length: raw levels differ by orders of magnitude. Unit length hides
        contrast and brightness, hence the image itself."""
        stride = max(1, image.shape[-1] // 64)
        features = [F.normalize(level, dim=1) * level.shape[1] ** 0.5 for level in self.features(image)]
        return [F.avg_pool2d(image, stride), *features]

    def forward(self, image: Tensor) -> Tensor:
        """image (N, 3, size, size) -> (N, K)."""
        logits = []
        for level, projection, head in zip(self._levels(image), self.projections, self.heads, strict=True):
            logits.append(head(projection(level)).flatten(1))
        return torch.cat(logits, 1)
