"""Recipes: one frozen dataclass per concern, filled from TOML. The resolved recipe travels inside every checkpoint."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from gleansr.configs import Range, check, from_dict, merge
from gleansr.errors import RequestError
from gleansr.models.stylegan2 import StyleGAN2Config
from gleansr.training.fit import Aspect

R = TypeVar("R")
Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
Weight = Annotated[float, Range(0)]
Betas = Annotated[tuple[float, float], Range(0, 1, open=True)]


@dataclass(frozen=True)
class DataConfig:
    """Which pictures to train on. A source is a folder, a zip archive, WebDataset shards (a file or URL, with braces) or an LMDB folder."""

    train: tuple[str, ...] = ()
    """Sources of pictures to learn from."""
    train_low: tuple[str, ...] = ()
    """Sources of prepared low-resolution pictures, one per source of `train`, matched by name; none: they are made on the fly."""
    validation: tuple[str, ...] = ()
    """Sources of pictures to report on; never learnt from."""
    n_validation: Positive = 64
    """How many of the validation pictures to use."""
    flip: bool = True
    """Mirror half of the pictures left to right."""
    degradation: Literal["bicubic", "blind"] = "bicubic"
    """How the low-resolution pictures are made: MATLAB's bicubic and 8 bits, or blur, noise and JPEG of random strength."""
    aspect: Aspect = "crop"
    """What to do with pictures that are not square: take the centre square, scale each axis by itself, add black up to a square, or take
    the centre of aspect 4:3 and add black bars (LSUN cars)."""
    small: Literal["refuse", "skip", "enlarge"] = "refuse"
    """Pictures that would have to be enlarged: an error, left out, or enlarged."""
    other_size: Literal["fit", "skip", "refuse"] = "fit"
    """Pictures that do not have the network's size: brought to it, left out, or an error."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """Pictures that cannot be read: an error, or left out."""
    workers: Count = 4
    """Processes per device that read pictures, where they are read as they are needed."""
    memory: Weight = 8.0
    """GB of decoded pictures to hold; a larger set is read as it is needed."""

    def __post_init__(self):
        check(
            self,
            (
                len(self.train_low) in (0, len(self.train)),
                f"train_low must have a source for each of train, but has {len(self.train_low)} for {len(self.train)}",
            ),
            (not self.train_low or self.degradation == "bicubic", 'train_low is given, so degradation must be "bicubic"'),
        )


@dataclass(frozen=True)
class RunConfig:
    """How long, on what, and what to keep."""

    iterations: Positive
    """Steps before the run ends; progress is counted in pictures, iterations * batch_size."""
    batch_size: Positive = 16
    """Pictures per step, over all devices."""
    devices: Positive = 1
    """GPUs (or processes on a CPU) per node that share each batch; where the machine has fewer, those take larger shares."""
    seed: int = 0
    """Seed of everything that is drawn."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the convolutions; weights, losses and optimiser stay float32."""
    compile: bool = False
    """Compile the networks with torch.compile, which takes minutes at the start."""
    checkpoint_every: Positive = 20_000
    """Pictures between two saves of the state, samples and validation figures."""
    log_every: Positive = 1_000
    """Pictures between two lines of the log."""
    keep: Positive = 2
    """States to keep beside the best one."""
    tensorboard: bool = True
    """Write the figures and samples for TensorBoard too, into the folder tensorboard/."""

    def __post_init__(self):
        check(
            self,
            (
                self.devices < 1 or self.batch_size % self.devices == 0,
                f"batch_size {self.batch_size} cannot be shared evenly by devices {self.devices}",
            ),
        )

    @property
    def images(self) -> int:
        """Pictures to see before the run ends."""
        return self.iterations * self.batch_size


@dataclass(frozen=True)
class AboutConfig:
    """What the finished model says of itself."""

    name: str
    """Name of the model."""
    category: str = ""
    """What its pictures show."""
    licence: str = ""
    """Licence of the weights, following that of the data."""
    credit: str = ""
    """Who must be named."""


@dataclass(frozen=True)
class BankRecipe:
    """Training of a StyleGAN2 bank, Karras et al. 2020, with adaptive augmentation."""

    about: AboutConfig
    network: StyleGAN2Config
    """Architecture of the generator."""
    run: RunConfig
    discriminator: Literal["stylegan2", "projected"] = "stylegan2"
    """StyleGAN2's own, with R1, from which GLEAN's adversarial loss can start; or one on the features of SqueezeNet (projected GAN), which
    needs far fewer pictures and leaves no discriminator behind."""
    data: DataConfig = field(default_factory=DataConfig)
    start: str | None = None
    """A bank of the same or a smaller size with the same channels to start from, as in progressive growing."""
    lr: Weight = 0.0025
    """Learning rate of Adam for the generator."""
    discriminator_lr: Weight | None = None
    """Learning rate of Adam for the discriminator; None: that of the generator."""
    betas: Betas = (0.0, 0.99)
    """Moment decays of Adam."""
    r1_gamma: Weight | None = None
    """Weight of the R1 penalty; None: 0.0002 * size^2 / batch_size, the heuristic of StyleGAN2-ADA."""
    r1_every: Positive = 16
    """Steps between two R1 penalties (lazy regularisation)."""
    path_length_weight: Weight = 2.0
    """Weight of the path length penalty; 0 switches it off."""
    path_length_every: Positive = 4
    """Steps between two path length penalties."""
    style_mixing: Annotated[float, Range(0, 1)] = 0.9
    """Share of pictures made of two codes."""
    ema_half_life: Weight = 10_000
    """Half-life of the averaged generator in pictures."""
    ema_ramp_up: Weight = 0.05
    """The half-life is at most this share of the pictures seen."""
    ada_target: float = 0.6
    """Wanted mean sign of the discriminator on real pictures."""
    ada_images: Count = 100_000
    """Pictures in which the augmentation probability may go from 0 to 1; 0: no augmentation."""

    def __post_init__(self):
        check(
            self,
            (self.run.devices == 1, f"a bank is trained on one device, so run.devices must be 1, not {self.run.devices}"),
            (not self.data.train_low, "a bank is trained without low-resolution pictures, so data.train_low must be empty"),
        )


@dataclass(frozen=True)
class GLEANNetworkConfig:
    """Architecture of the encoder and decoder around the bank."""

    in_size: int
    """Height and width of the low-resolution picture."""
    out_size: int
    """Height and width of the result, which must be the bank's."""
    content_height: int | None = None
    """Rows in the middle of the result that are picture, between black bars: 384 of 512 for LSUN cars; None: all."""
    n_rrdb: Annotated[int, Range(0, 256)] = 23
    """Residual-in-residual dense blocks."""
    features: Annotated[int, Range(1, 8192)] = 64
    """Channels of those blocks."""
    growth: Annotated[int, Range(1, 8192)] = 32
    """Channels that each of their convolutions adds."""
    out_features: Annotated[int, Range(1, 8192)] = 64
    """Channels between the last two convolutions."""

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
class GLEANRecipe:
    """Training of a GLEAN with equations (1) to (5) of the paper's supplement."""

    about: AboutConfig
    network: GLEANNetworkConfig
    run: RunConfig
    bank: Literal["stylegan2", "stylegan", "none"] = "stylegan2"
    """Architecture of the generative latent bank; "none" trains the same decoder without one, to see what the bank gives."""
    bank_file: str = ""
    """The trained bank: a file of any layout, that of a GLEAN too, or the name of a model; "none" takes its channels only."""
    discriminator: StyleGAN2Config | None = None
    """Architecture of a discriminator that starts anew; None: start from the one in the bank's file, as the paper does, or where there is
    none from a new one with the bank's channels."""
    start: str | None = None
    """A trained GLEAN around the same bank to start from, of this scale or another; layers that it lacks start anew."""
    data: DataConfig = field(default_factory=DataConfig)
    lr: Weight = 1e-4
    """Initial learning rate of Adam for both networks; cosine annealing over the whole run."""
    betas: Betas = (0.9, 0.99)
    """Moment decays of Adam."""
    warm_up: Count = 0
    """Pictures over which the learning rate rises from 0."""
    perceptual: Literal["vgg16", "squeezenet"] = "squeezenet"
    """Network of equation (2): VGG16 as in the paper, fetched at first use (528 MB), or SqueezeNet 1.1, which comes with the package."""
    perceptual_file: str | None = None
    """File with the weights of VGG16 (torchvision's vgg16-397923af.pth), instead of fetching it."""
    perceptual_input: Literal["signed", "unit"] = "signed"
    """What VGG16 is shown: pictures in [-1, 1], though it was trained on [0, 1], as the official code does; or in [0, 1]."""
    perceptual_weight: Weight = 1e-2
    """alpha_percep of equation (4)."""
    adversarial_weight: Weight = 1e-2
    """alpha_gen of equation (4); 0 trains without a discriminator."""
    lattice_weight: Weight = 0
    """Weight of a penalty on error that repeats with the low-resolution pixels, which shows as a grid on fur; 0: none, as in the paper."""
    spectrum_weight: Weight = 0
    """Weight of a penalty on frequencies that are stronger than in the true picture, which shows as hatching; 0: none, as in the paper."""
    adversarial_from: Count = 0
    """Pictures after which the adversarial loss begins."""
    adversarial: Literal["non-saturating", "saturating"] = "non-saturating"
    """Form of equation (3): as printed its gradient vanishes where the discriminator is sure; the non-saturating form, which the official
    code uses, has the same fixed point."""
    ema_half_life: Weight = 0
    """Half-life of the averaged weights in pictures; 0: no averaging, as in the paper."""

    def __post_init__(self):
        check(
            self,
            (
                self.discriminator is None or self.discriminator.size == self.network.out_size,
                f"discriminator.channels are those of {self.discriminator and self.discriminator.size} px, "
                f"but network.out_size is {self.network.out_size}",
            ),
        )


def recipe_names() -> list[str]:
    """The bundled recipes."""
    folder = resources.files("gleansr") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(cls: type[R], name_or_path: str, overrides: Sequence[str] = (), changes: dict[str, Any] | None = None) -> R:
    """The recipe of a TOML file or of a bundled name, with `changes` and then "key=value" `overrides` laid over it (dotted keys)."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RequestError(f"{path}: there is no such recipe")
        text = path.read_text(encoding="utf-8")
    else:
        names = recipe_names()
        if name_or_path not in names:
            raise RequestError(f"there is no recipe {name_or_path!r}; give a .toml file or one of: {', '.join(names)}")
        text = (resources.files("gleansr") / "recipes" / f"{name_or_path}.toml").read_text(encoding="utf-8")
    try:
        data = merge(tomllib.loads(text), changes or {})
        for override in overrides:
            data = merge(data, _override(override))
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{name_or_path}: not valid TOML ({error})") from None
    return from_dict(cls, data, f"recipe {name_or_path}")


def _override(text: str) -> dict[str, Any]:
    """'run.iterations=1000' as a nested table; a value that is no TOML is taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RequestError(f"an override must look like run.iterations=1000, not {text!r}")
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:
        nested: Any = value.strip()
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        return nested
