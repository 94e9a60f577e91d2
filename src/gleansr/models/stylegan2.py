"""StyleGAN2: the generator (mapping and synthesis) that serves as latent bank, and its discriminator.

Source: Karras et al., "Analyzing and Improving the Image Quality of StyleGAN", CVPR 2020: the "skip" generator and the "resnet"
discriminator.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.models.generator import Generator, GeneratorConfig, Noise, Synthesis
from gleansr.models.layers import (
    SQRT2,
    EqualConv,
    EqualLinear,
    FrozenStyled,
    ModulatedConv,
    UpsampleRGB,
    full_precision,
    minibatch_stddev,
    scale,
)
from gleansr.models.network import SIGNED


def stylegan2_channels(size: int, multiplier: float = 2, limit: int = 512) -> tuple[int, ...]:
    """Channels at 4, 8, ..., `size` px of the published networks (`multiplier` 2 is "config-f", 1 its half)."""
    return tuple(min(limit, int(16384 * multiplier) // 2**power) for power in range(2, int(math.log2(size)) + 1))


@dataclass(frozen=True)
class StyleGAN2Config(GeneratorConfig):
    """Architecture of one generator or discriminator. The number of resolutions, hence the size, follows from `channels`."""

    clamp: float | None = None
    """Limit of the magnitude of activations; 256 in NVIDIA's networks trained in half precision."""


class StyleGAN2Mapping(nn.Module):
    """z (N, code_dim), standard normal -> w (N, code_dim)."""

    def __init__(self, code_dim: int, n_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(code_dim, code_dim, lr_mul=0.01, activation=True) for _ in range(n_layers))

    def forward(self, z: Tensor) -> Tensor:
        with full_precision(z):
            w = z.to(next(self.parameters()).dtype)
            w = w * torch.rsqrt(w.square().mean(1, keepdim=True) + 1e-8)
            for layer in self.layers:
                w = layer(w)
        return w


class StyledConv(nn.Module):
    """Modulated 3x3 convolution, noise, bias, activation."""

    def __init__(self, n_in: int, n_out: int, config: StyleGAN2Config, *, up: bool):
        super().__init__()
        self.conv = ModulatedConv(n_in, n_out, 3, config.code_dim, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.clamp = config.clamp

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """x (N, in, H, W), w (N, code_dim), noise (N or 1, 1, H', W') or None -> (N, out, H', W')."""
        style, weight, gain = self.conv.factors(w)
        # The activation's gain, sqrt(2), commutes with it and is applied before.
        gain, bias = cast("Tensor", gain) * SQRT2, self.bias * SQRT2
        noise = None if noise is None else noise * (self.noise_strength * SQRT2)
        frozen = not any(t is not None and t.requires_grad for t in (weight, bias, noise))
        if frozen and torch.is_grad_enabled():
            x = cast("Tensor", FrozenStyled.apply(x, style, gain, weight, noise, bias, self.conv))
        else:
            x = self.conv.convolve(x, style, weight)
            x = scale(x, gain[:, :, None, None].to(x.dtype)).add_(bias.to(x.dtype)[:, None, None])
            x = F.leaky_relu_(x if noise is None else x.add_(noise.to(x.dtype)), 0.2)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """Features to RGB, added to the doubled RGB of the resolution below."""

    def __init__(self, n_in: int, config: StyleGAN2Config):
        super().__init__()
        self.conv = ModulatedConv(n_in, 3, 1, config.code_dim, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))
        self.up = UpsampleRGB()
        self.clamp = config.clamp

    def forward(self, x: Tensor, w: Tensor, rgb: Tensor | None) -> Tensor:
        """x (N, in, H, W), w (N, code_dim), rgb (N, 3, H/2, W/2) or None -> (N, 3, H, W) of full precision."""
        y = self.conv(x, w).to(self.bias.dtype) + self.bias[:, None, None]
        if self.clamp is not None:
            y = y.clamp(-self.clamp, self.clamp)
        return y if rgb is None else y + self.up(rgb)


class StyleGAN2Synthesis(Synthesis):
    """W+ latents to an image. Layer i reads latent i; the RGB of resolution 4 * 2^j reads latent 2j + 1."""

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.config = config
        channels = config.channels
        self.constant = nn.Parameter(torch.randn(1, channels[0], 4, 4))
        self.layers = nn.ModuleList([StyledConv(channels[0], channels[0], config, up=False)])
        for n_in, n_out in itertools.pairwise(channels):
            self.layers += [StyledConv(n_in, n_out, config, up=True), StyledConv(n_out, n_out, config, up=False)]
        self.to_rgb = nn.ModuleList(ToRGB(n, config) for n in channels)
        for i in range(len(self.layers)):
            size = 4 * 2 ** ((i + 1) // 2)
            self.register_buffer(f"noise_{i}", torch.randn(1, 1, size, size))

    def layers_at(self, j: int) -> range:
        return range(2 * j - 1, 2 * j + 1) if j else range(1)

    def forward(self, latents: Tensor, noise: Noise = "fixed") -> Tensor:
        """latents (N, L, code_dim) in W+ -> image (N, 3, size, size), RGB, nominally in [-1, 1], not clamped."""
        noises = self.noises(noise, len(self.check(latents)))
        x = self.constant.expand(len(latents), -1, -1, -1)
        rgb: Any = None
        for i, layer in enumerate(self.layers):
            x = layer(x, latents[:, i], noises[i])
            if i % 2 == 0:
                rgb = self.to_rgb[i // 2](x, latents[:, i + 1], rgb)
        return rgb


class StyleGAN2(Generator):
    """The generator: z -> w -> W+ -> image."""

    config: StyleGAN2Config
    mapping: StyleGAN2Mapping
    synthesis: StyleGAN2Synthesis

    def __init__(self, config: StyleGAN2Config):
        super().__init__(config, StyleGAN2Mapping(config.code_dim, config.mapping_layers), StyleGAN2Synthesis(config))


class StyleGAN2DiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions parallel to a 1x1 skip, with half the size. x (N, in, H, W) -> (N, out, H/2, W/2)."""

    def __init__(self, n_in: int, n_out: int, clamp: float | None):
        super().__init__()
        self.conv1 = EqualConv(n_in, n_in, 3)
        self.conv2 = EqualConv(n_in, n_out, 3, down=True)
        self.skip = EqualConv(n_in, n_out, 1, down=True, activation=False)
        self.clamp = clamp

    def _limit(self, x: Tensor) -> Tensor:
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)

    def forward(self, x: Tensor) -> Tensor:
        y = self._limit(self.conv2(self._limit(self.conv1(x))))
        return (y + self.skip(x)) * math.sqrt(0.5)  # NVIDIA clamps only convolutions with an activation


class StyleGAN2Discriminator(nn.Module):
    """Image (N, 3, size, size), RGB in [-1, 1] -> (N, 1) logits, positive for real."""

    input_range = SIGNED

    def __init__(self, config: StyleGAN2Config):
        super().__init__()
        self.config = config
        top_down = config.channels[::-1]
        self.from_rgb = EqualConv(3, top_down[0], 1)
        self.blocks = nn.ModuleList(StyleGAN2DiscriminatorBlock(n_in, n_out, config.clamp) for n_in, n_out in itertools.pairwise(top_down))
        width = config.channels[0]
        self.conv = EqualConv(width + 1, width, 3)
        self.dense = EqualLinear(width * 16, width, activation=True)
        self.out = EqualLinear(width, 1)

    def forward(self, image: Tensor) -> Tensor:
        """image (N, 3, size, size) -> (N, 1). N is at most `stddev_group` or a multiple of it."""
        vector = self._features(image, self.config.stddev_group)[-1]
        with full_precision(vector):
            return self.out(vector)

    def features(self, image: Tensor) -> list[Tensor]:
        """The features that DGP compares, for image (N, 3, size, size), RGB in [-1, 1].

        The outputs of the blocks, (N, C, H, W) each, and the input of the last linear layer, (N, C(4)). Every image is its own group for
        the minibatch standard deviation, so its features do not depend on the others.
        """
        return self._features(image, 1)

    def _features(self, image: Tensor, stddev_group: int | None) -> list[Tensor]:
        size = self.config.size
        if image.shape[1:] != (3, size, size):
            raise ValueError(f"the discriminator takes images (N, 3, {size}, {size}), not {tuple(image.shape)}")
        limit = self.config.clamp
        x = self.from_rgb(image)
        x = x if limit is None else x.clamp(-limit, limit)
        features: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        x = self.conv(minibatch_stddev(x, stddev_group))
        x = x if limit is None else x.clamp(-limit, limit)
        with full_precision(x):
            return [*features, self.dense(x.to(self.out.weight.dtype).flatten(1))]
