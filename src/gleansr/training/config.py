"""Recipes: one frozen dataclass per concern, filled from TOML. The resolved recipe travels inside every checkpoint."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from gleansr.configs import from_dict, merge
from gleansr.errors import RequestError
from gleansr.models.stylegan2 import StyleGAN2Config

R = TypeVar("R")


@dataclass(frozen=True)
class DataConfig:
    """Which pictures to train on."""

    train: tuple[str, ...] = ()
    """Folders or zip archives of pictures to learn from."""
    validation: tuple[str, ...] = ()
    """Folders or zip archives of pictures to report on; never learnt from."""
    n_validation: int = 64
    """How many of the validation pictures to use."""
    flip: bool = True
    """Mirror half of the pictures left to right."""


@dataclass(frozen=True)
class RunConfig:
    """How long, on what, and what to keep."""

    images: int
    """Pictures to see before the run ends; progress is counted in them."""
    batch_size: int = 16
    """Pictures per step."""
    seed: int = 0
    """Seed of everything that is drawn."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Arithmetic of the convolutions; weights, losses and optimiser stay float32."""
    checkpoint_every: int = 20_000
    """Pictures between two saves of the state, samples and validation figures."""
    log_every: int = 1_000
    """Pictures between two lines of the log."""


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
    lr: float = 0.0025
    """Learning rate of Adam for the generator."""
    discriminator_lr: float | None = None
    """Learning rate of Adam for the discriminator; None: that of the generator."""
    betas: tuple[float, float] = (0.0, 0.99)
    """Moment decays of Adam."""
    r1_gamma: float | None = None
    """Weight of the R1 penalty; None: 0.0002 * size^2 / batch_size, the heuristic of StyleGAN2-ADA."""
    r1_every: int = 16
    """Steps between two R1 penalties (lazy regularisation)."""
    path_length_weight: float = 2.0
    """Weight of the path length penalty; 0 switches it off."""
    path_length_every: int = 4
    """Steps between two path length penalties."""
    style_mixing: float = 0.9
    """Share of pictures made of two codes."""
    ema_half_life: float = 10_000
    """Half-life of the averaged generator in pictures."""
    ema_ramp_up: float = 0.05
    """The half-life is at most this share of the pictures seen."""
    ada_target: float = 0.6
    """Wanted mean sign of the discriminator on real pictures."""
    ada_images: int = 100_000
    """Pictures in which the augmentation probability may go from 0 to 1; 0: no augmentation."""


@dataclass(frozen=True)
class GLEANNetworkConfig:
    """Architecture of the encoder and decoder around the bank."""

    in_size: int
    """Height and width of the low-resolution picture."""
    n_rrdb: int = 23
    """Residual-in-residual dense blocks."""
    features: int = 64
    """Channels of those blocks."""
    growth: int = 32
    """Channels that each of their convolutions adds."""
    out_features: int = 64
    """Channels between the last two convolutions."""


@dataclass(frozen=True)
class GLEANRecipe:
    """Training of a GLEAN with equations (1) to (5) of the paper's supplement."""

    about: AboutConfig
    network: GLEANNetworkConfig
    run: RunConfig
    bank: str = ""
    """The trained bank: a file of any StyleGAN2 layout."""
    discriminator: StyleGAN2Config | None = None
    """Architecture of a discriminator that starts anew; None: start from the one in the bank's file, as the paper does, or where there is
    none from a new one with the bank's channels."""
    data: DataConfig = field(default_factory=DataConfig)
    lr: float = 1e-4
    """Initial learning rate of Adam for both networks; cosine annealing over the whole run."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Moment decays of Adam."""
    warm_up: int = 0
    """Pictures over which the learning rate rises from 0."""
    perceptual_weight: float = 1e-2
    """alpha_percep of equation (4)."""
    adversarial_weight: float = 1e-2
    """alpha_gen of equation (4); 0 trains without a discriminator."""
    lattice_weight: float = 0
    """Weight of a penalty on error that repeats with the low-resolution pixels, which shows as a grid on fur; 0: none, as in the paper."""
    spectrum_weight: float = 0
    """Weight of a penalty on frequencies that are stronger than in the true picture, which shows as hatching; 0: none, as in the paper."""
    adversarial_from: int = 0
    """Pictures after which the adversarial loss begins."""
    adversarial: Literal["non-saturating", "saturating"] = "non-saturating"
    """Form of equation (3): as printed its gradient vanishes where the discriminator is sure; the non-saturating form, which the official
    code uses, has the same fixed point."""
    ema_half_life: float = 0
    """Half-life of the averaged weights in pictures; 0: no averaging, as in the paper."""


def load_recipe(cls: type[R], name_or_path: str, overrides: Sequence[str] = (), changes: dict[str, Any] | None = None) -> R:
    """The recipe of a TOML file or of a bundled name, with `changes` and then "key=value" `overrides` laid over it (dotted keys)."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise RequestError(f"{path}: there is no such recipe")
        text = path.read_text(encoding="utf-8")
    else:
        folder = resources.files("gleansr") / "recipes"
        names = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
        if name_or_path not in names:
            raise RequestError(f"there is no recipe {name_or_path!r}; give a .toml file or one of: {', '.join(names)}")
        text = (folder / f"{name_or_path}.toml").read_text(encoding="utf-8")
    try:
        data = merge(tomllib.loads(text), changes or {})
        for override in overrides:
            data = merge(data, _override(override))
    except tomllib.TOMLDecodeError as error:
        raise RequestError(f"{name_or_path}: not valid TOML ({error})") from None
    return from_dict(cls, data, f"recipe {name_or_path}")


def _override(text: str) -> dict[str, Any]:
    """'run.images=1000' as a nested table; a value that is no TOML is taken as a string."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise RequestError(f"an override must look like run.images=1000, not {text!r}")
    try:
        return tomllib.loads(f"{key} = {value}")
    except tomllib.TOMLDecodeError:
        nested: Any = value.strip()
        for part in reversed(key.strip().split(".")):
            nested = {part: nested}
        return nested
