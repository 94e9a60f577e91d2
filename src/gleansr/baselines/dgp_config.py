"""The settings of DGP. Names in quotation marks are those of its official code."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from gleansr.configs import Range, check

Downsampler = Literal["bicubic", "lanczos2"]


@dataclass(frozen=True)
class DGPConfig:
    """How DGP searches: what has one entry per stage, and the rest. The defaults are the official ones, named "D-biased" there."""

    iterations: Annotated[tuple[int, ...], Range(1, 1_000_000)] = (200, 200, 200, 200, 200)
    """Iterations of each stage."""
    tuned_groups: tuple[int | Literal["all"], ...] = (2, 3, 4, 5, "all")
    """How many of the bank's groups of parameters, counted from the input, each stage tunes beside z ("ft_num"): a number, beyond the last
    group as good as "all". The official numbers are 2 3 4 5 7 for BigGAN of 256 px, which has 7 groups, and 2 3 4 5 6 for that of 128 px,
    which has 6: so all in the last stage."""
    features: Annotated[tuple[int, ...], Range(1)] = (8, 8, 8, 8, 8)
    """How many of the discriminator's features, counted from its output, each stage compares, or as many as there are ("ftr_num")."""
    feature_weights: Annotated[tuple[float, ...], Range(0)] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Weight of the features' distance in each stage ("w_D_loss")."""
    mse_weights: Annotated[tuple[float, ...], Range(0)] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Weight of the mean squared error in each stage ("w_mse")."""
    generator_lrs: Annotated[tuple[float, ...], Range(0)] = (5e-5, 5e-5, 2e-5, 1e-5, 1e-5)
    """Learning rate of the first group in each stage ("G_lrs")."""
    latent_lrs: Annotated[tuple[float, ...], Range(0)] = (2e-3, 1e-3, 2e-5, 1e-5, 1e-5)
    """Learning rate of z in each stage ("z_lrs")."""
    lr_ratios: Annotated[tuple[float, ...], Range(0)] = (1.0, 1.0, 1.0, 1.0, 1.0)
    """Learning rate of each group relative to that of the one before it, in each stage ("lr_ratio")."""
    instance_norm: tuple[bool, ...] = (False, False, False, False, False)
    """Whether instance normalisation takes the place of BigGAN's conditional one in each stage ("use_in"); it starts from the statistics of
    that moment. StyleGAN's banks have no batch normalisation: nothing to replace."""
    prior_weight: Annotated[float, Range(0)] = 0.02
    """Weight of the mean of z^2 / 2 ("w_nll"). StyleGAN's banks see the direction of z alone: there it only makes z turn more readily."""
    betas: Annotated[tuple[float, float], Range(0, 1, exclusive=True)] = (0.0, 0.999)
    """Adam's betas."""
    select_samples: Annotated[int, Range(1, 1_000_000)] = 500
    """How many z, with random classes where none is given, are drawn to start from the one of the least features' distance."""
    select_std: Annotated[float, Range(0)] = 0.3
    """Standard deviation of these z. StyleGAN's banks see their direction alone: there it sets how far z turns in an iteration."""
    select_features: Annotated[int, Range(1)] = 3
    """How many of the discriminator's features, counted from its output, choose among them."""
    class_index: Annotated[int | None, Range(0)] = None
    """The class of the images, for BigGAN; None: it is chosen with z."""
    downsampler: Downsampler = "bicubic"
    """How the bank's image is shrunk: by MATLAB's bicubic, which the given images were made with, or by Lanczos' kernel of two lobes
    ("lanczos2"), as in the official code, which compares with images that Pillow's Lanczos shrank."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Seed of what is drawn, the same for every image."""

    def __post_init__(self):
        lengths = {field.name: len(getattr(self, field.name)) for field in dataclasses.fields(self) if _per_stage(field)}
        check(
            self,
            (
                min(lengths.values()) == max(lengths.values()) > 0,
                f"these must have one entry per stage each: {', '.join(f'{name} has {n}' for name, n in lengths.items())}",
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
    """The official setting for realistic results ("D_biased")."""
    return DGPConfig()


def mse_biased() -> DGPConfig:
    """The official setting for results close to the ground truth ("MSE_biased")."""
    return DGPConfig(
        feature_weights=(1.0, 1.0, 1.0, 0.5, 0.1),
        mse_weights=(10.0, 10.0, 10.0, 50.0, 100.0),
        generator_lrs=(2e-4, 2e-4, 1e-4, 1e-4, 1e-5),
        latent_lrs=(1e-3, 1e-3, 1e-4, 1e-4, 1e-5),
        instance_norm=(True, True, True, True, True),
    )


PRESETS: dict[str, Callable[[], DGPConfig]] = {"discriminator": discriminator_biased, "mse-biased": mse_biased}
