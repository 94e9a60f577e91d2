"""A small classifier of images by their subject, on the features of EfficientNet-Lite0."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.models.features import EfficientNetLite0

NAMES = ("faces", "cats", "cars", "bedrooms", "towers", "other")
"""The categories, in the order of the classifier's outputs."""

CHANNELS = 40 + 112 + 320  # of blocks 5, 11 and 16
GRID = 3
_REDUCED = 80
_HIDDEN = 56


class CategoryHead(nn.Module):
    """Standardises the features, reduces their channels, and sees the grid as a whole.

    The logits of the bundled head are calibrated: their softmax is the probability of each category.
    """

    mean: Tensor
    deviation: Tensor
    threshold: Tensor

    def __init__(self):
        super().__init__()
        self.reduce = nn.Linear(CHANNELS, _REDUCED)
        self.hidden = nn.Linear(_REDUCED * GRID**2, _HIDDEN)
        self.output = nn.Linear(_HIDDEN, len(NAMES))
        self.register_buffer("mean", torch.zeros(CHANNELS, 1, 1))
        self.register_buffer("deviation", torch.ones(CHANNELS, 1, 1))
        # An image whose most probable category of the first five is below it counts as "other".
        self.register_buffer("threshold", torch.full((1,), 0.5))

    def forward(self, features: Tensor, dropout: float = 0.0) -> Tensor:
        """features (N, 472, 3, 3), see `grid_features` -> logits (N, 6) in the order of `NAMES`.

        `dropout` is the share of the channels, and then of the reduced features, that are left out.
        """
        x = F.dropout2d((features - self.mean) / self.deviation, dropout)
        x = self.reduce(x.flatten(2).mT.contiguous())  # (N, 9, channels): faster than a 1x1 convolution
        x = F.dropout(F.relu(x).flatten(1), dropout)
        return self.output(F.relu(self.hidden(x)))


def choose(probabilities: Tensor, threshold: float) -> Tensor:
    """The category (N), an index in `NAMES`, by probabilities (N, 6): the most probable of the five if it reaches `threshold` and
    exceeds "other", otherwise "other"."""
    best, names = probabilities[:, :-1].max(1)
    return torch.where((best >= threshold) & (best > probabilities[:, -1]), names, len(NAMES) - 1)


def grid_features(network: EfficientNetLite0, images: Tensor) -> Tensor:
    """images (N, 3, H, W), RGB in [-1, 1] -> the means of the outputs of blocks 5, 11 and 16 in 3x3 cells (N, 472, 3, 3)."""
    layers = network(images.contiguous(memory_format=torch.channels_last))[2:]
    return torch.cat([F.adaptive_avg_pool2d(layer, GRID) for layer in layers], 1)
