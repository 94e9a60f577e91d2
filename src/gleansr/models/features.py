"""Networks trained on ImageNet whose features measure likeness: perceptual losses and distances."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6


class Fire(nn.Module):
    """Squeeze to a few channels, then expand by 1x1 and 3x3 side by side. x (N, in, H, W) -> (N, 2 * expand, H, W)."""

    def __init__(self, n_in: int, squeeze: int, expand: int):
        super().__init__()
        self.squeeze = nn.Conv2d(n_in, squeeze, 1)
        self.expand1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1(x), self.expand3(x)], 1))


class SqueezeNet(nn.Module):
    """The convolutions of SqueezeNet 1.1 (Iandola et al., 2016) up to fire9, for weights in Caffe's convention."""

    mean: Tensor

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, stride=2, padding=1)
        widths = (64, 128, 128, 256, 256, 384, 384, 512)
        self.fires = nn.ModuleList(  # fire2 ... fire9
            Fire(n_in, 16 * (1 + i // 2), 64 * (1 + i // 2)) for i, n_in in enumerate(widths)
        )
        self.register_buffer("mean", torch.tensor([104.006, 116.669, 122.679], device="cpu")[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image (N, 3, H, W), RGB in [-1, 1] -> the outputs after ReLU of conv1, fire3, fire5, fire7 and fire9."""
        x = (image.flip(1) + 1) * 127.5 - self.mean  # BGR in 0..255, less the mean
        x = F.relu(self.conv1(x))
        features = [x]
        for i, fire in enumerate(self.fires, start=2):
            if i in (2, 4, 6):
                x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
            x = fire(x)
            if i % 2:
                features.append(x)
        return features


def feature_distance(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Distance (N) between two lists of features (N, C, H, W): each normalised to unit length over channels, squared difference summed over
    channels, averaged over positions, summed over layers.

    Computed as |a|^2 + |b|^2 - 2 a.b of the unit vectors, a third of the work of normalising first.
    """
    total = torch.zeros(len(a[0]), device=a[0].device)
    for x, y in zip(a, b, strict=True):
        xx, yy, xy = (torch.sum(u * v, 1, dtype=torch.float32) for u, v in ((x, x), (y, y), (x, y)))
        # A place where nothing is active is the zero vector, at distance 1 from any unit vector; EPS keeps its gradient finite.
        distance = xx / (xx + EPS) + yy / (yy + EPS) - 2 * xy * torch.rsqrt((xx + EPS) * (yy + EPS))
        total = total + distance.mean((1, 2))
    return total
