"""The encoder from images to latents, trained jointly with a bank so that the bank covers the training images.

Source: Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", ICML 2016, here without the variational part. The
layers are those of StyleGAN2's discriminator.
"""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.models.layers import EqualConv, EqualLinear, full_precision
from gleansr.models.stylegan2 import StyleGAN2Config, StyleGAN2DiscriminatorBlock

MAX_SIZE = 64
"""Height and width in pixels to which larger images are reduced: noise, not latents, accounts for finer detail."""


class LatentEncoder(nn.Module):
    """Image (N, 3, size, size), RGB in [-1, 1] -> w (N, code_dim), from which the bank reconstructs it.

    Banks with the same channels up to 64 px have the same encoder.
    """

    def __init__(self, config: StyleGAN2Config):
        """`config`: the bank's."""
        super().__init__()
        self.config = config
        channels = [n for i, n in enumerate(config.channels) if 4 * 2**i <= MAX_SIZE]
        self.from_rgb = EqualConv(3, channels[-1], 1)
        self.blocks = nn.ModuleList(
            StyleGAN2DiscriminatorBlock(n_in, n_out, config.clamp) for n_in, n_out in itertools.pairwise(channels[::-1])
        )
        self.dense = EqualLinear(channels[0] * 16, channels[0], activation=True)
        self.out = EqualLinear(channels[0], config.code_dim)

    def forward(self, image: Tensor) -> Tensor:
        x = self.from_rgb(F.avg_pool2d(image, max(1, self.config.size // MAX_SIZE)))
        for block in self.blocks:
            x = block(x)
        with full_precision(x):
            return self.out(self.dense(x.to(self.out.weight.dtype).flatten(1)))
