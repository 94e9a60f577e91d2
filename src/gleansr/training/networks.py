"""The table [network] of a recipe, by its `kind`: GLEAN, or a feed-forward baseline."""

from dataclasses import dataclass
from typing import Annotated, Literal

from gleansr.configs import Range, check
from gleansr.models.esrgan_plus import ESRGANPlus, ESRGANPlusConfig
from gleansr.models.residual import ResidualNet, ResidualNetConfig

Width = Annotated[int, Range(1, 8192)]
Blocks = Annotated[int, Range(0, 256)]


@dataclass(frozen=True)
class GLEANNetworkConfig:
    """Architecture of the encoder and decoder around the bank."""

    in_size: int
    """Height and width of the low-resolution image."""
    out_size: int
    """Height and width of the result, equal to the bank's."""
    kind: Literal["glean"] = "glean"
    """GLEAN: an encoder, a frozen bank and a decoder."""
    content_height: int | None = None
    """Rows of content in the middle of the result, between black bars: 384 of 512 for LSUN cars; None: all."""
    n_rrdb: Blocks = 23
    """Residual-in-residual dense blocks."""
    features: Width = 64
    """Channels of those blocks."""
    growth: Width = 32
    """Channels that each of their convolutions adds."""
    out_features: Width = 64
    """Channels between the last two convolutions."""
    light: bool = False
    """Train the light form of this network: at most 21 % of its parameters and 35 % of its arithmetic."""

    def __post_init__(self):
        sizes, rows = (self.in_size, self.out_size), self.content_height
        check(
            self,
            (
                all(4 <= size <= 1024 and size & (size - 1) == 0 for size in sizes) and self.in_size < self.out_size,
                f"GLEAN takes powers of two with 4 <= in_size < out_size <= 1024, not {self.in_size} -> {self.out_size}",
            ),
            (
                rows is None or (0 < rows <= self.out_size and rows * self.in_size % (2 * self.out_size) == 0),
                f"content_height must be at most out_size and an even number of low-resolution rows, not {rows}",
            ),
        )


@dataclass(frozen=True)
class _FeedForwardConfig:
    """Sizes on which a network for images of any size is trained and evaluated."""

    in_size: int
    """Height and width of the low-resolution image."""
    out_size: int
    """Height and width of the result, a multiple of in_size."""

    def __post_init__(self):
        check(
            self,
            (
                4 <= self.in_size < self.out_size <= 1024 and self.out_size % self.in_size == 0,
                f"a network takes 4 <= in_size < out_size <= 1024, out_size a multiple of in_size, not {self.in_size} -> {self.out_size}",
            ),
        )


@dataclass(frozen=True)
class PlainNetworkConfig(_FeedForwardConfig):
    """Architecture of the residual baseline, a no-prior CNN on top of bicubic upscaling."""

    kind: Literal["plain"] = "plain"
    """Plain: the residual baseline, without a bank."""
    features: Width = 48
    """Channels of every layer but the last."""
    n_blocks: Blocks = 12
    """Residual blocks."""

    def __post_init__(self):
        super().__post_init__()
        self._architecture()

    def _architecture(self) -> ResidualNetConfig:
        return ResidualNetConfig(self.out_size // self.in_size, self.features, self.n_blocks)

    def build(self) -> ResidualNet:
        """Builds the network."""
        return ResidualNet(self._architecture())


@dataclass(frozen=True)
class ESRGANPlusNetworkConfig(_FeedForwardConfig):
    """Architecture of an ESRGAN+."""

    kind: Literal["esrgan+"] = "esrgan+"
    """ESRGAN+: residual-in-residual dense blocks with residuals inside, without a bank."""
    features: Width = 64
    """Channels of the trunk."""
    growth: Width = 32
    """Channels that each convolution of a dense block adds."""
    n_blocks: Blocks = 23
    """Residual-in-residual dense blocks."""
    noise: Annotated[float, Range(0, 1)] = 0.0
    """Deviation of the noise that multiplies the features in training: 0 in ESRGAN+, 0.1 in nESRGAN+."""

    def __post_init__(self):
        super().__post_init__()
        self._architecture()

    def _architecture(self) -> ESRGANPlusConfig:
        return ESRGANPlusConfig(self.out_size // self.in_size, self.features, self.growth, self.n_blocks, self.noise)

    def build(self) -> ESRGANPlus:
        """Builds the network."""
        return ESRGANPlus(self._architecture())
