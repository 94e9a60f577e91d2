"""The codes that an encoder has found lately, whose distribution the mapping network of a bank learns."""

import torch
from torch import Tensor, nn

from gleansr.models.stylegan2 import StyleGAN2Mapping
from gleansr.training.losses import sliced_wasserstein

KEPT = 4096
"""Codes."""
COMPARED = 1024
"""Codes of either distribution in a step."""
LR = 0.1
"""Of Adam. The mapping's weights act as a hundredth of what is stored: this is a thousandth of their deviation."""


class RecentLatents(nn.Module):
    """The last w that were found, from which a mapping network learns to make such of z."""

    latents: Tensor
    seen: Tensor
    """How many there have been, a single number."""

    def __init__(self, code_dim: int):
        super().__init__()
        self.register_buffer("latents", torch.zeros(KEPT, code_dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def add(self, latents: Tensor) -> None:
        """Takes codes (n, code_dim) in the place of the oldest."""
        self.latents[(torch.arange(len(latents), device=latents.device) + self.seen) % KEPT] = latents
        self.seen += len(latents)

    def distance(self, mapping: StyleGAN2Mapping) -> Tensor:
        """How far the distribution of `mapping`'s codes is from that of these, see `sliced_wasserstein`; both are drawn from."""
        known = min(int(self.seen), KEPT)
        found = self.latents[torch.randint(known, (COMPARED,), device=self.latents.device)]
        return sliced_wasserstein(mapping(torch.randn_like(found)), found)
