"""Recipes: one frozen dataclass per concern, filled from TOML. The resolved recipe travels inside every checkpoint."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from gleansr.configs import Range, check, from_dict, merge, parse_override
from gleansr.data.choices import Aspect, Border
from gleansr.data.degradation import RealConfig
from gleansr.documents import read_toml
from gleansr.errors import RequestError
from gleansr.inference.precision import full_name
from gleansr.models.esrgan_plus import ESRGANDiscriminatorConfig
from gleansr.models.stylegan2 import StyleGAN2Config
from gleansr.training.networks import ESRGANPlusNetworkConfig, GLEANNetworkConfig, PlainNetworkConfig

R = TypeVar("R")
LIGHT = "-light"
"""Suffix of a GLEAN recipe's name: the same recipe with `network.light`."""
SMALLEST_PERCEPTUAL = 16
"""Minimum rows and columns of images for the perceptual networks."""
VIEW_MARGIN = 16
"""Pixels by which random views are smaller than the images: the period of SqueezeNet's and VGG19's coarsest grid."""
Positive = Annotated[int, Range(1)]
Count = Annotated[int, Range(0)]
Weight = Annotated[float, Range(0)]
Rate = Annotated[float, Range(0, 1000)]
Betas = Annotated[tuple[float, float], Range(0, 1, exclusive=True)]


@dataclass(frozen=True)
class DataConfig:
    """Training images. A source is a folder, a zip archive, WebDataset shards (a file or URL, with braces) or an LMDB folder."""

    train: tuple[str, ...] = ()
    """Sources of training images."""
    train_low: tuple[str, ...] = ()
    """Sources of prepared low-resolution images, one per source of `train`, matched by name; none: made on the fly."""
    validation: tuple[str, ...] = ()
    """Sources of validation images, never trained on."""
    n_validation: Positive = 64
    """Number of validation images to use."""
    flip: bool = True
    """Mirror half of the images horizontally."""
    rotate: bool = False
    """Rotate the images by 0, 90, 180 or 270 degrees, for subjects without an upright; with `flip` all eight orientations."""
    patch: Annotated[int | None, Range(1)] = None
    """Height and width of a random crop of each image, on the grid of the low-resolution pixels; None: whole images."""
    random_crop: Annotated[float, Range(0.1, 1)] = 1.0
    """Train on random squares whose side is between this share of the image's shorter side and all of it, and not below the network's size
    if the image has that; 1: whole images. For small data sets, or images without framing."""
    degradation: Literal["bicubic", "real", "blind"] = "bicubic"
    """Degradation of the low-resolution images: bicubic: MATLAB's, to 8 bits, as in the paper; real: that of thumbnails, see the table
    `real`; blind: blur, noise and JPEG as in the official configuration for faces."""
    real: RealConfig = field(default_factory=RealConfig)
    """Ranges of degradation = "real"."""
    aspect: Aspect = "crop"
    """Fitting of images that are not square: crop the centre square, squash each axis separately, pad to a square, or bars: crop the centre
    of aspect 4:3 and add a border above and below (cars)."""
    border: Border = "repeat"
    """Filling of that border: repeat the outermost pixels, as at inference, or black (LSUN cars)."""
    small: Literal["refuse", "skip", "enlarge"] = "refuse"
    """Images that would have to be enlarged: refuse with an error, skip, or enlarge."""
    other_size: Literal["fit", "skip", "refuse"] = "fit"
    """Images of another size than the network's: fit, skip, or refuse with an error."""
    corrupt: Literal["refuse", "skip"] = "refuse"
    """Images that cannot be read: refuse with an error, or skip."""
    workers: Count = 4
    """Processes per device that read images not held in memory; at most the number of cores."""
    memory: Weight = 8.0
    """GB of decoded images to hold in memory; a larger set is read on demand."""

    def __post_init__(self):
        check(
            self,
            (
                len(self.train_low) in (0, len(self.train)),
                f"train_low must have a source for each of train, but has {len(self.train_low)} for {len(self.train)}",
            ),
            (not self.train_low or self.degradation == "bicubic", 'train_low is given, so degradation must be "bicubic"'),
            (not self.train_low or self.random_crop == 1, "train_low is given, so random_crop must be 1"),
            (
                self.degradation != "blind" or self.aspect in ("crop", "squash"),
                f'degradation = "blind" takes images without a border, so aspect must be "crop" or "squash", not "{self.aspect}"',
            ),
            (
                self.random_crop == 1 or self.aspect == "crop",
                f'random_crop cuts out squares, so aspect must be "crop", not "{self.aspect}"',
            ),
        )


@dataclass(frozen=True)
class RunConfig:
    """Length, hardware and outputs of a run."""

    iterations: Positive
    """Steps of the run; progress is counted in images, iterations * batch_size."""
    batch_size: Positive = 16
    """Images per step, over all devices."""
    devices: Positive = 1
    """GPUs (or processes on a CPU) per node that share each batch; with fewer, each takes a larger share."""
    seed: int = 0
    """Seed of all random numbers."""
    precision: Literal["float32", "bfloat16", "fp32", "bf16"] = "float32"
    """Precision of the convolutions; weights, losses and optimiser stay float32."""
    compile: bool = False
    """Compile the networks with torch.compile, which takes minutes at the start."""
    checkpoint_every: Positive = 20_000
    """Images between two checkpoints, with samples and validation metrics."""
    log_every: Positive = 1_000
    """Images between two lines of the log."""
    keep: Positive = 2
    """Checkpoints to keep, in addition to the best one."""
    tensorboard: bool = True
    """Also write metrics and samples for TensorBoard, to the folder tensorboard/."""

    def __post_init__(self):
        object.__setattr__(self, "precision", full_name(self.precision))
        check(
            self,
            (self.precision in ("float32", "bfloat16"), f"precision must be float32 or bfloat16, not {self.precision}"),
            (
                self.devices < 1 or self.batch_size % self.devices == 0,
                f"batch_size {self.batch_size} cannot be shared evenly by devices {self.devices}",
            ),
        )

    @property
    def images(self) -> int:
        """Images that the run sees in total."""
        return self.iterations * self.batch_size


@dataclass(frozen=True)
class AboutConfig:
    """Metadata of the finished model."""

    name: str
    """Name of the model, and of its file."""
    category: str = ""
    """Category of its images."""
    licence: str = ""
    """Licence of the weights, following that of the data."""
    credit: str = ""
    """Required attribution."""
    self_ensemble: bool = False
    """Results are the mean of those for the image and for its mirror image: better, in twice the time. Training has one pass."""

    def __post_init__(self):
        name = self.name
        fits = name.isprintable() and not name.startswith(".") and not set(name) & set("/\\:") and 0 < len(name.encode()) <= 200
        check(self, (fits, f"name is that of the model's file: 1 to 200 bytes, without / \\ : or a leading dot, not {name[:100]!r}"))


@dataclass(frozen=True)
class BankRecipe:
    """Training of a StyleGAN2 bank, Karras et al. 2020, with adaptive augmentation."""

    about: AboutConfig
    network: StyleGAN2Config
    """Architecture of the generator."""
    run: RunConfig
    discriminator: Literal["stylegan2", "projected"] = "stylegan2"
    """stylegan2: StyleGAN2's, with R1, from which GLEAN's adversarial loss can start; projected: on SqueezeNet's features (projected GAN),
    which needs far fewer images but is not saved."""
    data: DataConfig = field(default_factory=DataConfig)
    start: str | None = None
    """A bank to start from, alone or in a GLEAN, of the same or a smaller size with the same channels, as in progressive growing."""
    lr: Rate = 0.0025
    """Learning rate of Adam for the generator; 0 trains only the discriminator, for DGP."""
    discriminator_lr: Annotated[float | None, Range(0, 1000)] = None
    """Learning rate of Adam for the discriminator; 0 freezes it; None: that of the generator."""
    betas: Betas = (0.0, 0.99)
    """Moment decays of Adam."""
    r1_gamma: Annotated[float | None, Range(0)] = None
    """Weight of the R1 penalty; None: 0.0002 * size^2 / batch_size, the heuristic of StyleGAN2-ADA."""
    r1_every: Positive = 16
    """Steps between two R1 penalties (lazy regularisation)."""
    path_length_weight: Weight = 2.0
    """Weight of the path length penalty; 0: none."""
    path_length_every: Positive = 4
    """Steps between two path length penalties."""
    style_mixing: Annotated[float, Range(0, 1)] = 0.9
    """Share of images generated from two latents."""
    reconstruction_weight: Weight = 0.0
    """Weight of the reconstruction of ground-truth images from an encoder's latents, which are half of each batch; the mapping network
    learns only the distribution of these latents. It prevents mode collapse on few images. 0: no encoder."""
    ema_half_life: Weight = 10_000
    """Half-life of the averaged generator in images; 0: no averaging."""
    ema_ramp_up: Weight = 0.05
    """The half-life is at most this share of the images seen; 0: no averaging."""
    ada_target: float = 0.6
    """Target of the discriminator's mean sign on real images."""
    ada_images: Count = 100_000
    """Images over which the augmentation probability can rise from 0 to 1; 0: no augmentation."""

    def __post_init__(self):
        check(
            self,
            (self.run.devices == 1, f"a bank is trained on one device, so run.devices must be 1, not {self.run.devices}"),
            (not self.data.train_low, "a bank is trained without low-resolution images, so data.train_low must be empty"),
            (self.data.patch is None, "a bank is trained on whole images, so leave out data.patch"),
            (
                not (self.reconstruction_weight and self.run.batch_size < 2),
                f"with reconstruction_weight run.batch_size must be at least 2, not {self.run.batch_size}",
            ),
            (
                not (self.reconstruction_weight and not self.lr),
                "with lr = 0 the generator is frozen and has no encoder, so leave out reconstruction_weight",
            ),
        )


@dataclass(frozen=True)
class NetworkRecipe:
    """Training of a super-resolution network: a GLEAN, by equations (1) to (5) of the paper's supplement, or a feed-forward baseline."""

    about: AboutConfig
    network: GLEANNetworkConfig | PlainNetworkConfig | ESRGANPlusNetworkConfig
    run: RunConfig
    bank: Literal["stylegan2", "stylegan", "none"] | None = None
    """Architecture of GLEAN's generative latent bank, by default "stylegan2"; "none" trains the same decoder without a bank, as an
    ablation. Other kinds of network have no bank."""
    bank_file: str = ""
    """The trained bank: a file of any layout, that of a GLEAN too, or the name of a model; bank = "none" uses its channels only."""
    discriminator: StyleGAN2Config | ESRGANDiscriminatorConfig | None = None
    """Architecture of an untrained discriminator: StyleGAN2's, by its `channels`, or ESRGAN's, by its `size`. None: the one in the bank's
    file, as in the paper, or if it has none an untrained one with the bank's channels."""
    start: str | None = None
    """A trained network to start from: for a GLEAN one around a bank of the same architecture, of this scale or another; for ESRGAN+ an
    ESRGAN+ or an ESRGAN; for a residual network another one. Layers that it lacks start untrained."""
    start_exclude: tuple[str, ...] = ()
    """Layers of `start` that are left out and start untrained, by the beginnings of their names: ["encoder.code"] with mean_latents moves
    the latents of a trained GLEAN back to the bank's mean."""
    mean_latents: bool = False
    """Whether an untrained GLEAN begins with the bank's mean latent, w_avg, for every image: the bank's features for latents near 0 are not
    those of images; no effect without a bank. Not in the paper; faces at 32x gained 0.7 dB in 4,800 images (docs/results.md)."""
    teacher: str | None = None
    """A trained network of the same sizes to imitate (distillation), such as a full GLEAN for a light one."""
    teacher_share: Annotated[float, Range(0, 1)] = 1.0
    """Share of equations (1) and (2) that compares with the teacher's results; the rest compares with the ground-truth images."""
    data: DataConfig = field(default_factory=DataConfig)
    lr: Rate = 1e-4
    """Initial learning rate of Adam for both networks."""
    betas: Betas = (0.9, 0.99)
    """Moment decays of Adam."""
    schedule: Literal["cosine", "halving"] = "cosine"
    """Schedule of the learning rate: cosine annealing over the whole run, or halving at `halve_at`."""
    halve_at: Annotated[tuple[int, ...], Range(1)] = ()
    """Iterations after which the learning rate is halved."""
    warm_up: Count = 0
    """Images over which the learning rate rises linearly from 0."""
    pixel: Literal["mse", "l1"] = "mse"
    """Equation (1): the mean squared error, or the mean absolute error as in ESRGAN+. Images are in [-1, 1]."""
    pixel_weight: Weight = 1.0
    """Weight of equation (1) in equation (4), 1 in the paper. ESRGAN+ has 0.01 for images in [0, 1], hence 0.005 here."""
    perceptual: Literal["vgg16", "vgg19", "squeezenet", "efficientnet", "alternating"] = "squeezenet"
    """Network of equation (2): VGG16 as in the paper, fetched at first use (528 MB); VGG19 as in ESRGAN+ (548 MB); SqueezeNet 1.1 or
    EfficientNet-Lite0, bundled; alternating is one of these two at random in each iteration."""
    perceptual_file: str | None = None
    """File with the weights of VGG16 or VGG19 (torchvision's vgg16-397923af.pth, vgg19-dcbb9e9d.pth), instead of fetching it."""
    perceptual_input: Literal["signed", "unit"] = "signed"
    """Input range of VGG16: signed is [-1, 1] as in the official code, though VGG16 was trained on [0, 1]; unit is [0, 1]. VGG19 always
    takes [0, 1]."""
    perceptual_weight: Weight = 1e-2
    """alpha_percep of equation (4); 0 trains without a perceptual loss."""
    perceptual_views: bool = False
    """Compare the features of random views, the same of result and ground truth: crops at random offsets, flipped and transposed at
    random. False: of whole images, as in the paper."""
    adversarial_weight: Weight = 1e-2
    """alpha_gen of equation (4); 0 trains without a discriminator."""
    lattice_weight: Weight = 0
    """Weight of the penalty on errors that repeat with the low-resolution pixels, visible as a grid on fur; 0: none, as in the paper."""
    checkerboard_weight: Weight = 0
    """Weight of the penalty on gradients that depend on the offset within 8x8 px (or scale x scale), visible as a weave in hair; 0: none,
    as in the paper."""
    spectrum_weight: Weight = 0
    """Weight of the penalty on frequencies stronger than in the ground truth, visible as hatching; 0: none, as in the paper."""
    spectrum_images: Positive | None = None
    """Images of each batch (of each process's share) that this penalty uses; None: all, which takes a third of a light network's step."""
    adversarial_from: Count = 0
    """Images after which the adversarial loss starts."""
    adversarial: Literal["non-saturating", "saturating", "relativistic"] = "non-saturating"
    """Form of equations (3) and (5). The printed, saturating form has no gradient where the discriminator is certain; the non-saturating
    form of the official code has the same fixed point. Relativistic, as in ESRGAN+, compares results and ground truths with each other's
    mean; several processes use the mean of their share."""
    ema_half_life: Weight = 0
    """Half-life of the averaged weights in images; 0: no averaging, as in the paper."""

    @property
    def perceptual_networks(self) -> tuple[str, ...]:
        """The networks of equation (2), of which each iteration takes one; none if its weight is 0."""
        if not self.perceptual_weight:
            return ()
        return ("squeezenet", "efficientnet") if self.perceptual == "alternating" else (self.perceptual,)

    def __post_init__(self):
        network, patch = self.network, self.data.patch
        glean = isinstance(network, GLEANNetworkConfig)
        if glean and self.bank is None:
            object.__setattr__(self, "bank", "stylegan2")
        size = network.out_size if patch is None else patch
        d_size, esrgan = self.discriminator.size if self.discriminator else size, isinstance(self.discriminator, ESRGANDiscriminatorConfig)
        check(
            self,
            (
                d_size == size,
                f"{'discriminator.size is' if esrgan else 'discriminator.channels are those of'} {d_size} px, "
                f"but {'network.out_size' if patch is None else 'data.patch'} is {size}",
            ),
            (
                glean or not (self.bank or self.bank_file),
                f'network.kind is "{network.kind}", which has no bank, so leave out bank and bank_file (--bank)',
            ),
            (
                glean or self.discriminator is not None or self.adversarial_weight == 0,
                f'network.kind is "{network.kind}", which has no bank to take a discriminator from, so give [discriminator] '
                "or adversarial_weight = 0",
            ),
            (self.start is not None or not self.start_exclude, "start_exclude leaves out layers of start, so give start too"),
            (not (glean and patch), "GLEAN is trained on whole images, so leave out data.patch"),
            (not (self.teacher and patch), "a teacher takes whole images, so leave out data.patch"),
            (
                patch is None or (patch <= network.out_size and patch * network.in_size % network.out_size == 0),
                f"data.patch must be at most network.out_size, {network.out_size}, "
                f"and a multiple of the scale, {network.out_size // network.in_size}, not {patch}",
            ),
            (
                (self.schedule == "halving") == bool(self.halve_at) and tuple(sorted(self.halve_at)) == self.halve_at,
                'schedule = "halving" takes ascending iterations in halve_at, and "cosine" none; '
                f"schedule is {self.schedule!r} and halve_at {list(self.halve_at)}",
            ),
            (
                not self.lattice_weight or size * network.in_size >= 8 * network.out_size,
                "lattice_weight uses windows of 8x8 low-resolution pixels, but the images have fewer; leave it out",
            ),
            (
                not self.checkerboard_weight or size >= 2 * min(network.out_size // network.in_size, 8),
                f"checkerboard_weight compares squares of up to 8x8 px, at least two a side, but the images have {size}; leave it out",
            ),
            (
                not self.spectrum_weight or size >= 32,
                f"spectrum_weight uses patches of 32x32 px, but the images have {size}; leave it out",
            ),
            (
                not self.perceptual_weight or size >= SMALLEST_PERCEPTUAL,
                f"perceptual_weight needs images of {SMALLEST_PERCEPTUAL} px or more, but they have {size}; set it to 0",
            ),
            (
                not (self.perceptual_weight and self.perceptual_views) or size >= SMALLEST_PERCEPTUAL + VIEW_MARGIN,
                f"perceptual_views needs images of {SMALLEST_PERCEPTUAL + VIEW_MARGIN} px or more, but they have {size}; leave it out",
            ),
            (
                not self.data.validation or network.out_size >= SMALLEST_PERCEPTUAL,
                f"data.validation needs images of {SMALLEST_PERCEPTUAL} px or more, but they have {network.out_size}; leave it out",
            ),
            (
                self.pixel_weight + self.perceptual_weight > 0,
                "pixel_weight and perceptual_weight are both 0, so no loss compares the results with the images",
            ),
        )


def recipe_names() -> list[str]:
    """Names of the bundled recipes."""
    folder = resources.files("gleansr") / "recipes"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_recipe(cls: type[R], name_or_path: str, overrides: Sequence[str] = (), changes: dict[str, Any] | None = None) -> R:
    """Loads a recipe from a TOML file or by its bundled name, merged with `changes` and then with "key=value" `overrides` (dotted keys)."""
    path, light = Path(name_or_path), False
    if path.suffix == ".toml":
        if not path.is_file():
            raise RequestError(f"{path}: no such recipe")
        source = path
    else:
        names = recipe_names()
        name = name_or_path if name_or_path in names else name_or_path.removesuffix(LIGHT)
        if name not in names:
            near = difflib.get_close_matches(name_or_path, [*names, *(f"{known}{LIGHT}" for known in names)], n=1)
            raise RequestError(
                f"no recipe is named {name_or_path!r}{f', did you mean {near[0]}?' if near else ''}; "
                f"give a .toml file or one of: {', '.join(names)}; "
                f"append {LIGHT} to the name of a GLEAN's recipe for its light form"
            )
        light = name != name_or_path
        source = Path(str(resources.files("gleansr") / "recipes" / f"{name}.toml"))
    try:
        data = read_toml(source)
    except OSError as error:
        raise RequestError(f"{source}: cannot be read: {error.strerror or error}") from None
    if light:
        data = merge(data, {"network": {"light": True}, "about": {"name": f"{data['about']['name']}{LIGHT}"}})
    data = merge(data, changes or {})
    for change in overrides:
        data = merge(data, parse_override(change))
    return from_dict(cls, data, f"recipe {name_or_path}")
