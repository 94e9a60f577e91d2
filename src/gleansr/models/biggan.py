"""BigGAN, the class-conditional generator of ImageNet, and its discriminator.

Source: Brock et al., "Large Scale GAN Training for High Fidelity Natural Image Synthesis", ICLR 2019; numbers as in its authors' PyTorch
implementation, in the form in which Pan et al., "Exploiting Deep Generative Prior for Versatile Image Restoration and Manipulation", ECCV
2020 (DGP) use it: both networks are always in evaluation mode, whatever `training` says.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.configs import Range, check
from gleansr.models.layers import full_precision

GENERATOR_WIDTHS = {
    64: (16, 16, 8, 4, 2),
    128: (16, 16, 8, 4, 2, 1),
    256: (16, 16, 8, 8, 4, 2, 1),
    512: (16, 16, 8, 8, 4, 2, 1, 1),
}
"""Size of the image -> widths at 4, 8, ..., size px, in multiples of the base width."""

DISCRIMINATOR_WIDTHS = {
    64: (1, 2, 4, 8, 16),
    128: (1, 2, 4, 8, 16, 16),
    256: (1, 2, 4, 8, 8, 16, 16),
}
"""Size of the image -> the blocks' widths, in multiples of the base width. All blocks but the last halve."""


@dataclass(frozen=True)
class BigGANConfig:
    """Architecture of one generator or discriminator."""

    channels: Annotated[int, Range(1, 1024)]
    """Base width: the blocks have so many channels times 1 to 16; 96 in the published networks."""
    resolution: int
    """Height and width of the image in pixels: 64, 128, 256 or 512."""
    attention: tuple[int, ...] = (64,)
    """Sizes in pixels; a block that ends at one of them is followed by self-attention."""
    n_classes: Annotated[int, Range(1, 100_000)] = 1000
    """Number of classes."""
    z_chunk: Annotated[int, Range(1, 4096)] = 17
    """Numbers of z that the first layer and each block read: 20 in the published generator of 128 px, 17 in that of 256 (generator)."""
    shared_dim: Annotated[int, Range(1, 4096)] = 128
    """Width of a class's embedding (generator)."""

    def __post_init__(self):
        sizes = (4, 8, 16, 32, 64, 128)  # at 256 px the table in which attention compares pixels would take gigabytes
        check(
            self,
            (self.resolution in GENERATOR_WIDTHS, f"resolution must be one of {[*GENERATOR_WIDTHS]}, not {self.resolution}"),
            (set(self.attention) <= set(sizes), f"attention must be at some of {sizes} px, not {self.attention}"),
        )

    @property
    def code_dim(self) -> int:
        """Width of z, the nominal 120 reduced to equal chunks: 119 at 256 px, 120 at 128 px."""
        return self.z_chunk * len(GENERATOR_WIDTHS[self.resolution])


class Spectral(nn.Module):
    """A weight that is divided by an estimate of its largest singular value, and a bias that is not.

    The estimate is sigma = |W v|, v = W^T u / |W^T u|, one step of the power iteration from the stored vector `u`. One step does not
    converge, so the result depends on `u`, which is never updated. Gradients flow through sigma, too, with v constant.
    Source: Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018.
    """

    bias: nn.Parameter | None
    u: Tensor

    def __init__(self, *shape: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape) * 0.02)
        self.bias = nn.Parameter(torch.zeros(shape[0])) if bias else None
        self.register_buffer("u", torch.randn(1, shape[0]))

    def normalised(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Replacements of x and W: (x, W / sigma), or (x / sigma, W) if x is the smaller of the two."""
        with full_precision(self.weight):
            matrix = self.weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(self.u @ matrix, eps=1e-6)  # (1, in)
            factor = 1 / (v @ matrix.t()).norm()
            return (x, self.weight * factor) if self.weight.numel() < x.numel() else (x * factor, self.weight)


class SpectralLinear(Spectral):
    """y = x (W / sigma)^T + b. x: (N, in) -> (N, out)."""

    def __init__(self, n_in: int, n_out: int, *, bias: bool = True):
        super().__init__(n_out, n_in, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(*self.normalised(x), self.bias)


class SpectralConv(Spectral):
    """Convolution of odd size that keeps height and width. x: (N, in, H, W) -> (N, out, H, W)."""

    def __init__(self, n_in: int, n_out: int, kernel: int, *, bias: bool = True):
        super().__init__(n_out, n_in, kernel, kernel, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(*self.normalised(x), self.bias, padding=self.weight.shape[-1] // 2)


class BatchNorm(nn.Module):
    """Normalisation by stored statistics. x: (N, C, H, W) -> the same shape."""

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.variance, self.gain, self.bias, eps=1e-5)


class ConditionalBatchNorm(nn.Module):
    """Normalisation by stored statistics with gain and bias from the class and z.

    x: (N, C, H, W), condition: (N, shared_dim + z_chunk) -> (N, C, H, W).
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int, condition_dim: int):
        super().__init__()
        self.gain = SpectralLinear(condition_dim, channels, bias=False)
        self.bias = SpectralLinear(condition_dim, channels, bias=False)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        with full_precision(x):
            gain = (1 + self.gain(condition)) * torch.rsqrt(self.variance + 1e-5)  # (N, C)
            shift = self.bias(condition) - self.mean * gain
            return torch.addcmul(shift[:, :, None, None], x.to(shift.dtype), gain[:, :, None, None]).to(x.dtype)


@dataclass(frozen=True)
class InstanceNorm:
    """Normalisation by the statistics of each image, with constants for gain and bias. x: (N, C, H, W) -> the same shape."""

    std: Tensor
    """(N, C, 1, 1), the resulting standard deviation."""
    mean: Tensor
    """(N, C, 1, 1), the resulting mean."""

    @classmethod
    def like(cls, y: Tensor) -> "InstanceNorm":
        """The normalisation whose results have the statistics of y (N, C, H, W)."""
        std, mean = torch.std_mean(y.detach(), (2, 3), keepdim=True)  # over n - 1, unlike the division below, as in the official code
        return cls(std, mean)

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.mean, F.instance_norm(x, eps=1e-5), self.std)


Normalise = Callable[[ConditionalBatchNorm, Tensor, Tensor], Tensor]
"""Replacement of a generator block's normalisations: (normalisation, x, condition) -> x."""


class GeneratorBlock(nn.Module):
    """Two 3x3 convolutions parallel to a 1x1 convolution, with doubled size."""

    def __init__(self, n_in: int, n_out: int, condition_dim: int):
        super().__init__()
        self.norm1 = ConditionalBatchNorm(n_in, condition_dim)
        self.conv1 = SpectralConv(n_in, n_out, 3)
        self.norm2 = ConditionalBatchNorm(n_out, condition_dim)
        self.conv2 = SpectralConv(n_out, n_out, 3)
        self.shortcut = SpectralConv(n_in, n_out, 1)

    def forward(self, x: Tensor, condition: Tensor, normalise: Normalise) -> Tensor:
        """x (N, in, H, W), condition (N, shared_dim + z_chunk) -> (N, out, 2H, 2W)."""
        h = F.relu_(normalise(self.norm1, x, condition))
        h = self.conv1(F.interpolate(h, scale_factor=2.0))
        h = self.conv2(F.relu_(normalise(self.norm2, h, condition)))
        return h + F.interpolate(self.shortcut(x), scale_factor=2.0)  # 1x1 before or after repeating pixels is the same


class Attention(nn.Module):
    """Self-attention of every pixel to the max-pooled 2x2 cells. x: (N, C, H, W) -> the same shape.

    Source: Zhang et al., "Self-Attention Generative Adversarial Networks", ICML 2019; names as there.
    """

    def __init__(self, channels: int):
        super().__init__()
        if channels < 8:
            raise ValueError(f"attention needs 8 channels or more, not {channels}")
        self.theta = SpectralConv(channels, channels // 8, 1, bias=False)
        self.phi = SpectralConv(channels, channels // 8, 1, bias=False)
        self.g = SpectralConv(channels, channels // 2, 1, bias=False)
        self.o = SpectralConv(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query = self.theta(x).flatten(2).mT  # (N, H * W, C / 8)
        key, value = (F.max_pool2d(conv(x), 2).flatten(2).mT for conv in (self.phi, self.g))  # (N, H * W / 4, ..)
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)  # (N, H * W, C / 2)
        return x + self.gamma * self.o(attended.mT.unflatten(2, x.shape[2:]))


class BigGAN(nn.Module):
    """The generator: z and a class -> image."""

    def __init__(self, config: BigGANConfig):
        super().__init__()
        self.config = config
        widths = [config.channels * n for n in GENERATOR_WIDTHS[config.resolution]]
        self.embed = nn.Embedding(config.n_classes, config.shared_dim)
        self.linear = SpectralLinear(config.z_chunk, widths[0] * 16)
        self.blocks = nn.ModuleList()  # of lists: a block, and attention where it follows
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            block = GeneratorBlock(n_in, n_out, config.shared_dim + config.z_chunk)
            self.blocks.append(nn.ModuleList([block, Attention(n_out)] if 8 * 2**i in config.attention else [block]))
        self.out_norm = BatchNorm(widths[-1])
        self.out_conv = SpectralConv(widths[-1], 3, 3)

    def forward(self, z: Tensor, class_index: Tensor) -> Tensor:
        """z (N, code_dim), standard normal, class_index (N,) int64 -> image (N, 3, resolution, resolution), RGB in [-1, 1]."""
        n = self.config.n_classes
        if class_index.ndim != 1 or bool(((class_index < 0) | (class_index >= n)).any()):
            raise ValueError(f"class_index must be a vector of integers from 0 to {n - 1}, not {class_index.tolist()}")
        return self.synthesis(z, self.embed(class_index))

    def synthesis(self, z: Tensor, embedding: Tensor, instance_norms: Sequence[InstanceNorm] | None = None) -> Tensor:
        """z (N, code_dim), embedding (N, shared_dim) as from `embed` -> image (N, 3, resolution, resolution), RGB in [-1, 1].

        `instance_norms`, from the method of that name, replace the conditional normalisations in the blocks; then the result depends only
        on them and the first chunk of z.
        """
        if instance_norms is None:
            return self._synthesise(z, embedding, lambda norm, x, condition: norm(x, condition))
        if len(instance_norms) != 2 * len(self.blocks):
            raise ValueError(f"{len(instance_norms)} instance norms were given, but this network takes {2 * len(self.blocks)}")
        norms = iter(instance_norms)
        return self._synthesise(z, embedding, lambda _norm, x, _condition: next(norms)(x))

    @torch.no_grad()
    def instance_norms(self, z: Tensor, embedding: Tensor) -> list[InstanceNorm]:
        """Instance normalisations with which `synthesis` gives about the same image for z (N, code_dim) and embedding (N, shared_dim).

        DGP can fine-tune the network with them ("use_in"), so that features keep their current mean and contrast. Each gives its input,
        computed with the preceding ones, the statistics that the conditional normalisation would. Negative gains do not invert channels, as
        in the official code. The network itself does not change.
        """
        norms: list[InstanceNorm] = []

        def normalise(norm: ConditionalBatchNorm, x: Tensor, condition: Tensor) -> Tensor:
            norms.append(InstanceNorm.like(norm(x, condition)))
            return norms[-1](x)

        self._synthesise(z, embedding, normalise)
        return norms

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """The parameters that DGP fine-tunes, in the order in which it unfreezes them: the first layer, then each block with its attention.

        The class embedding and the output layer are not included: DGP keeps them frozen.
        """
        return [list(module.parameters()) for module in (self.linear, *self.blocks)]

    def _synthesise(self, z: Tensor, embedding: Tensor, normalise: Normalise) -> Tensor:
        z_dim, shared_dim = self.config.code_dim, self.config.shared_dim
        if z.shape[1:] != (z_dim,) or embedding.shape != (len(z), shared_dim):
            shapes = f"{tuple(z.shape)} and {tuple(embedding.shape)}"
            raise ValueError(f"z and embedding have the shapes {shapes}, but this network takes (N, {z_dim}) and (N, {shared_dim})")
        first, *chunks = z.split(self.config.z_chunk, 1)
        x = self.linear(first).unflatten(1, (-1, 4, 4))
        for level, chunk in zip(self.blocks, chunks, strict=True):
            block, *attention = level.children()
            x = block(x, torch.cat([embedding, chunk], 1), normalise)
            for layer in attention:
                x = layer(x)
        return torch.tanh(self.out_conv(F.relu_(self.out_norm(x))))


class BigGANDiscriminatorBlock(nn.Module):
    """Two 3x3 convolutions parallel to a shortcut. x: (N, in, H, W) -> (N, out, H, W), or (N, out, H/2, W/2) with `down`."""

    def __init__(self, n_in: int, n_out: int, *, first: bool, down: bool):
        super().__init__()
        self.conv1 = SpectralConv(n_in, n_out, 3)
        self.conv2 = SpectralConv(n_out, n_out, 3)
        self.shortcut = SpectralConv(n_in, n_out, 1) if down or n_in != n_out else nn.Identity()
        self.first, self.down = first, down

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu_(self.conv1(x if self.first else F.relu(x))))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)  # 1x1 before or after the mean is the same
        return h + self.shortcut(x)


class BigGANDiscriminator(nn.Module):
    """Image (N, 3, resolution, resolution), RGB in [-1, 1] -> (N, 1) logits, positive for real."""

    def __init__(self, config: BigGANConfig):
        super().__init__()
        if config.resolution not in DISCRIMINATOR_WIDTHS:
            raise ValueError(
                f"there is no discriminator for {config.resolution} px, only for {', '.join(map(str, DISCRIMINATOR_WIDTHS))} px"
            )
        self.config = config
        widths = [config.channels * n for n in DISCRIMINATOR_WIDTHS[config.resolution]]
        self.blocks = nn.ModuleList()  # of lists: a block, and attention where it follows
        size = config.resolution
        for i, (n_in, n_out) in enumerate(itertools.pairwise([3, *widths])):
            down = i < len(widths) - 1
            size = size // 2 if down else size
            block = BigGANDiscriminatorBlock(n_in, n_out, first=i == 0, down=down)
            self.blocks.append(nn.ModuleList([block, Attention(n_out)] if size in config.attention else [block]))
        self.linear = SpectralLinear(widths[-1], 1)
        self.embed = Spectral(config.n_classes, widths[-1], bias=False)  # of the class term, which DGP omits

    def forward(self, image: Tensor) -> Tensor:
        """image (N, 3, resolution, resolution), RGB in [-1, 1] -> (N, 1) logits without the class term."""
        return self.linear(self.features(image)[-1])

    def features(self, image: Tensor) -> list[Tensor]:
        """The features that DGP compares, for image (N, 3, resolution, resolution), RGB in [-1, 1].

        The outputs of blocks and attention layers in order, (N, C, H, W) each, and the last one summed over height and width,
        (N, C). Only the last output is rectified: the official code overwrites it for the sum, after it was listed.
        """
        size = self.config.resolution
        if image.shape[1:] != (3, size, size):
            raise ValueError(f"the discriminator takes images (N, 3, {size}, {size}), not {tuple(image.shape)}")
        features: list[Tensor] = []
        x = image
        for level in self.blocks:
            for layer in level.children():
                x = layer(x)
                features.append(x)
        features[-1] = F.relu(x)
        return [*features, features[-1].sum((2, 3))]
