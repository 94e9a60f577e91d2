"""StyleGAN, the first version: the generator that serves as latent bank, and its discriminator.

Source: Karras et al., "A Style-Based Generator Architecture for Generative Adversarial Networks", CVPR 2019; numbers as in GenForce's
implementation.
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.models.generator import Generator, GeneratorConfig, Noise, Synthesis
from gleansr.models.layers import SQRT2, Blur, EqualLinear, full_precision, minibatch_stddev, scale
from gleansr.models.network import SIGNED

BLUR = (1, 2, 1)


@dataclass(frozen=True)
class StyleGANConfig(GeneratorConfig):
    """Architecture of one generator or discriminator. The number of resolutions, hence the size, follows from `channels`."""

    lod: float = 0.0
    """Number of doublings that progressive training lacks to the full size; fractions blend two sizes."""
    norm_eps: float = 1e-8
    """Added to the variance by the instance normalisation (generator): 1e-8 in the official networks, 1e-5 in PULSE's."""

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.lod <= len(self.channels) - 1:
            raise ValueError(f"lod must be 0 to {len(self.channels) - 1}, the number of doublings, not {self.lod}")
        if not 0 < self.norm_eps <= 1:
            raise ValueError(f"norm_eps must be above 0 and at most 1, not {self.norm_eps}")


class EqualizedConv(nn.Module):
    """Convolution with equalised weights. x (N, in, H, W) -> (N, out, H, W)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, *, gain: float = SQRT2, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(n_out)) if bias else None
        self.scale = gain / math.sqrt(n_in * kernel * kernel)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.weight.shape[-1] // 2)


class EqualizedUpConv(nn.Module):
    """Nearest-neighbour doubling fused with a 3x3 convolution, then the blur. x (N, in, H, W) -> (N, out, 2H, 2W).

    Repeating pixels before a 3x3 kernel equals a transposed convolution of stride 2 with the sum of the kernel's four shifts by a pixel, at
    less than half the work. The official code uses the former below 128 px and the latter, which mirrors the kernel, from there on. This
    layer always uses the latter, with the weight of nn.ConvTranspose2d: (in, out, 3, 3). File readers mirror the kernels of small sizes.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out, 3, 3))
        self.blur = Blur(padding=1, taps=BLUR)
        self.scale = SQRT2 / math.sqrt(n_in * 9)

    def forward(self, x: Tensor) -> Tensor:
        kernel = shifts_mean(self.weight * (4 * self.scale))
        return self.blur(F.conv_transpose2d(x, kernel, stride=2, padding=1))


class DownConv(EqualizedConv):
    """The blur, then a 3x3 convolution fused with 2x2 average pooling. x (N, in, H, W) -> (N, out, H/2, W/2).

    The two equal a convolution of stride 2 with the mean of the kernel's four shifts, which the official code uses from 128 px on.
    """

    def __init__(self, n_in: int, n_out: int):
        super().__init__(n_in, n_out, 3)
        self.blur = Blur(padding=1, taps=BLUR)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.blur(x), shifts_mean(self.weight * self.scale), self.bias, stride=2, padding=1)


def shifts_mean(kernel: Tensor) -> Tensor:
    """Kernels (.., .., 3, 3) -> (.., .., 4, 4), the mean of each kernel unshifted and shifted by a pixel down, right and both."""
    return F.avg_pool2d(kernel, 2, stride=1, padding=1)


class StyleGANMapping(nn.Module):
    """z (N, code_dim), standard normal -> w (N, code_dim)."""

    def __init__(self, code_dim: int, n_layers: int):
        super().__init__()
        self.layers = nn.ModuleList(EqualLinear(code_dim, code_dim, lr_mul=0.01, gain=SQRT2) for _ in range(n_layers))

    def forward(self, z: Tensor) -> Tensor:
        with full_precision(z):
            w = z.to(next(self.parameters()).dtype)
            w = w * torch.rsqrt(w.square().mean(1, keepdim=True) + 1e-8)
            for layer in self.layers:
                w = F.leaky_relu_(layer(w), 0.2)
        return w


class StyledLayer(nn.Module):
    """A convolution or nothing, noise, bias, activation, instance normalisation, style (AdaIN)."""

    def __init__(self, conv: nn.Module | None, n_out: int, code_dim: int, norm_eps: float = 1e-8):
        super().__init__()
        self.conv = conv
        self.norm_eps = norm_eps
        self.noise_strength = nn.Parameter(torch.zeros(n_out))
        self.bias = nn.Parameter(torch.zeros(n_out))
        self.affine = EqualLinear(code_dim, 2 * n_out)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """x (N, in, H, W), w (N, code_dim), noise (N or 1, 1, H', W') or None -> (N, out, H', W')."""
        x = x.clone() if self.conv is None else self.conv(x)  # a copy that can be overwritten
        dtype = x.dtype
        with full_precision(x):  # x may be of half precision: what is done to it is computed in the other operands' precision
            gain, shift = self.affine(w.to(self.bias.dtype)).unflatten(1, (2, -1, 1, 1)).unbind(1)  # (N, out, 1, 1) each
            if noise is not None:
                x.addcmul_(noise, self.noise_strength[:, None, None])
            x = F.leaky_relu_(x.add_(self.bias[:, None, None]), 0.2)
            mean = x.mean((2, 3), keepdim=True, dtype=self.bias.dtype)
            x = x - mean if torch.is_grad_enabled() else x.sub_(mean)
            variance = x.square().mean((2, 3), keepdim=True, dtype=self.bias.dtype)
            return scale(x, torch.rsqrt(variance + self.norm_eps) * (gain + 1)).add_(shift).to(dtype)


class StyleGANSynthesis(Synthesis):
    """W+ latents to an image. Layers 2j and 2j + 1 work at 4 * 2^j px; only the RGB layer of the size given by `lod` is used."""

    config: StyleGANConfig

    def __init__(self, config: StyleGANConfig):
        super().__init__()
        self.config = config
        channels = config.channels
        self.constant = nn.Parameter(torch.ones(1, channels[0], 4, 4))
        self.layers = nn.ModuleList()
        for j, n in enumerate(channels):
            for conv in (EqualizedUpConv(channels[j - 1], n) if j else None, EqualizedConv(n, n, 3, bias=False)):
                self.layers.append(StyledLayer(conv, n, config.code_dim, config.norm_eps))
        self.to_rgb = nn.ModuleList(EqualizedConv(n, 3, 1, gain=1.0) for n in channels)
        for i in range(len(self.layers)):
            size = 4 * 2 ** (i // 2)
            self.register_buffer(f"noise_{i}", torch.randn(1, 1, size, size))

    def layers_at(self, j: int) -> range:
        return range(2 * j, 2 * j + 2)

    def forward(self, latents: Tensor, noise: Noise = "fixed") -> Tensor:
        """latents (N, L, code_dim) in W+ -> image (N, 3, size, size), RGB, nominally in [-1, 1], not clamped."""
        noises = self.noises(noise, len(self.check(latents)))
        missing = int(self.config.lod)
        part = self.config.lod - missing
        last = len(self.config.channels) - 1 - missing
        below = None  # the RGB of half the size
        x = self.constant.expand(len(latents), -1, -1, -1)
        for j in range(last + 1):
            for i in self.layers_at(j):
                x = self.layers[i](x, latents[:, i], noises[i])
            if part and j == last - 1:
                below = self.to_rgb[j](x)
        rgb = self.to_rgb[last](x)
        if below is not None:
            rgb = torch.lerp(rgb, upsample_nearest(below, 2), part)
        return upsample_nearest(rgb, 2**missing).to(self.constant.dtype)


def upsample_nearest(x: Tensor, scale: int) -> Tensor:
    """Repeats every pixel. x (N, C, H, W) -> (N, C, scale * H, scale * W)."""
    return x if scale == 1 else F.interpolate(x, scale_factor=float(scale))


class StyleGAN(Generator):
    """The generator: z -> w -> W+ -> image."""

    config: StyleGANConfig
    mapping: StyleGANMapping
    synthesis: StyleGANSynthesis

    def __init__(self, config: StyleGANConfig):
        super().__init__(config, StyleGANMapping(config.code_dim, config.mapping_layers), StyleGANSynthesis(config))


class StyleGANDiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions, halving the size. x (N, in, H, W) -> (N, out, H/2, W/2)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.conv1 = EqualizedConv(n_in, n_in, 3)
        self.conv2 = DownConv(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(self.conv2(F.leaky_relu_(self.conv1(x), 0.2)), 0.2)


class StyleGANDiscriminator(nn.Module):
    """Image (N, 3, size, size), RGB in [-1, 1] -> (N, 1) logits, positive for real."""

    input_range = SIGNED

    def __init__(self, config: StyleGANConfig):
        super().__init__()
        self.config = config
        top_down = config.channels[::-1]
        self.from_rgb = nn.ModuleList(EqualizedConv(3, n, 1) for n in top_down)
        self.blocks = nn.ModuleList(StyleGANDiscriminatorBlock(n_in, n_out) for n_in, n_out in itertools.pairwise(top_down))
        width = config.channels[0]
        self.conv = EqualizedConv(width + 1, width, 3)
        self.dense = EqualLinear(width * 16, width, gain=SQRT2)
        self.out = EqualLinear(width, 1)

    def forward(self, image: Tensor) -> Tensor:
        """image (N, 3, size, size) -> (N, 1). N is at most `stddev_group` or a multiple of it."""
        vector = self._features(image, self.config.stddev_group)[-1]
        with full_precision(vector):
            return self.out(vector)

    def features(self, image: Tensor) -> list[Tensor]:
        """The features that DGP compares, for image (N, 3, size, size), RGB in [-1, 1].

        The outputs of the blocks from the size given by `lod`, (N, C, H, W) each, and the input of the last linear layer, (N, C(4)). Every
        image is its own group for the minibatch standard deviation, so its features do not depend on the others.
        """
        return self._features(image, 1)

    def _features(self, image: Tensor, stddev_group: int | None) -> list[Tensor]:
        size = self.config.size
        if image.shape[1:] != (3, size, size):
            raise ValueError(f"the discriminator takes images (N, 3, {size}, {size}), not {tuple(image.shape)}")
        missing = int(self.config.lod)
        part = self.config.lod - missing
        if missing:
            image = F.avg_pool2d(image, 2**missing)
        x = self._enter(image, missing)
        features: list[Tensor] = []
        for b in range(missing, len(self.blocks)):
            x = self.blocks[b](x)
            if part and b == missing:
                x = torch.lerp(x, self._enter(F.avg_pool2d(image, 2), b + 1), part)
            features.append(x)
        x = F.leaky_relu_(self.conv(minibatch_stddev(x, stddev_group)), 0.2)
        with full_precision(x):
            return [*features, F.leaky_relu_(self.dense(x.to(self.out.weight.dtype).flatten(1)), 0.2)]

    def _enter(self, image: Tensor, b: int) -> Tensor:
        """image of the size that block b reads -> its features."""
        return F.leaky_relu_(self.from_rgb[b](image), 0.2)
