"""GLEAN: an encoder, a frozen generative latent bank and a decoder.

Source: Chan et al., "GLEAN: Generative Latent Bank for Large-Factor Image Super-Resolution", CVPR 2021; sizes and order of layers as in the
official code (mmagic's GLEANStyleGANv2).
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gleansr.models.rrdb import RRDBTrunk, conv3x3
from gleansr.models.stylegan import StyleGAN, StyleGANConfig
from gleansr.models.stylegan2 import StyleGAN2, StyleGAN2Config, stylegan2_channels


@dataclass(frozen=True)
class NoBankConfig:
    """In the place of a bank: none, the ablation of encoder head and decoder alone. A file tells it from a bank by the field's name."""

    plain_channels: tuple[int, ...]
    """Channels at 4, 8, ..., out px, the table of the bank that is compared with."""

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
class GLEANConfig:
    """Architecture of a GLEAN. Encoder and decoder follow the channel table of the bank."""

    in_size: int
    """Height and width of the low-resolution picture, a power of two."""
    bank: StyleGAN2Config | StyleGANConfig | NoBankConfig
    """The generative latent bank; its size is the output's."""
    n_rrdb: int = 23
    """Residual-in-residual dense blocks in front of the encoder."""
    features: int = 64
    """Channels of those blocks."""
    growth: int = 32
    """Channels that each of their convolutions adds."""
    out_features: int = 64
    """Channels between the last two convolutions of the decoder."""

    def __post_init__(self):
        sizes = (self.in_size, self.out_size)
        if any(size < 4 or size > 1024 or size & (size - 1) for size in sizes) or sizes[0] >= sizes[1]:
            raise ValueError(f"GLEAN takes powers of two with 4 <= in < out <= 1024, not {sizes[0]} -> {sizes[1]}")
        if not (0 <= self.n_rrdb <= 256 and all(0 < n <= 8192 for n in (self.features, self.growth, self.out_features))):
            raise ValueError("n_rrdb must be 0 to 256; features, growth and out_features must be positive")
        if isinstance(self.bank, StyleGANConfig) and self.bank.lod:
            raise ValueError(f"the bank must be trained up to its full size, where lod is 0, not {self.bank.lod}")

    @property
    def out_size(self) -> int:
        """Height and width of the result."""
        return self.bank.size

    def channels(self, size: int) -> int:
        """Channels at `size` px."""
        return self.bank.channels[int(math.log2(size)) - 2]


def glean_full(in_size: int, out_size: int) -> GLEANConfig:
    """The full-size network of the paper, 64 -> 1024 for instance, on a StyleGAN2 of configuration F."""
    return GLEANConfig(in_size, StyleGAN2Config(stylegan2_channels(out_size)))


class EncoderHead(nn.Module):
    """The encoder's layers at the size of the low-resolution picture."""

    def __init__(self, config: GLEANConfig):
        super().__init__()
        self.trunk = RRDBTrunk(3, config.features, config.growth, config.n_rrdb)
        self.head = conv3x3(config.features, config.channels(config.in_size))

    def enter(self, low: Tensor) -> Tensor:
        """low (N, 3, in, in) -> (N, C(in), in, in)."""
        return F.leaky_relu_(self.head(self.trunk(low)), 0.2)


class Encoder(EncoderHead):
    """Low-resolution picture to features of 4 ... in px and W+ codes."""

    def __init__(self, config: GLEANConfig, n_codes: int, code_dim: int):
        super().__init__(config)
        self.code_shape = (n_codes, code_dim)
        channels = [config.channels(2**power) for power in range(int(math.log2(config.in_size)), 1, -1)]  # in ... 4 px
        self.down = nn.ModuleList(
            nn.Sequential(conv3x3(a, b, stride=2), nn.LeakyReLU(0.2, inplace=True), conv3x3(b, b), nn.LeakyReLU(0.2, inplace=True))
            for a, b in itertools.pairwise(channels)
        )
        self.tail = conv3x3(channels[-1], channels[-1])
        self.code = nn.Linear(16 * channels[-1], n_codes * code_dim)

    def forward(self, low: Tensor) -> tuple[list[Tensor], Tensor]:
        """low (N, 3, in, in) -> features [(N, C(4), 4, 4), ..., (N, C(in), in, in)] and codes (N, L, code_dim), used as they are."""
        x = self.enter(low)
        features = [x]
        for block in self.down:
            x = block(x)
            features.append(x)
        x = F.leaky_relu_(self.tail(x), 0.2)
        return features[::-1], self.code(x.flatten(1)).view(-1, *self.code_shape)


class PixelShuffleUp(nn.Module):
    """3x3 convolution to four times the channels, folded into twice the size. x (N, in, H, W) -> (N, out, 2H, 2W)."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.conv = conv3x3(n_in, 4 * n_out)
        # The four sub-pixels of an output start equal, so that the untrained block is nearest-neighbour enlargement and leaves no
        # checkerboard to unlearn (Aitken et al., "Checkerboard artifact free sub-pixel convolution", 2017).
        kernel = torch.empty(n_out, *self.conv.weight.shape[1:])
        nn.init.kaiming_normal_(kernel)
        self.conv.load_state_dict({"weight": kernel.repeat_interleave(4, 0), "bias": torch.zeros(4 * n_out)})

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class Decoder(nn.Module):
    """The layers that enlarge the encoder's feature beside the bank's to the picture. There is no activation between the enlargements."""

    def __init__(self, config: GLEANConfig):
        super().__init__()
        sizes = [2**power for power in range(int(math.log2(config.in_size)), int(math.log2(config.out_size)))]  # in ... out/2
        beside = 1 if isinstance(config.bank, NoBankConfig) else 2  # the bank's feature doubles the channels
        self.up = nn.ModuleList(
            PixelShuffleUp(config.channels(size) * (1 if i == 0 else beside), config.channels(2 * size)) for i, size in enumerate(sizes)
        )
        self.last = conv3x3(beside * config.channels(config.out_size), config.out_features)
        self.out = conv3x3(config.out_features, 3)

    def finish(self, x: Tensor) -> Tensor:
        """x (N, 2C(out), out, out), C(out) without a bank -> (N, 3, out, out)."""
        return self.out(F.leaky_relu_(self.last(x), 0.2))


class NoBank(nn.Module):
    """Nothing, in the place of a bank."""


class GLEAN(nn.Module):
    """Encoder-bank-decoder.

    `fusion_skip`, the bank's mapping and its RGB layers never reach the output: official checkpoints hold them, so they are kept, but they
    are not computed.
    """

    bank: StyleGAN2 | StyleGAN | NoBank

    def __init__(self, config: GLEANConfig):
        super().__init__()
        self.config = config
        bank = config.bank
        fused = [config.channels(2**power) for power in range(2, int(math.log2(config.in_size)) + 1)]  # 4 ... in px
        if isinstance(bank, NoBankConfig):
            self.encoder = EncoderHead(config)
            self.bank = NoBank()
            fused = []
        else:
            self.encoder = Encoder(config, bank.n_codes, bank.code_dim)
            self.bank = (StyleGAN2(bank) if isinstance(bank, StyleGAN2Config) else StyleGAN(bank)).requires_grad_(False)
        self.fusion_out = nn.ModuleList(conv3x3(2 * n, n) for n in fused)
        self.fusion_skip = nn.ModuleList(conv3x3(n + 3, 3) for n in fused)
        self.decoder = Decoder(config)

    def encode(self, low: Tensor) -> Tensor:
        """low (N, 3, in, in) in [-1, 1], RGB -> W+ codes (N, L, code_dim)."""
        if isinstance(self.bank, NoBank):
            raise ValueError("this GLEAN has no bank, hence no codes of one: it cannot encode, only enlarge")
        return self.encoder(self.check(low))[1]

    def forward(self, low: Tensor) -> Tensor:
        """low (N, 3, in, in) in [-1, 1], RGB -> (N, 3, out, out), nominally in [-1, 1], not clamped."""
        if isinstance(self.bank, NoBank):
            high = self.encoder.enter(self.check(low))
            for up in self.decoder.up:
                high = up(high)
            return self.decoder.finish(high)
        features, codes = self.encoder(self.check(low))
        bank = self.bank.synthesis
        noises = bank.noises("fixed", codes.shape[0])  # len() would fix the batch in an export
        x = bank.constant.expand(codes.shape[0], -1, -1, -1)
        high = features[-1]
        for j in range(len(self.config.bank.channels)):  # 4 * 2^j px
            for i in bank.layers_at(j):
                x = bank.layers[i](x, codes[:, i], noises[i])
            if j < len(features):
                x = self.fusion_out[j](torch.cat([x, features[j]], 1))
            else:
                high = torch.cat([self.decoder.up[j - len(features)](high), x], 1)
        del x  # a picture's worth of features at the output size, needed no more
        return self.decoder.finish(high)

    def check(self, low: Tensor) -> Tensor:
        """The same tensor. Raises ValueError where it is not (N, 3, in, in)."""
        size = self.config.in_size
        if low.ndim != 4 or low.shape[1:] != (3, size, size):
            raise ValueError(f"this GLEAN takes pictures (N, 3, {size}, {size}), not {tuple(low.shape)}")
        return low

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that the output depends on and that training changes: all but the bank and `fusion_skip`."""
        return [p for part in (self.encoder, self.fusion_out, self.decoder) for p in part.parameters()]
