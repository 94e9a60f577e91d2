"""Settings of DGP. Names in quotation marks are those of the official code."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from gleansr.configs import Range, check

Downsampler = Literal["bicubic", "lanczos2"]


@dataclass(frozen=True)
class DGPConfig:
    """Settings of DGP; tuples have one entry per stage, except betas. The defaults are the official ones, named "D-biased" there."""

    iterations: Annotated[tuple[int, ...], Range(1, 1_000_000)] = (200, 200, 200, 200, 200)
    """Iterations of each stage."""
    tuned_groups: tuple[int | Literal["all"], ...] = (2, 3, 4, 5, "all")
    """Number of the bank's groups of parameters, from the input, that each stage tunes together with z ("ft_num"); larger numbers mean
    "all". The official numbers are 2 3 4 5 7 for BigGAN of 256 px, which has 7 groups, and 2 3 4 5 6 for 128 px, which has 6."""
    features: Annotated[tuple[int, ...], Range(1)] = (8, 8, 8, 8, 8)
    """Maximum number of the discriminator's features, from its output, that each stage compares ("ftr_num")."""
    feature_weights: Annotated[tuple[float, ...], Range(0)] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Weight of the feature distance in each stage ("w_D_loss")."""
    mse_weights: Annotated[tuple[float, ...], Range(0)] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Weight of the mean squared error in each stage ("w_mse")."""
    generator_lrs: Annotated[tuple[float, ...], Range(0)] = (5e-5, 5e-5, 2e-5, 1e-5, 1e-5)
    """Learning rate of the first group in each stage ("G_lrs")."""
    latent_lrs: Annotated[tuple[float, ...], Range(0)] = (2e-3, 1e-3, 2e-5, 1e-5, 1e-5)
    """Learning rate of z in each stage ("z_lrs")."""
    lr_ratios: Annotated[tuple[float, ...], Range(0)] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Learning rate of each group relative to the previous group's, in each stage ("lr_ratio")."""
    instance_norm: tuple[bool, ...] = (False, False, False, False, False)
    """Whether instance normalisation replaces BigGAN's conditional batch normalisation in each stage ("use_in"), initialised from the
    current statistics. No effect on StyleGAN's banks, which have no batch normalisation."""
    prior_weight: Annotated[float, Range(0)] = 0.02
    """Weight of the mean of z^2 / 2 ("w_nll"). StyleGAN's banks normalise z: there a shorter z only turns faster."""
    betas: Annotated[tuple[float, float], Range(0, 1, exclusive=True)] = (0.0, 0.999)
    """Adam's betas."""
    select_samples: Annotated[int, Range(1, 1_000_000)] = 500
    """Number of random z, with random classes if none is given; the search starts from the one of the least feature distance."""
    select_std: Annotated[float, Range(0)] = 0.3
    """Standard deviation of these z. StyleGAN's banks normalise z: there it sets how far z turns in an iteration."""
    select_features: Annotated[int, Range(1)] = 3
    """Number of the discriminator's features, from its output, in that distance."""
    class_index: Annotated[int | None, Range(0)] = None
    """Class of the images, for BigGAN; None: chosen with z."""
    downsampler: Downsampler = "bicubic"
    """Downsampling of the bank's image: MATLAB's bicubic, as for test images, or the Lanczos kernel with two lobes ("lanczos2"), as in the
    official code, whose inputs are made by Pillow's Lanczos."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Random seed, the same for every image."""

    def __post_init__(self):
        lengths = {field.name: len(getattr(self, field.name)) for field in dataclasses.fields(self) if _per_stage(field)}
        check(
            self,
            (
                min(lengths.values()) == max(lengths.values()) > 0,
                f"these must have one entry per stage: {', '.join(f'{name} has {n}' for name, n in lengths.items())}",
            ),
            (
                all(n == "all" or (isinstance(n, int) and n >= 0) for n in self.tuned_groups),
                f'tuned_groups must be numbers of 0 or more, or "all", not {self.tuned_groups}',
            ),
            (self.select_std > 0, f"select_std must be above 0, not {self.select_std}"),
            (
                self.downsampler in get_args(Downsampler),
                f"downsampler must be {' or '.join(get_args(Downsampler))}, not {self.downsampler!r}",
            ),
        )


def _per_stage(field: dataclasses.Field) -> bool:
    return isinstance(field.default, tuple) and field.name != "betas"


def discriminator_biased() -> DGPConfig:
    """The official settings for realistic results ("D_biased")."""
    return DGPConfig()


def mse_biased() -> DGPConfig:
    """The official settings for results close to the ground truth ("MSE_biased")."""
    return DGPConfig(
        feature_weights=(1.0, 1.0, 1.0, 0.5, 0.1),
        mse_weights=(10.0, 10.0, 10.0, 50.0, 100.0),
        generator_lrs=(2e-4, 2e-4, 1e-4, 1e-4, 1e-5),
        latent_lrs=(1e-3, 1e-3, 1e-4, 1e-4, 1e-5),
        instance_norm=(True, True, True, True, True),
    )


PRESETS: dict[str, Callable[[], DGPConfig]] = {"discriminator": discriminator_biased, "mse-biased": mse_biased}
