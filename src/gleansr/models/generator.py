"""The common parts of StyleGAN and StyleGAN2 generators: sizes, noise images, W+ latents and truncation.

Source: Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks", CVPR 2019.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Noise = str | Sequence[Tensor]


@dataclass(frozen=True)
class GeneratorConfig:
    """Architecture of one generator or discriminator. The number of resolutions, hence the size, follows from `channels`."""

    channels: tuple[int, ...]
    """Channels at 4, 8, ..., size px."""
    code_dim: int = 512
    """Width of z, of w and of the mapping's layers (generator)."""
    mapping_layers: int = 8
    """Layers of the mapping network (generator)."""
    stddev_group: int | None = 4
    """Images that share one minibatch standard deviation; None: the whole batch (discriminator)."""

    def __post_init__(self):
        if not 1 <= len(self.channels) <= 9 or not all(0 < n <= 8192 for n in self.channels):
            raise ValueError(f"channels must be 1 to 9 positive numbers, for 4, 8, ... 1024 px, not {self.channels}")
        if not (1 <= self.mapping_layers <= 64 and 1 <= self.code_dim <= 8192):
            raise ValueError(f"mapping_layers {self.mapping_layers} or code_dim {self.code_dim} is out of range")
        if self.stddev_group is not None and self.stddev_group < 1:
            raise ValueError(f"stddev_group must be positive, not {self.stddev_group}")

    @property
    def size(self) -> int:
        """Height and width of the image in pixels."""
        return 2 ** (len(self.channels) + 1)

    @property
    def n_latents(self) -> int:
        """Number L of W+ latents: 14 at 256 px, 18 at 1024 px."""
        return 2 * len(self.channels)


class Synthesis(nn.Module):
    """W+ latents to an image. `layers` turn `constant` (1, C(4), 4, 4) into features of 4, 8, ..., size px.

    A layer takes (x, w, noise); layer i reads latent i and has the stored noise image `noise_i`.
    """

    config: GeneratorConfig
    constant: nn.Parameter
    layers: nn.ModuleList
    to_rgb: nn.ModuleList

    def layers_at(self, j: int) -> range:
        """The indices of the layers with outputs of 4 * 2^j px."""
        raise NotImplementedError

    def noises(self, noise: Noise, n: int) -> list[Tensor | None]:
        """One noise image per layer, (n or 1, 1, H, W): "fixed" for the stored ones, "random" for new ones, "none", or given ones."""
        fixed = [self.get_buffer(f"noise_{i}") for i in range(len(self.layers))]
        if not isinstance(noise, str):
            if len(noise) != len(fixed):
                raise ValueError(f"{len(noise)} noise images were given, but this network has {len(fixed)} layers with noise")
            return list(noise)
        if noise == "fixed":
            return list(fixed)
        if noise == "random":
            return [torch.randn(n, *f.shape[1:], device=f.device) for f in fixed]
        if noise == "none":
            return [None] * len(fixed)
        raise ValueError(f'noise is {noise!r}, but must be "fixed", "random", "none" or a sequence of tensors')

    def check(self, latents: Tensor) -> Tensor:
        """`latents`. Raises ValueError unless they are (N, L, code_dim)."""
        if latents.ndim != 3 or tuple(latents.shape[1:]) != (self.config.n_latents, self.config.code_dim):
            expected = f"(N, {self.config.n_latents}, {self.config.code_dim})"
            raise ValueError(f"W+ latents have the shape {tuple(latents.shape)}, but this network takes {expected}")
        return latents


class Generator(nn.Module):
    """z -> w -> W+ -> image."""

    w_avg: Tensor | None

    def __init__(self, config: Any, mapping: nn.Module, synthesis: Synthesis):
        super().__init__()
        self.config = config
        self.mapping = mapping
        self.synthesis = synthesis
        self.register_buffer("w_avg", None)

    def forward(self, z: Tensor, truncation: float = 1.0, noise: Noise = "fixed", truncation_layers: int | None = None) -> Tensor:
        """z (N, code_dim), standard normal -> image (N, 3, size, size), RGB, nominally in [-1, 1], not clamped.

        `truncation` psi moves w towards w_avg: w_avg + psi * (w - w_avg), for the first `truncation_layers` of the L latents or for all.
        Without a stored w_avg each call estimates it from 16,384 seeded samples; set `w_avg` to keep it.
        `noise`: see `Synthesis.noises`.
        """
        w = self.mapping(z)
        latents = w[:, None].expand(-1, self.config.n_latents, -1)
        if truncation != 1:
            n = self.config.n_latents if truncation_layers is None else truncation_layers
            if not 0 <= n <= self.config.n_latents:
                raise ValueError(f"truncation_layers must be 0 to {self.config.n_latents}, not {n}")
            mean = self.estimate_w_avg() if self.w_avg is None else self.w_avg
            near = mean + truncation * (w - mean)
            latents = torch.cat([near[:, None].expand(-1, n, -1), latents[:, n:]], 1)
        return self.synthesis(latents, noise)

    def keep_features(self, n_sizes: int) -> None:
        """Removes everything but the layers of the first `n_sizes` sizes, 4, 8, ... px: the mapping, the RGB layers and larger layers.

        It cannot generate images afterwards.
        """
        synthesis = self.synthesis
        n = synthesis.layers_at(n_sizes - 1).stop
        for i in range(n, len(synthesis.layers)):
            delattr(synthesis, f"noise_{i}")
        synthesis.layers = synthesis.layers[:n]
        del synthesis.to_rgb, self.mapping
        self.w_avg = None

    @torch.no_grad()
    def estimate_w_avg(self, n: int = 16_384, seed: int = 0) -> Tensor:
        """Mean (code_dim) of w over `n` standard normal z, sampled on the CPU with `seed`: the same on every device."""
        z = torch.randn(n, self.config.code_dim, generator=torch.Generator().manual_seed(seed))
        return self.mapping(z.to(next(self.parameters()).device)).mean(0)
