"""Images to the codes of a bank: the encoder beside which a bank is trained so that it can draw all that it is shown.

Source: Larsen et al., "Autoencoding beyond pixels using a learned similarity metric", ICML 2016, here without the variational part. The
layers are those of StyleGAN2's discriminator.
"""

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.models.layers import EqualConv, EqualLinear, full_precision
from gleansr.models.stylegan2 import StyleGAN2Config, StyleGAN2DiscriminatorBlock

LARGEST = 64
"""Height and width in pixels at which larger images are seen: finer detail is the noise's, not the code's."""


class CodeEncoder(nn.Module):
    """Image (N, 3, size, size), RGB in [-1, 1] -> w (N, code_dim), from which the bank draws it again.

    It is the same network for banks that have the same channels up to 64 px, and grows with them.
    """

    def __init__(self, config: StyleGAN2Config):
        """`config`: the bank's."""
        super().__init__()
        self.config = config
        seen = [n for i, n in enumerate(config.channels) if 4 * 2**i <= LARGEST]
        self.from_rgb = EqualConv(3, seen[-1], 1)
        self.blocks = nn.ModuleList(
            StyleGAN2DiscriminatorBlock(n_in, n_out, config.clamp) for n_in, n_out in itertools.pairwise(seen[::-1])
        )
        self.dense = EqualLinear(seen[0] * 16, seen[0], activation=True)
        self.out = EqualLinear(seen[0], config.code_dim)

    def forward(self, image: Tensor) -> Tensor:
        x = self.from_rgb(F.avg_pool2d(image, max(1, self.config.size // LARGEST)))
        for block in self.blocks:
            x = block(x)
        with full_precision(x):
            return self.out(self.dense(x.to(self.out.weight.dtype).flatten(1)))
