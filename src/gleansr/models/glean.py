"""GLEAN: an encoder, a frozen generative latent bank and a decoder.

Source: Chan et al., "GLEAN: Generative Latent Bank for Large-Factor Image Super-Resolution", CVPR 2021; sizes and order of layers as in the
official code (mmagic's GLEANStyleGANv2).
"""

import itertools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.models.network import SRNetwork
from gleansr.models.rrdb import RRDBTrunk, conv3x3
from gleansr.models.stylegan import StyleGAN, StyleGANConfig
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, stylegan2_channels


@dataclass(frozen=True)
class NoBankConfig:
    """No bank: the ablation with encoder head and decoder alone. The field's name tells it from a bank in files."""

    plain_channels: tuple[int, ...]
    """Channels at 4, 8, ..., out px, those of the bank compared with."""

    def __post_init__(self):
        if not 1 <= len(self.plain_channels) <= 9 or not all(0 < n <= 8192 for n in self.plain_channels):
            raise ValueError(f"plain_channels must be 1 to 9 positive numbers, for 4, 8, ... 1024 px, not {self.plain_channels}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels at 4, 8, ..., out px."""
        return self.plain_channels

    @property
    def size(self) -> int:
        """Height and width of the result."""
        return 2 ** (len(self.plain_channels) + 1)


@dataclass(frozen=True)
class LightConfig:
    """Architecture of a light GLEAN, without the widest layers.

    The encoder's features have the same few channels at every size and are added to the bank's through one convolution each. The latents
    come from two narrow linear layers. The bank is used up to half of the output size, without its other layers.
    """

    encoder_channels: int
    """Channels of the encoder's features."""
    code_rank: int
    """Width between the two linear layers to the latents."""
    decoder_channels: tuple[int, ...]
    """Channels of the decoder at 2 in, ..., out px."""

    def __post_init__(self):
        if not all(0 < n <= 8192 for n in (self.encoder_channels, self.code_rank, *self.decoder_channels)):
            raise ValueError(f"encoder_channels, code_rank and decoder_channels must be positive, not {self}")


@dataclass(frozen=True)
class GLEANConfig:
    """Architecture of a GLEAN. Encoder and decoder have the channels of the bank, except in a light GLEAN."""

    in_size: int
    """Height and width of the low-resolution image, a power of two."""
    bank: StyleGAN2Config | StyleGANConfig | NoBankConfig
    """The generative latent bank; its size is the output's."""
    n_rrdb: int = 23
    """Residual-in-residual dense blocks before the encoder."""
    features: int = 64
    """Channels of those blocks."""
    growth: int = 32
    """Channels that each of their convolutions adds."""
    out_features: int = 64
    """Channels between the last two convolutions of the decoder."""
    light: LightConfig | None = None
    """The light form; None for the full network of the paper."""

    def __post_init__(self):
        sizes = (self.in_size, self.out_size)
        if any(size < 4 or size > 1024 or size & (size - 1) for size in sizes) or sizes[0] >= sizes[1]:
            raise ValueError(f"GLEAN takes powers of two with 4 <= in < out <= 1024, not {sizes[0]} -> {sizes[1]}")
        if not (0 <= self.n_rrdb <= 256 and all(0 < n <= 8192 for n in (self.features, self.growth, self.out_features))):
            raise ValueError("n_rrdb must be 0 to 256; features, growth and out_features must be positive")
        if isinstance(self.bank, StyleGANConfig) and self.bank.lod:
            raise ValueError(f"the bank must be trained up to its full size, where lod is 0, not {self.bank.lod}")
        if self.light and len(channels := self.light.decoder_channels) != (expected := len(self.decoder_sizes)):
            raise ValueError(f"light.decoder_channels must have {expected} numbers for {sizes[0]} -> {sizes[1]}, not {channels}")

    @property
    def out_size(self) -> int:
        """Height and width of the result."""
        return self.bank.size

    @property
    def encoder_sizes(self) -> list[int]:
        """4, 8, ..., in px: sizes of the encoder's features, which the bank reads."""
        return [2**power for power in range(2, int(math.log2(self.in_size)) + 1)]

    @property
    def decoder_sizes(self) -> list[int]:
        """2 in, ..., out px: sizes of the decoder's stages."""
        return [2**power for power in range(int(math.log2(self.in_size)) + 1, int(math.log2(self.out_size)) + 1)]

    @property
    def bank_sizes(self) -> list[int]:
        """4, 8, ... px: sizes of the bank's features in use."""
        if isinstance(self.bank, NoBankConfig):
            return []
        return [size for size in self.encoder_sizes + self.decoder_sizes if size < self.out_size or not self.light]

    def bank_channels(self, size: int) -> int:
        """Channels of the bank's features at `size` px."""
        return self.bank.channels[int(math.log2(size)) - 2]

    def encoder_channels(self, size: int) -> int:
        """Channels of the encoder's features at `size` px."""
        return self.light.encoder_channels if self.light else self.bank_channels(size)

    def decoder_channels(self, size: int) -> int:
        """Channels of the decoder's own features at `size` px."""
        return self.light.decoder_channels[self.decoder_sizes.index(size)] if self.light else self.bank_channels(size)


def glean_full(in_size: int, out_size: int) -> GLEANConfig:
    """The full-size network of the paper, 64 -> 1024 for instance, on a StyleGAN2 of configuration F."""
    return GLEANConfig(in_size, StyleGAN2Config(stylegan2_channels(out_size)))


def lighten(full: GLEANConfig) -> GLEANConfig:
    """The light form of a network with the same bank: at most 21 % of its parameters and 35 % of its arithmetic."""
    width = full.features
    channels = [min(5 * width // 8, width // 4 * (full.out_size // size)) for size in full.decoder_sizes]
    light = LightConfig(encoder_channels=width, code_rank=width, decoder_channels=tuple(channels))
    return replace(full, n_rrdb=max(1, full.n_rrdb // 6), out_features=width // 4, light=light)


def glean_light(in_size: int, out_size: int) -> GLEANConfig:
    """The light form of `glean_full`."""
    return lighten(glean_full(in_size, out_size))


class EncoderHead(nn.Module):
    """The encoder's layers at the size of the low-resolution image."""

    def __init__(self, config: GLEANConfig):
        super().__init__()
        self.trunk = RRDBTrunk(3, config.features, config.growth, config.n_rrdb)
        self.head = conv3x3(config.features, config.encoder_channels(config.in_size))

    def enter(self, lr: Tensor) -> Tensor:
        """lr (N, 3, in, in) -> (N, C(in), in, in)."""
        return F.leaky_relu_(self.head(self.trunk(lr)), 0.2)


class Encoder(EncoderHead):
    """Low-resolution image to features of 4 ... in px and W+ latents."""

    def __init__(self, config: GLEANConfig, n_latents: int, code_dim: int):
        super().__init__(config)
        self.latents_shape = (n_latents, code_dim)
        channels = [config.encoder_channels(size) for size in reversed(config.encoder_sizes)]
        self.down = nn.ModuleList(
            nn.Sequential(conv3x3(a, b, stride=2), nn.LeakyReLU(0.2, inplace=True), conv3x3(b, b), nn.LeakyReLU(0.2, inplace=True))
            for a, b in itertools.pairwise(channels)
        )
        self.tail = conv3x3(channels[-1], channels[-1])
        n_in, n_out, rank = 16 * channels[-1], n_latents * code_dim, config.light and config.light.code_rank
        self.code = nn.Sequential(nn.Linear(n_in, rank), nn.Linear(rank, n_out)) if rank else nn.Linear(n_in, n_out)

    def forward(self, lr: Tensor) -> tuple[list[Tensor], Tensor]:
        """lr (N, 3, in, in) -> features [(N, C(4), 4, 4), ..., (N, C(in), in, in)] and W+ latents (N, L, code_dim)."""
        x = self.enter(lr)
        features = [x]
        for block in self.down:
            x = block(x)
            features.append(x)
        x = F.leaky_relu_(self.tail(x), 0.2)
        return features[::-1], self.code(x.flatten(1)).view(-1, *self.latents_shape)


class PixelShuffleUp(nn.Module):
    """3x3 convolution to four times the channels, folded into twice the size. x (N, in, H, W) -> (N, out, 2H, 2W)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.conv = conv3x3(n_in, 4 * n_out)
        # The four sub-pixels of an output start equal: the untrained block is nearest-neighbour upsampling, without checkerboard artefacts
        # (Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017).
        kernel = torch.empty(n_out, *self.conv.weight.shape[1:])
        nn.init.kaiming_normal_(kernel)
        self.conv.load_state_dict({"weight": kernel.repeat_interleave(4, 0), "bias": torch.zeros(4 * n_out)})

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class Decoder(nn.Module):
    """The layers from the encoder's and the bank's features to the image. There is no activation between the upsampling stages."""

    def __init__(self, config: GLEANConfig):
        super().__init__()
        self.up = nn.ModuleList()
        n_in = config.encoder_channels(config.in_size)
        for size in config.decoder_sizes:
            n_out = config.decoder_channels(size)
            self.up.append(PixelShuffleUp(n_in, n_out))
            n_in = n_out + (config.bank_channels(size) if size in config.bank_sizes else 0)
        self.last = conv3x3(n_in, config.out_features)
        self.out = conv3x3(config.out_features, 3)

    def finish(self, x: Tensor) -> Tensor:
        """x (N, C, out, out), the features of the decoder and, if used at that size, the bank -> (N, 3, out, out)."""
        return self.out(F.leaky_relu_(self.last(x), 0.2))


class NoBank(nn.Module):
    """Placeholder for a missing bank."""


class GLEAN(SRNetwork):
    """Encoder-bank-decoder.

    `fusion_skip`, the bank's mapping and its RGB layers never affect the output: the full network holds them, as official checkpoints
    do, but does not compute them. A light GLEAN has none of them.
    """

    name = "GLEAN"
    bank: StyleGAN2 | StyleGAN | NoBank

    def __init__(self, config: GLEANConfig):
        super().__init__()
        self.config = config
        self.input_size, self.scale = config.in_size, config.out_size // config.in_size
        bank, light = config.bank, config.light
        fused: list[tuple[int, int]] = []  # channels of the encoder's feature and of the bank's at 4 ... in px
        if isinstance(bank, NoBankConfig):
            self.encoder = EncoderHead(config)
            self.bank = NoBank()
        else:
            # A light GLEAN has a latent for each layer that it keeps; StyleGAN2's first size has one layer, the others two.
            n_latents = 2 * len(config.bank_sizes) - isinstance(bank, StyleGAN2Config) if light else bank.n_latents
            self.encoder = Encoder(config, n_latents, bank.code_dim)
            self.bank = (StyleGAN2(bank) if isinstance(bank, StyleGAN2Config) else StyleGAN(bank)).requires_grad_(False)
            if light:
                self.bank.keep_features(len(config.bank_sizes))
            fused = [(config.encoder_channels(size), config.bank_channels(size)) for size in config.encoder_sizes]
        self.fusion_out = nn.ModuleList(conv3x3(n_encoder if light else n_encoder + n, n) for n_encoder, n in fused)
        self.fusion_skip = nn.ModuleList(conv3x3(n + 3, 3) for _, n in fused if not light)
        self.decoder = Decoder(config)

    def encode(self, lr: Tensor) -> Tensor:
        """lr (N, 3, in, in) in [-1, 1], RGB -> W+ latents (N, L, code_dim); for a light GLEAN those of the layers that it has."""
        if isinstance(self.bank, NoBank):
            raise ValueError("this GLEAN has no bank, hence no latents: it cannot encode, only upscale")
        return self.encoder(self.check(lr))[1]

    def forward(self, lr: Tensor) -> Tensor:
        """lr (N, 3, in, in) in [-1, 1], RGB -> (N, 3, out, out), nominally in [-1, 1], not clamped."""
        if isinstance(self.bank, NoBank):
            sr = self.encoder.enter(self.check(lr))
            for up in self.decoder.up:
                sr = up(sr)
            return self.decoder.finish(sr)
        features, latents = self.encoder(self.check(lr))
        bank = self.bank.synthesis
        noises = bank.noises("fixed", latents.shape[0])  # len() would fix the batch in an export
        x = bank.constant.expand(latents.shape[0], -1, -1, -1)
        for j, fusion in enumerate(self.fusion_out):  # 4 * 2^j px
            for i in bank.layers_at(j):
                x = bank.layers[i](x, latents[:, i], noises[i])
            x = x + fusion(features[j]) if self.config.light else fusion(torch.cat([x, features[j]], 1))
        sr = features[-1]
        for j, up in enumerate(self.decoder.up, len(features)):
            sr = up(sr)
            if j < len(self.config.bank_sizes):
                for i in bank.layers_at(j):
                    x = bank.layers[i](x, latents[:, i], noises[i])
                sr = torch.cat([sr, x], 1)
        del x  # frees features of the output size
        return self.decoder.finish(sr)

    def check(self, lr: Tensor) -> Tensor:
        """`lr`. Raises ValueError unless it is (N, 3, in, in)."""
        size = self.config.in_size
        if lr.ndim != 4 or lr.shape[1:] != (3, size, size):
            raise ValueError(f"this GLEAN takes images (N, 3, {size}, {size}), not {tuple(lr.shape)}")
        return lr

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that affect the output and are trained: all but the bank and `fusion_skip`."""
        return [p for part in (self.encoder, self.fusion_out, self.decoder) for p in part.parameters()]

    def bank_state(self) -> dict[str, Tensor]:
        return self.bank.state_dict()
