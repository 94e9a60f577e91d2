"""LPIPS: a perceptual distance fitted to people's judgements."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.checkpoints.bundled import lpips_heads
from gleansr.errors import RequestError
from gleansr.models.features import AlexNet, VGG16Stages

EPS = 1e-10


class LPIPS(nn.Module):
    """Learned perceptual image patch similarity, version 0.1: a distance, 0 for equal images.

    Zhang, Isola, Efros, Shechtman, Wang, "The unreasonable effectiveness of deep features as a perceptual metric" (2018), equation 1:
    in each of five layers of a network trained on ImageNet, features are normalised to unit length at each position; their squared
    differences are weighted by channel, summed over channels and averaged over positions; layers are summed.
    Agrees with the authors' package lpips 0.1.4. AlexNet and VGG16 give two different metrics.
    """

    def __init__(self, backbone: AlexNet | VGG16Stages):
        super().__init__()
        self.backbone = backbone
        self.net: Literal["alex", "vgg"] = "alex" if isinstance(backbone, AlexNet) else "vgg"
        for layer, head in enumerate(lpips_heads(self.net)):
            self.register_buffer(f"head{layer}", head)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """The distance (N) of images (N, 3, H, W), RGB in [-1, 1], of at least 31x31 pixels with AlexNet, 16x16 with VGG16."""
        return self.distance(self.features(a), self.features(b))

    def features(self, image: Tensor) -> list[Tensor]:
        """The features of five layers, normalised to unit length."""
        if min(image.shape[-2:]) < (side := self.backbone.min_size):
            raise RequestError(
                f"lpips_{self.net} needs images of at least {side}x{side} pixels, not {image.shape[-1]}x{image.shape[-2]}: "
                f"leave lpips_{self.net} out of the metrics"
            )
        return [x / (x.square().sum(1, keepdim=True).sqrt() + EPS) for x in self.backbone(image)]

    def distance(self, features_a: list[Tensor], features_b: list[Tensor]) -> Tensor:
        """The distance (N) between features of images, see `features`."""
        total = torch.zeros(len(features_a[0]), device=features_a[0].device)
        for layer, (x, y) in enumerate(zip(features_a, features_b, strict=True)):
            total = total + F.conv2d((x - y).square(), self.get_buffer(f"head{layer}")[None, :, None, None]).mean((1, 2, 3))
        return total
